"""Mixtures of masks: each hole comes from one of several generators, chosen by weight."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rad.masks.base import MaskGenerator, check_draw, check_range, draw_uniform

TRIES = 100
"""Holes that a part may draw in a row outside its area range."""


@dataclass(frozen=True)
class Part:
    """One generator of a `Mixture`.

    Args:
        generator: draws the holes of this part.
        weight: relative frequency, above 0; the weights of a mixture need not sum to 1.
        area_range: lowest and highest share of the hole, in [0,1]. A hole outside is drawn again.
    """

    generator: MaskGenerator
    weight: float = 1.0
    area_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight}: give a finite weight above 0, or leave the part out")
        check_range("area_range", self.area_range, 0, 1)


@dataclass(frozen=True)
class Mixture(MaskGenerator):
    """Holes from several generators: an image draws a part by weight, then its hole from that part.

    In YAML:

        masks:
          class_path: rad.masks.Mixture
          init_args:
            parts:
              - {weight: 0.8, generator: {class_path: rad.masks.Polylines}}
              - weight: 0.2
                generator: {class_path: rad.masks.Box, init_args: {side: [0.2, 0.75]}}
                area_range: [0.05, 0.5]

    Args:
        parts: at least one.

    Raises ValueError if 100 holes of a part in a row are outside its area range.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts=(): give at least one part with a generator")

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        check_draw(generators, height, width)
        ends = list(accumulate(part.weight for part in self.parts))
        holes = []
        for generator in generators:
            place = draw_uniform(generator, torch.float64) * ends[-1]
            chosen = min(bisect_right(ends, place), len(ends) - 1)  # the product may round up to the total
            holes.append(self._draw(chosen, generator, height, width))
        return torch.cat(holes)

    def _draw(self, number: int, generator: torch.Generator, height: int, width: int) -> Tensor:
        part = self.parts[number]
        low, high = part.area_range
        for _ in range(TRIES):
            hole = part.generator([generator], height, width)
            if low <= hole.sum(dtype=torch.float64).item() / (height * width) <= high:
                return hole
        raise ValueError(
            f"part {number + 1} of {len(self.parts)}, {part.generator}: {TRIES} holes of {height}x{width} were all "
            f"outside area_range={part.area_range}; widen the range or change the generator's settings"
        )
