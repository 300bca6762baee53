"""From a batch to the inputs of a diffusion loss: random draws, holes, pixels or latents with their noise regions, prompts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rad.data.draws import Draws, draw_uniform
from rad.diffusion.levels import NoiseRegions
from rad.models.latent_mask import Grid, Prefill, cached_latents, encode_training
from rad.models.loaded_model import LoadedModel
from rad.models.vae import Autoencoder, Cache
from rad.training.module import Batch
from rad.training.settings import TrainingProcess


def draw_batch(batch: Batch, draws: Draws) -> dict[str, Tensor]:
    """The draws of a batch that has none, on the device of its images."""
    image: Tensor = batch["image"]
    samples = draws.batch(batch["position"].tolist(), (image.shape[2], image.shape[3]))
    return {name: values.to(image.device) for name, values in samples.items()}


def choose_holes(batch: Batch, draws: Mapping[str, Tensor], process: TrainingProcess) -> Tensor:
    """(B,1,H,W) in [0,1]: those of the batch, or of its draws; all ones for a base model."""
    image: Tensor = batch["image"]
    if not process.has_holes:
        return image.new_ones(len(image), 1, *image.shape[2:])
    hole: Tensor = batch["hole"] if "hole" in batch else draws["hole"]
    share = process.unconditional_share
    return hole if share == 0 else torch.where((draws["unconditional"] < share)[:, None, None, None], 1.0, hole)


@torch.no_grad()
def encode_images(
    batch: Batch,
    hole: Tensor,
    autoencoder: Autoencoder,
    *,
    process: TrainingProcess,
    grid: Grid,
    fill: Prefill,
    cache: Cache | None = None,
) -> tuple[Tensor, NoiseRegions | None]:
    """x0 in pixels or latents, and the regions of its grid; a base model has none.

    Args:
        hole: (B,1,H,W) of `choose_holes`; grid, fill: see `encode_training`.
        cache: of latents of whole images, for batches with "pixels_hash".
    """
    image, whole = batch["image"], None
    if cache is not None and "pixels_hash" in batch:
        whole = cached_latents(image, batch["pixels_hash"], autoencoder, cache)
    if not process.has_holes:
        return autoencoder.encode(image) if whole is None else whole, None
    x0, cells = encode_training(image, hole, autoencoder, grid=grid, fill=fill, whole=whole)
    # Our data module draws no other holes than 0 and 1; others are checked, which waits for the device.
    soft = "hole" in batch and "draws" not in batch
    return x0, NoiseRegions.from_mask(cells) if soft else NoiseRegions.binary(cells)


@torch.no_grad()
def encode_prompts(
    batch: Batch, model: LoadedModel, *, seed: int, dropout: float = 0.0, cache: Cache | None = None
) -> dict[str, Tensor]:
    """Network arguments for the prompts of the batch.

    Args:
        seed: seed of the dropout, which is keyed by position.
        dropout: fraction of prompts that are replaced by the empty prompt, 0 to 1.
    """
    prompts = list(batch.get("text", [""] * len(batch["position"])))
    if dropout and model.takes_text:
        dropped = (draw_uniform(batch["position"].tolist(), seed, "prompt") < dropout).tolist()
        prompts = ["" if drop else prompt for drop, prompt in zip(dropped, prompts, strict=True)]
    return model.encode_prompts(prompts, cache=cache)
