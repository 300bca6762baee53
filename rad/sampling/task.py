"""The sampler's input: images and their holes, in pixels or latents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseRegions
from rad.models.latent_mask import Grid, Prefill, encode_known
from rad.models.vae import IDENTITY, Autoencoder


@dataclass(frozen=True)
class Task:
    """A batch of inpainting problems.

    Example:
        >>> import torch
        >>> image, hole = torch.rand(2, 3, 8, 8) * 2 - 1, torch.zeros(2, 1, 8, 8)
        >>> hole[:, :, 2:6, 2:6] = 1  # 1 = fill
        >>> task = Task.from_image(image, hole)
        >>> bool((task.known[:, :, 2:6, 2:6] == 0).all())  # methods cannot see the hole's content
        True

    Args:
        known: (B,C,H,W) in [-1,1], zero where the hole is 1, which hides the hole's content from every method.
        hole: (B,1,H,W) in [0,1], 1 = fill; between: a partial edit (RAD's soft masks).
        regions: the distinct values of the hole.
        autoencoder: between model space (pixels or latents) and pixels.
        image: (B,3,H,W) in [-1,1], known pixels, zero where image_hole (B,1,H,W) is 1. Pixel models have the same
            tensors in `known` and `hole`; latent models have the latents (B,c,h,w) and the latent cells to fill.
    """

    known: Tensor
    hole: Tensor
    regions: NoiseRegions
    autoencoder: Autoencoder
    image: Tensor
    image_hole: Tensor

    @classmethod
    def from_image(cls, image: Tensor, hole: Tensor) -> "Task":
        """Task of a pixel model from image (B,C,H,W) in [-1,1] and hole (B,1,H,W) in [0,1], both on the network's device.

        Raises:
            ValueError: shapes differ.
        """
        if image.shape[0] != hole.shape[0] or image.shape[2:] != hole.shape[2:]:
            raise ValueError(
                f"image is {tuple(image.shape)} and hole {tuple(hole.shape)}; expected (B,C,H,W) and (B,1,H,W)"
            )
        known, regions, hole = torch.where(hole == 1, 0.0, image), NoiseRegions.from_mask(hole), hole.to(image.dtype)
        return cls(known, hole, regions, IDENTITY, known, hole)

    @classmethod
    def encoded(
        cls,
        image: Tensor,
        hole: Tensor,
        autoencoder: Autoencoder,
        *,
        grid: Grid | None = None,
        fill: Prefill = "smooth",
    ) -> "Task":
        """Task of a latent model; with `IDENTITY` that of a pixel model.

        Args:
            image: (B,3,H,W) in [-1,1]; hole: (B,1,H,W) in [0,1]; H and W are multiples of autoencoder.factor.
            grid: rule that maps the hole to the latent grid.
            fill: content of the hole while the encoder runs; it hides the original from known latents. "none": the original,
                which leaks (`--encode_full`).
        """
        plain = cls.from_image(image, hole)
        if autoencoder is IDENTITY:
            return plain
        latents, cells = encode_known(image, plain.hole, autoencoder, grid=grid, fill=fill)
        inner = cls.from_image(latents, cells)
        return cls(inner.known, inner.hole, inner.regions, autoencoder, plain.image, plain.hole)
