"""The sampler's input: images and their holes, in pixels or latents."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rad.arguments import describe
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
        known: (B,C,H,W) in model space (pixels or latents), zero where the hole is 1, which hides that content from methods.
        hole: (B,1,H,W) in [0,1], 1 = fill; between: a partial edit (RAD's soft masks). regions: its distinct values.
        autoencoder: between model space and pixels.
        start: (B,C,H,W) image with the hole's content, from which a run with a strength below 1 starts; the sampler hides it from
            methods. None: it is not available.
        image, image_hole: the same in pixels, (B,3,H,W) in [-1,1] and (B,1,H,W). Pixel models share them with `known`, `hole`.
    """

    known: Tensor
    hole: Tensor
    regions: NoiseRegions
    autoencoder: Autoencoder
    image: Tensor
    image_hole: Tensor
    start: Tensor | None = None

    @classmethod
    def from_image(cls, image: Tensor, hole: Tensor) -> "Task":
        """Task of a pixel model: image (B,C,H,W) in [-1,1], hole (B,1,H,W) in [0,1]. Raises ValueError for unequal sizes."""
        if not (isinstance(image, Tensor) and isinstance(hole, Tensor)):
            raise ValueError(f"image is {describe(image)} and hole {describe(hole)}; give tensors, or use Inpainter")
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
        start: bool = False,
    ) -> "Task":
        """Task of a latent model; with `IDENTITY` that of a pixel model.

        Args:
            image: (B,3,H,W) in [-1,1]; hole: (B,1,H,W) in [0,1]; H and W are multiples of autoencoder.factor.
            grid: rule that maps the hole to the latent grid.
            fill: replaces the hole's content for the encoder. "none": the original, which leaks (`--encode_full`).
            start: add the image with the hole's content, for a strength below 1. Known cells do not depend on it.
        """
        plain = cls.from_image(image, hole)
        if autoencoder is IDENTITY:
            return replace(plain, start=image) if start else plain
        latents, cells = encode_known(image, plain.hole, autoencoder, grid=grid, fill=fill)
        inner = cls.from_image(latents, cells)
        whole = autoencoder.encode(image) if start else None
        return cls(inner.known, inner.hole, inner.regions, autoencoder, plain.image, plain.hole, whole)
