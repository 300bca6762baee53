"""From a hole in pixels to latent cells, and the image that the encoder gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.models.vae import IDENTITY, Autoencoder, Cache, PretrainedAutoencoder

Prefill = Literal["smooth", "mean", "none"]


GridRule = Literal["average", "bilinear", "nearest"]


@dataclass(frozen=True)
class Grid:
    """The rule that maps a hole to latent cells.

    Args:
        rule: "average": a cell is known if a share `threshold` in (0,1] of its pixels is; "bilinear": the same after an
            antialiased bilinear reduction (code of DInG), which widens holes by a cell; "nearest": the middle pixel of a cell
            decides (code of Blended Latent Diffusion), which may shrink a hole.
        dilate: rings of cells to add to the hole.
    """

    rule: GridRule = "average"
    threshold: float = 0.95
    dilate: int = 0

    def __post_init__(self) -> None:
        if self.rule not in ("average", "bilinear", "nearest"):
            raise ValueError(
                f"the rule of the latent grid is {self.rule!r}; allowed are 'average', 'bilinear', 'nearest'"
            )
        if not 0 < self.threshold <= 1 or self.dilate < 0:
            raise ValueError(
                f"threshold is {self.threshold} and dilate {self.dilate}; allowed are above 0 to 1, and 0 or more"
            )


def latent_hole(hole: Tensor, factor: int, grid: Grid) -> Tensor:
    """hole (B,1,H,W) in [0,1] -> (B,1,H/factor,W/factor) of 0 and 1; soft pixels count as hole by their share.

    Raises ValueError for sides that are no multiples of `factor`.
    """
    if hole.shape[2] % factor or hole.shape[3] % factor:
        raise ValueError(f"an image of {hole.shape[3]}x{hole.shape[2]} has no whole number of {factor}x{factor} cells")
    known = 1 - hole
    if factor > 1 and grid.rule == "nearest":
        known = known[:, :, factor // 2 :: factor, factor // 2 :: factor]
    elif factor > 1 and grid.rule == "bilinear":
        size = (hole.shape[2] // factor, hole.shape[3] // factor)
        known = F.interpolate(known, size, mode="bilinear", align_corners=False, antialias=True)
    elif factor > 1:
        known = F.avg_pool2d(known, factor)
    cells = (known < grid.threshold - 1e-6).to(hole.dtype)
    side = 2 * grid.dilate + 1
    return F.max_pool2d(cells, side, stride=1, padding=grid.dilate) if grid.dilate else cells


def encode_known(
    image: Tensor, hole: Tensor, autoencoder: Autoencoder, *, grid: Grid | None = None, fill: Prefill = "smooth"
) -> tuple[Tensor, Tensor]:
    """Latents (B,c,h,w) in which known cells hold no content of the hole, and their hole (B,1,h,w) of 0 and 1.

    Args:
        image: (B,3,H,W) in [-1,1]; hole: (B,1,H,W) in [0,1]; H and W are multiples of autoencoder.factor.
        fill: replaces the content of the hole before encoding; "none": nothing does, and the content leaks.
    """
    cells = latent_hole(hole, autoencoder.factor, grid or Grid())
    return autoencoder.encode(prefill(image, hole, fill)), cells


@torch.no_grad()
def encode_training(
    image: Tensor,
    hole: Tensor,
    autoencoder: Autoencoder,
    *,
    grid: Grid | None = None,
    fill: Prefill = "smooth",
    whole: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clean sample and hole of a training step: known cells as in sampling, cells of the hole from the whole image.

    Pixel models get `image` and `hole` back. Other arguments as of `encode_known`.

    Args:
        whole: (B,c,h,w) latents of the whole images; None: they are computed.
    """
    if autoencoder is IDENTITY:
        return image, hole
    if whole is not None and fill == "none":
        return whole, latent_hole(hole, autoencoder.factor, grid or Grid())
    x0, cells = encode_known(image, hole, autoencoder, grid=grid, fill=fill)
    if fill == "none":
        return x0, cells
    return torch.where(cells == 1, autoencoder.encode(image) if whole is None else whole, x0), cells


@torch.no_grad()
def cached_latents(image: Tensor, hashes: Sequence[str], autoencoder: Autoencoder, cache: Cache) -> Tensor | None:
    """Latents (B,c,h,w) of whole images (B,3,H,W); None for pixel models.

    Each image is encoded alone: its latents depend neither on the batch nor on when they were computed.

    Args:
        hashes: of the pixels of each image, with their shape.
    """
    if not isinstance(autoencoder, PretrainedAutoencoder):
        return None
    settings = f"latents {autoencoder.hash} {image.device.type} {image.dtype}"
    rows = [
        cache(f"{settings} {hashed}", lambda row=row: [autoencoder.encode(row)])[0]
        for hashed, row in zip(hashes, image.split(1), strict=True)
    ]
    return torch.cat(rows).to(image.device)


def prefill(image: Tensor, hole: Tensor, fill: Prefill) -> Tensor:
    """The image (B,C,H,W) with its hole (B,1,H,W) filled from known pixels.

    "mean": their mean colour. "smooth": an image pyramid of them, continuous at the border; mid-grey where nothing is known.
    "none": the image itself.
    """
    if fill == "none":
        return image
    known = (1 - hole).to(image.dtype)
    if fill == "mean":
        smooth = (known * image).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1e-12)
    elif fill == "smooth":
        smooth = _pyramid(known * image, known)
    else:
        raise ValueError(f"fill is {fill!r}; allowed are 'smooth', 'mean', 'none'")
    return torch.lerp(image, smooth.expand_as(image), hole.to(image.dtype))


def _pyramid(weighted: Tensor, weight: Tensor) -> Tensor:
    here = weighted / weight.clamp(min=1e-12)
    if min(weight.shape[2:]) < 2:
        total = weight.sum((2, 3), keepdim=True)
        coarse = (weighted.sum((2, 3), keepdim=True) / total.clamp(min=1e-12)).expand_as(here)
    else:
        half = _pyramid(_halved(weighted), _halved(weight))
        coarse = F.interpolate(half, weight.shape[2:], mode="bilinear", align_corners=False)
    return torch.lerp(coarse, here, weight)


def _halved(image: Tensor) -> Tensor:
    return F.avg_pool2d(image, 2, ceil_mode=True)
