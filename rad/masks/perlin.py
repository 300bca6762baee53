"""Perlin masks: gradient noise cut at a uniformly random rank (RAD, arXiv 2412.09191)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.masks import MaskGenerator


@dataclass(frozen=True)
class Perlin(MaskGenerator):
    """Holes with the distribution of RAD's training masks: classic Perlin noise, thresholded by rank.

    An image draws the side `s` of a lattice cell, a unit gradient for each lattice node, and a number of
    pixels `k`; its hole is the k pixels of lowest noise. Both axes share one `s`, also where the image is
    not square.

    Args:
        area_range: lowest and highest share of the hole, in [0,1]. `k` is a uniform integer between these
            shares of H*W (the next one above where there is none between); k = 0 gives an empty hole.
        scale_range: lowest and highest `s` in pixels, at least 1. `None`: the longer side of the image, so
            that on any shape about half of the masks have less than two cells along it. The published code
            knows square images only: s ~ U[1,H).
    """

    area_range: tuple[float, float] = (0.0, 1.0)
    scale_range: tuple[float, float | None] = (1.0, None)

    def __post_init__(self) -> None:
        _check_ranges(self.area_range, self.scale_range)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        planes, counts = [], []
        for generator in generators:
            scale = _draw_scale(generator, self.scale_range, height, width)
            nodes = (math.ceil(height / scale) + 1, math.ceil(width / scale) + 1)
            angles = 2 * math.pi * torch.rand(nodes, generator=generator, device=generator.device).cpu()
            planes.append(perlin_noise(scale, angles, height=height, width=width))
            counts.append(_draw_count(generator, self.area_range, height * width))
        return threshold_by_rank(torch.stack(planes), torch.tensor(counts)).to(generators[0].device)


@dataclass(frozen=True)
class Pnoise(MaskGenerator):
    """Holes from `pnoise2` of the `noise` package, pixel by pixel: slow, for the workers of a DataLoader.

    The same idea as `Perlin`, not the same distribution: `pnoise2` has one fixed table of a few gradients,
    so its shapes prefer the axes; variety comes from a random place in its 256-periodic plane.

    Args:
        octaves: number of octaves, each with half the cell and half the amplitude of the one before.
        area_range, scale_range: as in `Perlin`; the scale is the cell of the first octave.
    """

    octaves: int = 1
    area_range: tuple[float, float] = (0.0, 1.0)
    scale_range: tuple[float, float | None] = (1.0, None)

    def __post_init__(self) -> None:
        if not 1 <= self.octaves <= 32:
            raise ValueError(f"octaves={self.octaves}: give 1 to 32")
        _check_ranges(self.area_range, self.scale_range)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        from noise import pnoise2

        planes, counts = [], []
        for generator in generators:
            scale = _draw_scale(generator, self.scale_range, height, width)
            top, left = 256 * _draw_uniform(generator), 256 * _draw_uniform(generator)
            rows = [top + y / scale for y in range(height)]
            columns = [left + x / scale for x in range(width)]
            plane = [[pnoise2(x, y, self.octaves) for x in columns] for y in rows]
            planes.append(torch.tensor(plane))
            counts.append(_draw_count(generator, self.area_range, height * width))
        return threshold_by_rank(torch.stack(planes), torch.tensor(counts)).to(generators[0].device)


def perlin_noise(scale: float, angles: Tensor, *, height: int, width: int) -> Tensor:
    """Classic Perlin noise on a lattice anchored at pixel (0,0): `n = sqrt(2) sum_ij w_i w_j g_ij . d_ij`.

    The sum over the corners of a cell is separable: `n = sqrt(2) (W_y G_x D_x' + D_y G_y W_x')`, with the
    fade weights W and the faded distances D of each axis. In float64, where ties are rare.

    Args:
        scale: side of a lattice cell, in pixels.
        angles: (rows, columns) in radians, one a node, rows = ceil(height / scale) + 1 and columns likewise;
            the gradient is (x, y) = (cos, sin).

    Returns (height,width) float64 in [-1,1].
    """
    fade_y, distance_y = _lattice_axis(height, scale)
    fade_x, distance_x = _lattice_axis(width, scale)
    gradient_x, gradient_y = math.sqrt(2) * angles.double().cos(), math.sqrt(2) * angles.double().sin()
    return fade_y @ gradient_x @ distance_x.T + distance_y @ gradient_y @ fade_x.T


def threshold_by_rank(noise: Tensor, counts: Tensor) -> Tensor:
    """The hole made of the `counts[b]` lowest values of `noise[b]`: exactly so many, ties in reading order.

    Args:
        noise: (B,H,W), any real dtype, no NaN.
        counts: (B,) integers in 0..H*W.

    Returns (B,1,H,W) float32 in {0,1}.
    """
    holes = [_lowest(plane, count) for plane, count in zip(noise, counts.tolist(), strict=True)]
    return torch.stack(holes)[:, None]


def soften(hole: Tensor, sigma_px: float) -> Tensor:
    """Blur the edge of a finished hole with a Gaussian; values are rounded to multiples of 1/255.

    The rounding gives exact 0 and 1 away from the edge, at most 256 levels for the network, and the same
    mask after a trip through an 8-bit file. Known pixels near the edge become partly hole.

    Args:
        hole: (B,1,H,W) in [0,1].
        sigma_px: standard deviation in pixels; 0 changes nothing.

    Returns (B,1,H,W) in [0,1].
    """
    if sigma_px < 0:
        raise ValueError(f"sigma_px={sigma_px}: give 0 (no softening) or a positive number of pixels")
    if sigma_px == 0:
        return hole
    from torchvision.transforms.functional import gaussian_blur

    # The border is mirrored, which needs a radius smaller than the image.
    radius = min(math.ceil(4 * sigma_px), min(hole.shape[-2:]) - 1)
    blurred = gaussian_blur(hole, [2 * radius + 1, 2 * radius + 1], [sigma_px, sigma_px])
    return (255 * blurred).round().clamp(0, 255) / 255


def _lattice_axis(length: int, scale: float) -> tuple[Tensor, Tensor]:
    """Fade weight and fade weight times signed distance of every pixel to every node: two (length, nodes)."""
    position = torch.arange(length, dtype=torch.float64)[:, None] / scale
    distance = position - torch.arange(math.ceil(length / scale) + 1)
    t = distance.abs().clamp(max=1)
    fade = 1 - t**3 * (t * (6 * t - 15) + 10)
    return fade, fade * distance


def _lowest(plane: Tensor, count: int) -> Tensor:
    """1 at the `count` lowest values of (H,W), else 0."""
    flat = plane.flatten()
    # 0.3 ms for 256x256 on one core; numpy's partition takes 0.7 ms, a sort 5 ms.
    last = flat.kthvalue(max(count, 1)).values
    hole = flat <= last
    surplus = int(hole.sum()) - count
    if surplus > 0:  # several pixels equal the last one, or count = 0
        hole[(flat == last).nonzero()[-surplus:]] = False
    return hole.float().view_as(plane)


def _draw_uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator, device=generator.device).item()


def _draw_scale(generator: torch.Generator, scale_range: tuple[float, float | None], height: int, width: int) -> float:
    low = scale_range[0]
    high = max(height, width) if scale_range[1] is None else scale_range[1]
    if low > high:
        raise ValueError(f"scale_range={scale_range}: starts above {high}, the longer side; give a lower start")
    return low + (high - low) * _draw_uniform(generator)


def _draw_count(generator: torch.Generator, area_range: tuple[float, float], pixels: int) -> int:
    low = math.ceil(area_range[0] * pixels)
    high = max(low, math.floor(area_range[1] * pixels))
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device).item())


def _check_ranges(area_range: tuple[float, float], scale_range: tuple[float, float | None]) -> None:
    if not 0 <= area_range[0] <= area_range[1] <= 1:
        raise ValueError(f"area_range={area_range}: give shares (low, high) with 0 <= low <= high <= 1")
    low, high = scale_range
    if not 1 <= low < math.inf or (high is not None and not (low <= high < math.inf and high > 1)):
        raise ValueError(
            f"scale_range={scale_range}: give pixels (low, high) with 1 <= low <= high and high above 1, "
            "or None for the longer side"
        )
