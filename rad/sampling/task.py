"""Images to be filled, as the sampler sees them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseRegions
from rad.models.latent_mask import Grid, Prefill, latent_hole, prefill
from rad.models.vae import IDENTITY, Autoencoder


@dataclass(frozen=True)
class Task:
    """Images to be filled.

    Args:
        known: (B,C,H,W) in [-1,1], zero where the hole is 1, so that nothing can read what is to be found.
        hole: (B,1,H,W) in [0,1], 1 = fill; between: kept in part (RAD's soft masks).
        regions: the hole as its distinct values.
        codec: between what the model works on (pixels, or latents) and pixels.
        picture: (B,3,H,W) in [-1,1] the known pixels, zero where picture_hole (B,1,H,W) is 1. Of a pixel model these are
            `known` and `hole`; of a latent one `known` (B,c,h,w) is its encoding, and `hole` the cells that it spoils.
    """

    known: Tensor
    hole: Tensor
    regions: NoiseRegions
    codec: Autoencoder
    picture: Tensor
    picture_hole: Tensor

    @classmethod
    def from_image(cls, image: Tensor, hole: Tensor) -> "Task":
        """image (B,C,H,W) in [-1,1], hole (B,1,H,W) in [0,1]; both on the device of the network."""
        if image.shape[0] != hole.shape[0] or image.shape[2:] != hole.shape[2:]:
            raise ValueError(
                f"image is {tuple(image.shape)} and hole {tuple(hole.shape)}; expected (B,C,H,W) and (B,1,H,W)"
            )
        known, regions, hole = torch.where(hole == 1, 0.0, image), NoiseRegions.from_mask(hole), hole.to(image.dtype)
        return cls(known, hole, regions, IDENTITY, known, hole)

    @classmethod
    def encoded(
        cls, picture: Tensor, hole: Tensor, codec: Autoencoder, *, grid: Grid | None = None, fill: Prefill = "smooth"
    ) -> "Task":
        """A task for a latent model.

        Args:
            picture: (B,3,H,W) in [-1,1]; hole: (B,1,H,W) in [0,1]; sides are multiples of codec.factor.
            grid: how the hole comes to the latent grid; fill: what the hole holds when the picture is encoded, so that known
                latents have not seen it; "none": its own content (`encode_full` of other programs, which leaks).
        """
        plain = cls.from_image(picture, hole)
        cells = latent_hole(plain.hole, codec.factor, grid or Grid())
        latents = codec.encode(prefill(picture if fill == "none" else plain.picture, plain.hole, fill))
        inner = cls.from_image(latents, cells)
        return cls(inner.known, inner.hole, inner.regions, codec, plain.picture, plain.hole)
