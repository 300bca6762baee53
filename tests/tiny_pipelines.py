"""Whole text-to-image and latent models in diffusers' layout, small enough for every test; random weights."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)

from tests.pipelines import clip_tokenizer, t5_tokenizer, tiny_clip, tiny_t5
from tests.tiny_networks import small_conditional, small_transformer


def small_autoencoder(**changes: object) -> AutoencoderKL:
    """Two pixels a side of a cell, four channels."""
    fields = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.7,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(**(fields | changes)).eval()


def write_pipeline(folder: Path, kind: str, *, prediction: str = "epsilon", t5: bool = True) -> Path:
    """A model of the `kind` "stable", "stable3" or "latent", see `rad.models.adapter.Kind`; images of 16x16, latents of 8x8."""
    if kind == "stable3":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            StableDiffusion3Pipeline(
                transformer=small_transformer(joint_attention_dim=32, pooled_projection_dim=32),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                vae=small_autoencoder(shift_factor=0.1),
                text_encoder=tiny_clip("projected"),
                tokenizer=clip_tokenizer(),
                text_encoder_2=tiny_clip("projected"),
                tokenizer_2=clip_tokenizer(),
                text_encoder_3=tiny_t5() if t5 else None,
                tokenizer_3=t5_tokenizer() if t5 else None,
            ).save_pretrained(folder)
        return folder
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        steps_offset=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "stable":
            StableDiffusionPipeline(
                vae=small_autoencoder(),
                text_encoder=tiny_clip("plain"),
                tokenizer=clip_tokenizer(),
                unet=small_conditional(),
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            ).save_pretrained(folder)
            return folder
        unet = UNet2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=16,
        )
    LDMPipeline(vqvae=small_autoencoder(), unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder


def captions(names: list[str]) -> str:
    """A captions file's content that names every image's colour in turn."""
    return json.dumps({name: f"a {('red', 'blue')[number % 2]} boat" for number, name in enumerate(names)})
