"""Writes small Stable Diffusion models with random weights: images of 32x32, latents of 16x16, attention at 16, 8, 4, 2."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

SIZE, TOKENS = 32, 12
CHANNELS = (16, 32, 32, 32)


def seeded(build, seed=0, spread=0.0):
    """The module of `build` with reproducible weights; spread: scale of noise added to all, for layers that start at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
    return module


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer of single characters."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=TOKENS
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_encoder(kind, tokenizer, seed, hidden=16):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return seeded(lambda: kind(config), seed, spread=0.2)


def autoencoder():
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=SIZE,
        )
    )


def scheduler(prediction_type="epsilon"):
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def make_unet(**settings):
    return seeded(
        lambda: UNet2DConditionModel(
            **{
                "sample_size": SIZE // 2,
                "block_out_channels": CHANNELS,
                "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "cross_attention_dim": 16,
                "attention_head_dim": 2,
                **settings,
            }
        ),
        spread=0.02,
    )


def write_stable(folder: Path, *, prediction_type: str = "epsilon", for_inpainting: bool = False) -> Path:
    """for_inpainting: a StableDiffusionInpaintPipeline, whose network has 9 input channels."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    (StableDiffusionInpaintPipeline if for_inpainting else StableDiffusionPipeline)(
        vae=autoencoder(),
        text_encoder=text_encoder(CLIPTextModel, tokenizer, 1),
        tokenizer=tokenizer,
        unet=make_unet(in_channels=9) if for_inpainting else make_unet(),
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_stable_xl(folder: Path, *, for_inpainting: bool = False) -> Path:
    """for_inpainting: as of `write_stable`."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    (StableDiffusionXLInpaintPipeline if for_inpainting else StableDiffusionXLPipeline)(
        vae=autoencoder(),
        text_encoder=text_encoder(CLIPTextModel, tokenizer, 1),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, tokenizer, 2),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet(
            in_channels=9 if for_inpainting else 4,
            block_out_channels=CHANNELS[:3],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            transformer_layers_per_block=(1, 1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=scheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def write_controlnet(folder: Path, unet: UNet2DConditionModel) -> Path:
    def build():
        return ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
        )

    seeded(build, 3, spread=0.1).save_pretrained(folder)
    return folder


def write_t2i_adapter(folder: Path, channels=CHANNELS) -> Path:
    def build():
        return T2IAdapter(channels=list(channels), num_res_blocks=1, downscale_factor=2)

    seeded(build, 4, spread=0.1).save_pretrained(folder)
    return folder


def write_ip_adapter(folder: Path, unet: UNet2DConditionModel) -> Path:
    """Write an IP-Adapter with its image encoder. Returns the path of the .safetensors file."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    seeded(lambda: CLIPVisionModelWithProjection(config), 5, spread=0.2).save_pretrained(folder / "image_encoder")
    random, width = torch.Generator().manual_seed(6), unet.config["cross_attention_dim"]
    weights = {
        "image_proj.proj.weight": torch.randn(4 * width, 8, generator=random),
        "image_proj.proj.bias": torch.randn(4 * width, generator=random),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    crosses = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(crosses):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            shape = (layer.inner_dim, width)
            weights[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(shape, generator=random)
    save_file(weights, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors"


def write_lora(file: Path, unet: UNet2DConditionModel, *, seed: int = 7) -> Path:
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    state = get_peft_model_state_dict(unet)
    random = torch.Generator().manual_seed(seed)
    state = {name: 0.5 * torch.randn(value.shape, generator=random) for name, value in state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    StableDiffusionPipeline.save_lora_weights(file.parent, unet_lora_layers=state, weight_name=file.name)
    return file
