"""Noise levels: how noisy each image, or each pixel, of a batch is.

A noisy image is x = alpha x0 + sigma e. An image holds few distinct levels, so everything is computed for its K levels, in
float64, and only looked up for the pixels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CLEAN = -1
"""The time before time 0: no noise anywhere."""


@dataclass(frozen=True)
class NoiseRegions:
    """A hole map as its distinct values: `hole[b, 0, y, x] == values[b, index[b, y, x]]`.

    Args:
        values: (B,K) float64 in [0,1], increasing; images with fewer values than others are padded with 1.
        index: (B,H,W) int64 in [0,K).
    """

    values: Tensor
    index: Tensor

    @classmethod
    def from_mask(cls, hole: Tensor) -> "NoiseRegions":
        """Factorise `hole` (B,1,H,W), float in [0,1]. Values are kept exactly, 0 and 1 are always the ends.

        Raises:
            ValueError: another shape, or values outside [0,1].
        """
        if hole.ndim != 4 or hole.shape[1] != 1:
            raise ValueError(f"hole has shape {tuple(hole.shape)}; expected (B,1,H,W)")
        flat = hole[:, 0].to(torch.float64)
        if bool(((flat == 0) | (flat == 1)).all()):
            return cls.binary(hole)
        if not bool(((flat >= 0) & (flat <= 1)).all()):
            raise ValueError(
                f"hole holds values from {float(flat.min()):.4g} to {float(flat.max()):.4g}; allowed are 0 (known) to 1 (fill)"
            )
        ends = torch.tensor([0.0, 1.0], dtype=flat.dtype, device=flat.device)
        found = [torch.unique(torch.cat([image.flatten(), ends])) for image in flat]
        values = torch.ones(len(found), max(map(len, found)), dtype=flat.dtype, device=flat.device)
        for row, levels in zip(values, found, strict=True):
            row[: len(levels)] = levels
        index = torch.searchsorted(values, flat.flatten(1).contiguous()).view(flat.shape)
        return cls(values, index)

    @classmethod
    def binary(cls, hole: Tensor) -> "NoiseRegions":
        """As `from_mask`, for a hole (B,1,H,W) that is known to hold only 0 and 1: no search, and no look at the values."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=hole.device)
        return cls(ends.expand(len(hole), 2), hole[:, 0].long())


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy a batch is: K levels for an image, and which of them each pixel has.

    Args:
        alpha, sigma: (B,K) float64, the signal and noise amplitudes a >= 0 and s >= 0.
        times: (B,K) float64, the time that the network is told for each level.
        index: (B,H,W) int64 in [0,K), or None where the whole image has one level (K = 1).
    """

    alpha: Tensor
    sigma: Tensor
    timesteps: Tensor
    index: Tensor | None = None

    def alpha_map(self, like: Tensor | None = None) -> Tensor:
        """alpha of each pixel, (B,1,H,W), or (B,1,1,1) for one level; in the dtype of `like`, or float64."""
        return self.spread(self.alpha if like is None else self.alpha.to(like.dtype))

    def sigma_map(self, like: Tensor | None = None) -> Tensor:
        """sigma of each pixel, as `alpha_map`."""
        return self.spread(self.sigma if like is None else self.sigma.to(like.dtype))

    def spread(self, levels: Tensor) -> Tensor:
        """Values for each level (B,K) as a map (B,1,H,W), or (B,1,1,1) where the image has one level."""
        if self.index is None:
            return levels[:, :, None, None]
        return levels.gather(1, self.index.flatten(1)).view(self.index.shape)[:, None]

    def to(self, device: torch.device | str) -> "NoiseLevel":
        return replace(
            self,
            alpha=self.alpha.to(device),
            sigma=self.sigma.to(device),
            timesteps=self.timesteps.to(device),
            index=None if self.index is None else self.index.to(device),
        )


def per_image(values: Tensor) -> Tensor:
    """(B,) as (B,1,1,1), to multiply images with."""
    return values[:, None, None, None]
