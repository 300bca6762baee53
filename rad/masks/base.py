"""The base class of mask generators, and what they share: painting, integer draws, checks of settings."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rad.arguments import describe, integer, number

MOST = 1000
"""Largest number of shapes in a mask, and largest size of one in pixels; more would take hours."""

SET_SEEDS, SEEDS = 2**62 + 1, 2**62
"""Numbers of seeds in `paint`: of the published mask sets, and of all later generators."""


class MaskGenerator(ABC):
    """Random holes, one `torch.Generator` an image.

    Not a `typing.Protocol`: jsonargparse takes one with only `__call__` for a function and refuses its `class_path`.
    """

    @abstractmethod
    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Draw one hole for each generator; a batch equals its images drawn one by one, bit for bit.

        Returns (B,1,height,width) float32 in {0,1}, 1 = fill, B = len(generators) >= 1, on the generators' device.
        """


def check_draw(generators: Sequence[torch.Generator], height: int, width: int) -> None:
    """Raise ValueError unless these are arguments of `MaskGenerator.__call__`."""
    each = generators if isinstance(generators, list | tuple) else ()
    if not each or not all(isinstance(generator, torch.Generator) for generator in each):
        raise ValueError(
            f"generators is {describe(generators)}; give a list of torch.Generator, one an image, see rad.rng.generator"
        )
    integer("height", height, low=1)
    integer("width", width, low=1)


def paint(
    draw: Callable[[random.Random, int, int], np.ndarray | Image.Image],
    generators: Sequence[torch.Generator],
    height: int,
    width: int,
    *,
    seeds: int = SEEDS,
) -> Tensor:
    """(B,1,H,W) holes drawn on the CPU. Each generator draws one of `seeds` numbers, which seeds the draws of its image."""
    check_draw(generators, height, width)
    holes = []
    for generator in generators:
        seed = draw_integer(generator, seeds - 1)
        hole = np.array(draw(random.Random(seed), height, width), dtype=np.float32)
        holes.append(torch.from_numpy(hole).to(generator.device))
    return torch.stack(holes)[:, None]


def draw_integer(generator: torch.Generator, high: int) -> int:
    """Uniform in 0..high, both included."""
    return int(torch.randint(high + 1, (), generator=generator, device=generator.device).item())


def draw_uniform(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> float:
    """Uniform in [0,1)."""
    return torch.rand((), generator=generator, device=generator.device, dtype=dtype).item()


def check_range(name: str, bounds: tuple[float, float], least: float, most: float) -> None:
    """Raise ValueError unless `bounds` is (low, high) between `least` and `most`."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise ValueError(f"{name} is {describe(bounds)}; give (low, high)")
    if not least <= number(name, bounds[0]) <= number(name, bounds[1]) <= most:
        raise ValueError(f"{name}={bounds}: give (low, high) with {least} <= low <= high <= {most}")


def check_share(name: str, share: float | tuple[float, float]) -> None:
    """Raise ValueError unless `share` is above 0 and at most 1, or a range of such."""
    low, high = share if isinstance(share, tuple) and len(share) == 2 else (share, share)
    low, high = number(name, low), number(name, high)
    if not 0 < low <= high <= 1:
        raise ValueError(f"{name}={share}: give a share above 0 and at most 1; of a range, the lower first")
