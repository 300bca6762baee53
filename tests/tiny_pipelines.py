"""Whole text-to-image and latent models in diffusers' layout, small enough for every test; random weights."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.networks import small_conditional, small_transformer

WORDS = ("<unk>", "<pad>", "a", "red", "blue", "boat", "sky", "<end>")
LENGTH = 6


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
    """A model of the `kind` "stable", "stable3" or "latent", see `rad.pretrained.Parts`; pictures of 16x16, latents of 8x8."""
    shift = {"shift_factor": 0.1} if kind == "stable3" else {}
    small_autoencoder(**shift).save_pretrained(folder / ("vqvae" if kind == "latent" else "vae"))
    if kind == "stable3":
        small_transformer().save_pretrained(folder / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_config(folder / "scheduler")
        for end in ("", "_2"):
            _write_clip(folder, end, projected=True)
        if t5:
            _write_t5(folder)
        return folder
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    scheduler.save_config(folder / "scheduler")
    if kind == "stable":
        small_conditional().save_pretrained(folder / "unet")
        _write_clip(folder, "", projected=False)
        return folder
    with torch.random.fork_rng():
        torch.manual_seed(0)
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
    unet.save_pretrained(folder / "unet")
    return folder


def _write_tokenizer(place: Path) -> None:
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", words["<end>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<end>",
        model_max_length=LENGTH,
    ).save_pretrained(place)


def _write_clip(folder: Path, end: str, *, projected: bool) -> None:
    _write_tokenizer(folder / f"tokenizer{end}")
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=8 if projected else 16,
        intermediate_size=16,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=len(WORDS) - 1,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1 if end else 0)
        model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    model.save_pretrained(folder / f"text_encoder{end}")


def _write_t5(folder: Path) -> None:
    _write_tokenizer(folder / "tokenizer_3")
    config = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")


def captions(names: list[str]) -> str:
    """A captions file's content that names every picture's colour in turn."""
    return json.dumps({name: f"a {('red', 'blue')[number % 2]} boat" for number, name in enumerate(names)})
