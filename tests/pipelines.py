"""Writes folders of small diffusers pipelines with random weights: latent diffusion, Stable Diffusion 3, Flux."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DModel,
    VQModel,
)
from torch import nn

SIDE = 16
"""Side of the images in pixels; the latents have 8x8 cells."""

BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": SIDE,
}


def tiny_vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(**BLOCKS, latent_channels=channels, **options)


def tiny_ldm(folder: Path, kind: Literal["vq", "kl"] = "vq") -> Path:
    """An LDMPipeline: an autoencoder with 2x2 pixels per cell (VQ: 3 channels, KL: 4) and a UNet2DModel on 8x8 cells."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        channels = 3 if kind == "vq" else 4
        unet = UNet2DModel(
            sample_size=SIDE // 2,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=16,
            norm_num_groups=8,
        )
        vq = VQModel(**BLOCKS, latent_channels=3, num_vq_embeddings=64, scaling_factor=0.7)
        coder = vq if kind == "vq" else tiny_vae(scaling_factor=0.7, shift_factor=0.1)
    parts = {"vqvae" if kind == "vq" else "vae": coder, "unet": unet}
    parts["scheduler"] = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    index = {"_class_name": "LDMPipeline", "_diffusers_version": "0.30.0"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_clip(kind: Literal["projected", "plain"]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return CLIPTextModelWithProjection(config) if kind == "projected" else CLIPTextModel(config)


def tiny_t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def clip_tokenizer() -> Any:
    """A tokenizer of single bytes, without merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=77)


def t5_tokenizer() -> Any:
    """A tokenizer of the letters a to z and the space before a word."""
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(
        [*pieces, *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz")],
        extra_ids=0,
    )


def tiny_sd3(folder: Path, *, t5: bool = False) -> Path:
    """A StableDiffusion3Pipeline for images of 16x16 pixels (up to 32x32); t5: with a T5 text encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=SIDE // 2,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=_amplified(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=tiny_vae(scaling_factor=1.5, shift_factor=0.06),
            text_encoder=tiny_clip("projected"),
            tokenizer=clip_tokenizer(),
            text_encoder_2=tiny_clip("projected"),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=tiny_t5() if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    pipeline.save_pretrained(folder)
    return folder


def tiny_sd3_controlnet(folder: Path, **changes: Any) -> Path:
    """An inpainting ControlNet for `tiny_sd3`, whose layers that start at zero are random."""
    fields: dict[str, Any] = {
        "sample_size": SIDE // 2,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 8,
        "extra_conditioning_channels": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        controlnet = _amplified(SD3ControlNetModel(**(fields | changes)))
        for parameter in (*controlnet.controlnet_blocks.parameters(), *controlnet.pos_embed_input.parameters()):
            nn.init.normal_(parameter, std=0.3)
    controlnet.save_pretrained(folder)
    return folder


def tiny_flux(folder: Path, *, guidance_embeds: bool = True, fill: bool = False) -> Path:
    """A FluxPipeline, or a FluxFillPipeline. Its default size is 256x256; pass a size of 16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=4 * (4 + 4 + 2 * 2) if fill else 16,
            out_channels=16 if fill else None,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        )
        pipeline = (FluxFillPipeline if fill else FluxPipeline)(
            transformer=_amplified(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=tiny_vae(scaling_factor=1.5, shift_factor=0.06),
            text_encoder=tiny_clip("plain"),
            tokenizer=clip_tokenizer(),
            text_encoder_2=tiny_t5(),
            tokenizer_2=t5_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return folder


def _amplified(network: nn.Module) -> nn.Module:
    """Double the weights, so the output of the untrained network depends visibly on prompts and timesteps."""
    for parameter in network.parameters():
        parameter.data.mul_(2)
    return network
