"""Predictions relative to the mean and deviation of the known pixels around a hole, so that a network learns only the rest.

v-prediction (Salimans & Ho 2022, arXiv 2202.00512) is EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364, section 5) for
pixels of mean 0 and deviation 1: x0 = a x - s F, with F the output of the network. Here each pixel has its own mean m and
deviation d, from the known pixels around it:

    x0 = m + (a d^2 / D) (x - a m) - (s d / sqrt(D)) F,   D = a^2 d^2 + s^2
    v = (a x - x0) / s = (s / D) (a (1 - d^2) x - m) + (d / sqrt(D)) F

The first two terms of x0 are the posterior mean under N(m, d^2), and s d / sqrt(D) is the posterior deviation. Smooth
surroundings give a small d, so errors of F matter less there. An image without known pixels has m = 0 and d = 1, and v = F.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 6
"""Scales of the pyramid, of 1 to 32 pixels a cell."""

SWEEPS = 4
"""Relaxations at each scale, which bring the fill near to the harmonic one."""

LEAST_DEVIATION = 0.02
"""Lower limit of d for pixels in [-1,1], near the noise of photographs."""


def surroundings(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean m (B,C,H,W) and deviation d (B,1,H,W) of each pixel, from the known pixels around it.

    m is a smooth fill. A cell of 2^l x 2^l pixels takes the mean of its known pixels. Cells without known pixels are interpolated
    from the next coarser scale, and relaxed towards the mean of their neighbours. d^2 is the variance of the known pixels in 3x3
    cells, at the finest scale that has at least three of them.

    Args:
        x: (B,C,H,W). Only known pixels have an effect.
        known: (B,1,H,W) bool.
    """
    channels, (height, width) = x.shape[1], x.shape[2:]
    values = torch.where(known, x, 0.0)
    sums = [_padded(torch.cat([known.to(x.dtype), values, values.square()], 1))]
    for _ in range(LEVELS - 1):
        sums.append(4 * F.avg_pool2d(sums[-1], 2))
    moments = _moments(sums[-1].sum((2, 3), keepdim=True), channels)
    mean, variance = (value + torch.zeros_like(sums[-1][:, :1]) for value in moments)
    for scale, cells in enumerate(reversed(sums)):
        if scale > 0:
            mean, variance = _doubled(mean), _doubled(variance)
        seen = cells[:, :1] > 0
        mean = torch.where(seen, _moments(cells, channels)[0], mean)
        for _ in range(SWEEPS):
            mean = torch.where(seen, mean, _neighbours(mean))
        nearby = 9 * F.avg_pool2d(F.pad(cells, (1, 1, 1, 1)), 3, stride=1)
        share = (nearby[:, :1] / 3).clamp(max=1)
        variance = variance + share * (_moments(nearby, channels)[1] - variance)
    mean, variance = mean[..., :height, :width], variance[..., :height, :width]
    variance = F.avg_pool2d(F.pad(variance, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    some = known.flatten(1).any(1)[:, None, None, None]
    return mean, torch.where(some, (variance + LEAST_DEVIATION**2).sqrt(), 1.0)


def velocity(output: Tensor, x: Tensor, known: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v (B,C,H,W) of the network's output F (B,C,H,W), at levels alpha, sigma (B,1,H,W); F itself at known pixels."""
    mean, deviation = surroundings(x, known)
    variance = deviation.square()
    total = alpha.square() * variance + sigma.square()
    expected = sigma / total * (alpha * (1 - variance) * x - mean)
    return torch.where(known, output, expected + deviation * total.rsqrt() * output)


def _padded(sums: Tensor) -> Tensor:
    """With zeros at the bottom and the right, to whole cells of the coarsest scale."""
    cell = 2 ** (LEVELS - 1)
    height, width = ((side + cell - 1) // cell * cell for side in sums.shape[-2:])
    return F.pad(sums, (0, cell - 1, 0, cell - 1))[..., :height, :width]


def _doubled(cells: Tensor) -> Tensor:
    return F.interpolate(cells, scale_factor=2, mode="bilinear", align_corners=False)


def _neighbours(image: Tensor) -> Tensor:
    """Mean of the four neighbours of each cell."""
    around = F.pad(image, (1, 1, 1, 1), mode="replicate")
    rows = around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
    return (rows + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]) / 4


def _moments(sums: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean (B,C,...) and variance (B,1,...), over all channels, of sums (count, values, squares); 0 where the count is 0."""
    count = sums[:, :1].clamp(min=1)
    mean = sums[:, 1 : 1 + channels] / count
    return mean, (sums[:, 1 + channels :] / count - mean.square()).mean(1, keepdim=True).clamp(min=0)
