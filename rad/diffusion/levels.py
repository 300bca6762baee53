"""Noise levels: how noisy each image of a batch is, or each of its pixels.

    symbol      name                     meaning
    a           NoiseLevel.alpha         signal amplitude: x = a x0 + s e
    s           NoiseLevel.sigma         noise amplitude
    abar        alpha ** 2               in variance-preserving processes, where a^2 + s^2 = 1
    bbar        sigma ** 2               1 - abar in these processes
    t           t                        training step of the base model, 0 = least noise, CLEAN = -1
    tau         NoiseLevel.timesteps     the network's input for a level, possibly fractional
    m           NoiseRegions.values      mask value in [0,1], 1 = fill
    K           alpha.shape[1]           distinct levels of an image

An image has few distinct levels. Everything is computed in float64 for its K levels, then gathered for the pixels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CLEAN = -1
"""The t below 0: no noise anywhere."""


@dataclass(frozen=True)
class NoiseRegions:
    """The distinct values of a hole map: `hole[b, 0, y, x] == values[b, index[b, y, x]]`.

    Args:
        values: (B,K) float64 in [0,1], increasing. Rows with fewer values are padded with 1.
        index: (B,H,W) int64 in [0,K).
    """

    values: Tensor
    index: Tensor

    @classmethod
    def from_mask(cls, hole: Tensor) -> "NoiseRegions":
        """Factorise `hole` (B,1,H,W), float in [0,1]. Values are exact; the first is 0 and the last is 1.

        Raises:
            ValueError: wrong shape, or values outside [0,1].
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
        """Fast `from_mask` for a hole (B,1,H,W) of zeros and ones. The values are not checked."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=hole.device)
        return cls(ends.expand(len(hole), 2), hole[:, 0].long())


@dataclass(frozen=True)
class NoiseLevel:
    """Noise levels of a batch: K for each image, and an index map from pixels to levels.

    Args:
        alpha, sigma: (B,K) float64, amplitudes a >= 0 and s >= 0.
        timesteps: (B,K) float64, the network's input for each level.
        index: (B,H,W) int64 in [0,K), or None for one level in the whole image (K = 1).
    """

    alpha: Tensor
    sigma: Tensor
    timesteps: Tensor
    index: Tensor | None = None

    def alpha_map(self, like: Tensor | None = None) -> Tensor:
        """alpha of each pixel: (B,1,H,W), or (B,1,1,1) for one level; dtype of `like`, else float64."""
        return self.spread(self.alpha if like is None else self.alpha.to(like.dtype))

    def sigma_map(self, like: Tensor | None = None) -> Tensor:
        """sigma of each pixel; shape and dtype as in `alpha_map`."""
        return self.spread(self.sigma if like is None else self.sigma.to(like.dtype))

    def spread(self, levels: Tensor) -> Tensor:
        """Map per-level values (B,K) to pixels: (B,1,H,W), or (B,1,1,1) for one level."""
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
    """Reshape (B,) to (B,1,1,1) for products with images."""
    return values[:, None, None, None]
