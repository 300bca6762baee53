"""Writes folders of small Qwen-Image, Z-Image and FLUX.2 [klein] pipelines with random weights."""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn

from tests.pipelines import BLOCKS, tiny_vae

Name = Literal["qwen", "z", "klein", "klein-base"]

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>{% endif %}"
)


def qwen_tokenizer() -> Any:
    """A tokenizer of single bytes, without merges, with a chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        {word: number for number, word in enumerate(words)},
        [],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


TEXT: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def tiny_qwen3(*, layers: int, head: bool) -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(**TEXT, num_hidden_layers=layers, head_dim=8)
    return (Qwen3ForCausalLM if head else Qwen3Model)(config)


def tiny_qwen_vl() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    rope = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**TEXT, "num_hidden_layers": 2, "rope_scaling": rope, "rope_parameters": rope}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def _amplified(network: nn.Module) -> nn.Module:
    """Random weights everywhere, so that the output depends visibly on prompts and timesteps."""
    for parameter in network.parameters():
        parameter.data.normal_(std=0.2)
    return network


def _qwen() -> QwenImagePipeline:
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 0.8, 1.2],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return QwenImagePipeline(scheduler, vae, tiny_qwen_vl(), qwen_tokenizer(), _amplified(transformer))


def _z_image() -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 16, 16],
    )
    vae, encoder = tiny_vae(scaling_factor=1.5, shift_factor=0.06), tiny_qwen3(layers=2, head=False)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ZImagePipeline(scheduler, vae, encoder, qwen_tokenizer(), _amplified(transformer))


def _klein(*, distilled: bool) -> Flux2KleinPipeline:
    vae = AutoencoderKLFlux2(**BLOCKS, latent_channels=4)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    encoder, tokenizer = tiny_qwen3(layers=28, head=True), qwen_tokenizer()
    return Flux2KleinPipeline(scheduler, vae, encoder, tokenizer, _amplified(transformer), is_distilled=distilled)


def tiny_newer(folder: Path, name: Name) -> Path:
    """A pipeline for images of 16x16 pixels, with 8x8 latent cells of four channels. Pass a size of 16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = _qwen() if name == "qwen" else _z_image() if name == "z" else _klein(distilled=name == "klein")
    pipeline.save_pretrained(folder)
    return folder
