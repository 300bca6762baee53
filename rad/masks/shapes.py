"""Boxes, halves, grids and pixels; and `make(name)`, the generator of a named set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rad.arguments import describe, integer
from rad.console import did_you_mean
from rad.masks.base import MaskGenerator, check_draw, check_share, draw_integer, draw_uniform
from rad.masks.damage import Polylines, Text
from rad.masks.mixture import Mixture, Part
from rad.masks.names import ALIASES, main_names
from rad.masks.perlin import Perlin, threshold_by_rank
from rad.masks.strokes import Blobs, Lettering, Strokes


@dataclass(frozen=True)
class Box(MaskGenerator):
    """A box at a uniformly random place: RAD's "box", 128x128 of 256x256 (its code omits the last place).

    Args:
        side: share of each side of the image, in (0,1]; 0.5 makes a quarter of the image the hole. With (low, high), the
            shares of height and width are drawn separately for each image.
    """

    side: float | tuple[float, float] = 0.5

    def __post_init__(self) -> None:
        check_share("side", self.side)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        check_draw(generators, height, width)
        hole = torch.zeros(len(generators), 1, height, width, dtype=torch.float32, device=generators[0].device)
        for image, generator in zip(hole, generators, strict=True):
            box_height, box_width = self._draw_size(generator, height, width)
            top = draw_integer(generator, height - box_height)
            left = draw_integer(generator, width - box_width)
            image[:, top : top + box_height, left : left + box_width] = 1
        return hole

    def _draw_size(self, generator: torch.Generator, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.side, tuple):
            return _box_size(self.side, self.side, height, width)
        low, high = self.side
        draws = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).tolist()
        down, across = (low + (high - low) * draw for draw in draws)
        return _box_size(down, across, height, width)


@dataclass(frozen=True)
class Extreme(MaskGenerator):
    """All but a box at a random place: RAD's "extreme", 3/4 of the image. The complement of `Box`."""

    side: float | tuple[float, float] = 0.5

    def __post_init__(self) -> None:
        check_share("side", self.side)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return 1 - Box(side=self.side)(generators, height, width)


@dataclass(frozen=True)
class CenterBox(MaskGenerator):
    """A box in the middle; `side` as in `Box`, one number."""

    side: float = 0.5

    def __post_init__(self) -> None:
        check_share("side", self.side)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _repeat(_center_box(self.side, height, width), generators)


@dataclass(frozen=True)
class Expand(MaskGenerator):
    """All but a box in the middle, for outpainting: RePaint's "expand", 64x64 kept of 256x256.

    Args:
        keep: share of each side of the image that is known, in (0,1].
    """

    keep: float = 0.25

    def __post_init__(self) -> None:
        check_share("keep", self.keep)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _repeat(1 - _center_box(self.keep, height, width), generators)


@dataclass(frozen=True)
class Half(MaskGenerator):
    """The right half, without the middle column of an odd width: RePaint's "half"."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = _filled(0, height, width)
        hole[:, (width + 1) // 2 :] = 1
        return _repeat(hole, generators)


@dataclass(frozen=True)
class Halves(MaskGenerator):
    """One of the four halves, right, left, bottom or top, with the middle row or column of an odd side."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        check_draw(generators, height, width)
        hole = torch.zeros(len(generators), 1, height, width, dtype=torch.float32, device=generators[0].device)
        rows, columns = (height + 1) // 2, (width + 1) // 2
        for image, generator in zip(hole[:, 0], generators, strict=True):
            side = draw_integer(generator, 3)
            (image[:, width - columns :], image[:, :columns], image[height - rows :], image[:rows])[side].fill_(1)
        return hole


@dataclass(frozen=True)
class Everything(MaskGenerator):
    """The whole image, which trains the unconditional model."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _repeat(_filled(1, height, width), generators)


@dataclass(frozen=True)
class EveryOtherLine(MaskGenerator):
    """Rows 0, 2, 4 and so on: RePaint's "alternating lines"."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = _filled(0, height, width)
        hole[::2] = 1
        return _repeat(hole, generators)


@dataclass(frozen=True)
class SuperResolve(MaskGenerator):
    """All but the pixels of odd row and odd column, 3/4 of the image: RePaint's "super-resolve 2x"."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = _filled(1, height, width)
        hole[1::2, 1::2] = 0
        return _repeat(hole, generators)


@dataclass(frozen=True)
class RandomPixels(MaskGenerator):
    """Scattered pixels: 92% as in DPS, arXiv 2209.14687 (RAD: 90 to 95%).

    Args:
        fraction: share of the pixels that are hole, in (0,1], rounded to a whole number of pixels. With (low, high), the
            share of each image is drawn.
    """

    fraction: float | tuple[float, float] = 0.92

    def __post_init__(self) -> None:
        check_share("fraction", self.fraction)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        check_draw(generators, height, width)
        planes = [torch.rand(height, width, generator=g, device=g.device, dtype=torch.float32) for g in generators]
        low, high = self.fraction if isinstance(self.fraction, tuple) else (self.fraction, self.fraction)
        draws = [draw_uniform(g, torch.float64) if low < high else 0.0 for g in generators]
        shares = low + (high - low) * torch.tensor(draws, dtype=torch.float64, device="cpu")
        return threshold_by_rank(torch.stack(planes), (shares * height * width).round().long())


def photos() -> Mixture:
    """The mixture of `configs/photos.yaml`: typical damage of photographs, mostly thin."""
    return Mixture(
        (
            Part(Polylines(), weight=40),
            Part(Polylines(width=(3.0, 9.0)), weight=20),
            Part(Box(side=(0.2, 0.75)), weight=15),
            Part(Halves(), weight=5),
            Part(Perlin(area_range=(0.01, 1.0)), weight=8),
            Part(Text(), weight=12),
        )
    )


MASKS: dict[str, Callable[[], MaskGenerator]] = {
    "box": Box,
    "extreme": Extreme,
    "center": CenterBox,
    "half": Half,
    "expand": Expand,
    "lines": EveryOtherLine,
    "superres": SuperResolve,
    "pixels": RandomPixels,
    "wide": Strokes,
    "thin": partial(Strokes, strokes=(4, 50), width=(5, 14), length=(10, 49), box_share=0.0),
    "blobs": Blobs,
    "perlin": Perlin,
    "lettering": Lettering,
    "photos": photos,
}
MASKS.update({alias: MASKS[name] for alias, name in ALIASES.items()})


def make(name: str) -> MaskGenerator:
    """The generator `name` of `MASKS` with its default settings. Raises ValueError for an unknown name."""
    if not isinstance(name, str) or name not in MASKS:
        meant = did_you_mean(name, MASKS) if isinstance(name, str) else ""
        raise ValueError(f"no mask is called {describe(name)}{meant}: give one of {', '.join(main_names())}")
    return MASKS[name]()


def _filled(value: int, height: int, width: int) -> Tensor:
    sides = integer("height", height, low=1), integer("width", width, low=1)
    return torch.full(sides, value, dtype=torch.float32, device="cpu")


def _repeat(hole: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    check_draw(generators, *hole.shape)
    return hole.to(generators[0].device).repeat(len(generators), 1, 1, 1)


def _box_size(down: float, across: float, height: int, width: int) -> tuple[int, int]:
    return max(1, round(down * height)), max(1, round(across * width))


def _center_box(side: float, height: int, width: int) -> Tensor:
    box_height, box_width = _box_size(side, side, height, width)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    hole = _filled(0, height, width)
    hole[top : top + box_height, left : left + box_width] = 1
    return hole
