"""Pixel pairs from a Gaussian with the exact denoiser: the fill of every system has a known answer.

Pixels of an even column and its right neighbour are correlated, all else is independent. Even columns are known. The right
fill of a hole pixel is a draw from N(r y, (1 - r^2) d^2), y the known neighbour.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Fill = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(image (1,3,H,W) in [0,1], hole (1,1,H,W) with 1 = fill, generator) -> filled image in [0,1]."""


class Pairs:
    """The exact estimator E[x0 | x] of such images; mean 0, deviation d = 0.25 in [-1,1], correlation r = 0.8."""

    deviation, correlation = 0.25, 0.8

    def __init__(self) -> None:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)

    def x0(self, x: Tensor, t: int) -> Tensor:
        """In the eigenvectors (sum and difference) of a pair: x0 = a v x / (a^2 v + s^2), v = d^2 (1 +- r)."""
        a2 = float(self.alphas_cumprod[t])
        left, right = x[..., ::2], x[..., 1::2]
        total, gap = (
            a2**0.5 * v * both / (a2 * v + 1 - a2)
            for v, both in (
                (self.deviation**2 * (1 + self.correlation), left + right),
                (self.deviation**2 * (1 - self.correlation), left - right),
            )
        )
        return torch.stack([(total + gap) / 2, (total - gap) / 2], -1).flatten(-2)

    def draw(self, side: int, generator: torch.Generator) -> Tensor:
        """An image (1,3,side,side) in [0,1]."""
        first, second = (torch.randn(1, 3, side, side // 2, generator=generator) for _ in range(2))
        right = self.correlation * first + (1 - self.correlation**2) ** 0.5 * second
        return (1 + self.deviation * torch.stack([first, right], -1).flatten(-2)) / 2


@dataclass(frozen=True)
class Findings:
    """How a fill of `Pairs` behaves; the right value in brackets.

    Args:
        known: largest error of known pixels, in [0,1] (0).
        slope: regression of hole pixels on their known neighbours (r = 0.8).
        spread: deviation around that regression, over the right one (1).
        free: deviation of the fill of an image that is all hole, over that of the data (1).
    """

    known: float
    slope: float
    spread: float
    free: float


def examine(fill: Fill, *, side: int = 64, seed: int = 0) -> Findings:
    """Fill the odd columns of one image, and the whole of another."""
    pairs, generator = Pairs(), torch.Generator().manual_seed(seed)
    image, hole = pairs.draw(side, generator), torch.zeros(1, 1, side, side)
    hole[..., 1::2] = 1
    filled = fill(torch.where(hole > 0, 0.5, image), hole, generator)
    x, y = 2 * image[..., ::2] - 1, 2 * filled[..., 1::2] - 1
    slope = float((x * y).sum() / x.square().sum())
    spread = float((y - slope * x).std()) / (pairs.deviation * (1 - pairs.correlation**2) ** 0.5)
    free = 2 * fill(torch.full_like(image, 0.5), torch.ones_like(hole), generator) - 1
    known = float((filled - image).abs()[..., ::2].max())
    return Findings(known, slope, spread, float(free.std()) / pairs.deviation)
