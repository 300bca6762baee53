"""Noise levels: how noisy each image of a batch is, or each of its pixels; the symbols are listed in `rad.diffusion`."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rad.diffusion.choices import CLEAN as CLEAN


@dataclass(frozen=True)
class NoiseRegions:
    """The distinct values of a hole map: `hole[b, 0, y, x] == values[b, index[b, y, x]]`.

    Example:
        >>> hole = torch.tensor([[[[0.0, 0.5], [1.0, 1.0]]]])  # (B,1,H,W): 0 known, 1 fill, between: partial edit
        >>> regions = NoiseRegions.from_mask(hole)
        >>> regions.values.tolist(), regions.index.tolist()
        ([[0.0, 0.5, 1.0]], [[[0, 1], [2, 2]]])

    Args:
        values: (B,K) float64 in [0,1], increasing. Rows with fewer values are padded with 1.
        index: (B,H,W) int64 in [0,K).
    """

    values: Tensor
    index: Tensor

    @classmethod
    def from_mask(cls, hole: Tensor) -> "NoiseRegions":
        """Factorise `hole` (B,1,H,W), in [0,1]. The first value is 0 and the last is 1. Raises ValueError for other input."""
        if hole.ndim != 4 or hole.shape[1] != 1:
            raise ValueError(f"hole has shape {tuple(hole.shape)}; expected (B,1,H,W)")
        flat = hole[:, 0].to(torch.float64)
        if bool(((flat == 0) | (flat == 1)).all()):
            return cls.binary(hole)
        if not bool(((flat >= 0) & (flat <= 1)).all()):
            raise ValueError(
                f"hole holds values from {float(flat.min()):.4g} to {float(flat.max()):.4g}; allowed are 0 (known) to 1 (fill)"
            )
        ends = torch.arange(2, dtype=flat.dtype, device=flat.device)
        distinct = [torch.unique(torch.cat([image.flatten(), ends])) for image in flat]
        values = torch.nn.utils.rnn.pad_sequence(distinct, batch_first=True, padding_value=1.0)
        index = torch.searchsorted(values, flat.flatten(1).contiguous()).view(flat.shape)
        return cls(values, index)

    @classmethod
    def binary(cls, hole: Tensor) -> "NoiseRegions":
        """`from_mask` for zeros and ones, without checks."""
        ends = torch.arange(2, dtype=torch.float64, device=hole.device)
        return cls(ends.expand(len(hole), 2), hole[:, 0].long())


@dataclass(frozen=True)
class NoiseLevel:
    """Noise levels of a batch: K for each image, and an index map from pixels to levels.

    Example:
        >>> ones = torch.ones(1, 1, dtype=torch.float64)
        >>> NoiseLevel(0.8 * ones, 0.6 * ones, timesteps=300 * ones).alpha_map().shape  # one level for the whole image
        torch.Size([1, 1, 1, 1])

    Args:
        alpha, sigma, timesteps: (B,K) float64: amplitudes a >= 0 and s >= 0, and the network's input.
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


def time_input(values: Tensor, x: Tensor) -> Tensor:
    """Timesteps for a network on x: in its dtype, but at least float32, since bfloat16 rounds 999 to 1000."""
    return values.to(torch.promote_types(x.dtype, torch.float32))


def per_image(values: Tensor) -> Tensor:
    """Reshape (B,) to (B,1,1,1) for products with images."""
    return values[:, None, None, None]
