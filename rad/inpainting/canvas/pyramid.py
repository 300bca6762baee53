"""Coarse to fine: a large hole is filled in a reduced image first, and then at finer and finer scales. Loads no torch.

At scale 1/s a cell is a square of s x s pixels, s a power of two. Its value is the mean of its known pixels. It is known if at
least half of its pixels are known. No cell depends on the content of the hole.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rad.arguments import integer
from rad.diffusion.choices import check_strength
from rad.inpainting.canvas.composite import Canvas, Pixels, pad, rounded, signed
from rad.inpainting.canvas.resize import Floats, resize_bicubic
from rad.inpainting.canvas.windows import Counts, Window, has_square

if TYPE_CHECKING:
    from rad.models.loaded_model import Condition


@dataclass(frozen=True)
class Pyramid:
    """Settings of size policy "pyramid".

    Example:
        >>> Pyramid(steps=4).sampler_steps  # the last 4 levels of 7 are those from a strength of 0.65
        7

    Args:
        coarsest: the coarsest scale is the first at which no square of more cells a side fits into the hole; None: three eighths
            of the model's size. Lower values add scales.
        strength: in (0,1), of finer scales, which start from the coarser result; see `Sampler`.
        steps: noise levels of each finer scale.

    Raises ValueError for a value outside its range.
    """

    coarsest: int | None = None
    strength: float = 0.65
    steps: int = 6

    def __post_init__(self) -> None:
        if self.coarsest is not None:
            integer("coarsest of the pyramid", self.coarsest, low=1, high=2**16)
        integer("steps of the pyramid", self.steps, low=1, high=10**5)
        if check_strength(self.strength) == 1:
            raise ValueError("strength of the pyramid is 1, which ignores the coarser result: give less, such as 0.65")

    @classmethod
    def chosen(cls, settings: object) -> "Pyramid":
        """From attributes such as `pyramid_steps`, of preferred settings or options; None: the default."""
        values = {item.name: getattr(settings, f"pyramid_{item.name}") for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if value is not None})

    @property
    def sampler_steps(self) -> int:
        """Steps of a sampler whose last floor(steps strength) levels are `steps`."""
        count = int(self.steps / self.strength)
        while int(count * self.strength) < self.steps:
            count += 1
        return count

    def reductions(self, hole: Floats, size: int) -> list[tuple[int, Floats]]:
        """(s, hole at scale 1/s) of each scale, the coarsest first, for a hole (1,H,W) and a model of `size` pixels.

        A scale at which one window shows the whole image is the coarsest possible.
        """
        most = 3 * size // 8 if self.coarsest is None else self.coarsest
        scales = [(1, hole)]
        while max(scales[0][1].shape[1:]) > size and has_square(scales[0][1][0] > 0, most + 1):
            side = 2 * scales[0][0]
            reduced = reduce_hole(hole, side)
            if not reduced.any():
                break
            scales.insert(0, (side, reduced))
        return scales


def reduce_hole(hole: Floats, side: int) -> Floats:
    """The hole (1,H,W) at scale 1/side, (1,ceil(H/side),ceil(W/side)).

    A cell is 1 if less than half of its pixels are known in part or in whole, otherwise the mean of these.
    """
    visible = hole < 1
    count, inside = _sums(visible, side), _sums(np.ones_like(hole), side)
    greys = _sums(hole * visible, side) / np.maximum(count, 1)
    return np.where(2 * count < inside, 1, greys).astype(np.float32)


def reduce_pixels(pixels: Floats, hole: Floats, side: int) -> Floats:
    """Pixels (3,H,W) in [-1,1] at scale 1/side: of each cell the mean of the pixels where hole (1,H,W) is below 1, else 0."""
    visible = hole < 1
    return (_sums(np.where(visible, pixels, 0), side) / np.maximum(_sums(visible, side), 1)).astype(np.float32)


def _sums(image: NDArray, side: int) -> NDArray[np.float64]:
    """(C,H,W) to the sum of each cell; cells at the edge may have fewer pixels."""
    channels, height, width = image.shape
    rows, columns = -(-height // side), -(-width // side)
    padded = pad(image, (rows * side, columns * side), 0).astype(np.float64)
    return padded.reshape(channels, rows, side, columns, side).sum((2, 4))


def enlarge(cells: Floats, times: int, size: tuple[int, int]) -> Floats:
    """Cells (C,h,w) enlarged by a whole number, bicubic, cut to `size` (height, width) at the bottom and the right."""
    height, width = cells.shape[1:]
    return resize_bicubic(cells, (times * height, times * width))[:, : size[0], : size[1]]


@dataclass(frozen=True)
class Scale:
    """An image at scale 1/side, padded to at least the model's size.

    Args:
        size: (height, width) in cells, without the padding.
        pixels, hole, windows, condition: see `Canvas`.
    """

    side: int
    size: tuple[int, int]
    pixels: Pixels
    hole: Floats
    windows: Sequence[Window]
    condition: "Condition | None"

    def inside(self, image: NDArray) -> NDArray:
        return image[:, : self.size[0], : self.size[1]]


class PyramidCanvas(Canvas):
    """A canvas that is filled at several scales, the coarsest first; see `Canvas`, whose attributes are those of one scale.

    Each sample of a mean passes through all scales before the next one begins. The mean is of full scale alone.
    """

    def __init__(self, name: int | str, sample: int, scales: Sequence[Scale], *, average: int = 1) -> None:
        self._scales, self._number, self.scale = tuple(scales), 0, scales[0]
        first, full = scales[0], scales[-1].pixels
        super().__init__(name, sample, first.pixels, first.hole, first.windows, first.condition, average=average)
        self._mean = np.zeros(full.shape if average > 1 else 0, np.float32)
        self._mean_raw: Pixels | None = None

    @property
    def counts(self) -> Counts:
        return Counter(window.kind for scale in self._scales for window in scale.windows)

    def job_name(self, window: Window) -> int | str:
        top, left, _, _ = window.window
        return super().job_name(window) if self.scale.side == 1 else f"{self.name}@1/{self.scale.side}@{top},{left}"

    def _seen(self, window: Window) -> Pixels:
        return self.scale.pixels if window.kind == "thin" else self.pixels

    def enlarged(self, pixels: Pixels) -> Pixels:
        if self.scale.side == 1:
            return pixels
        if self._mean_raw is not None:
            return self._mean_raw
        cells = np.asarray(self.scale.inside(pixels), np.float32)
        return rounded(enlarge(cells, self.scale.side, self._scales[-1].size))

    def _averaged(self, output: Floats, core: tuple[slice, slice, slice], kept: NDArray[np.bool_]) -> Floats:
        return super()._averaged(output, core, kept) if self.scale.side == 1 else output

    def _begin_next(self) -> None:
        """Begin the next scale; after the last one, the next sample of a mean."""
        if self.scale.side > 1:
            self._begin_scale(self._number + 1, self._enlarged_result(self._scales[self._number + 1]))
            return
        self.samples_filled += 1
        if self.samples_filled < self.average:
            self.sample, self._mean_raw = self.sample + 1, self.raw
            self._begin_scale(0, self._scales[0].pixels)

    def _begin_scale(self, number: int, pixels: Pixels) -> None:
        self._number, self.scale = number, self._scales[number]
        self.pixels, self.hole, self.condition = pixels, self.scale.hole, self.scale.condition
        self.windows, self.unknown = dict.fromkeys(self.scale.windows), self.hole[0] > 0
        self.filled = np.zeros(pixels.shape, np.float32)
        self._counted = np.zeros(self.unknown.shape, bool)
        kept = self._mean_raw if self.scale.side == 1 else None
        self.raw = pixels.copy() if kept is None else kept

    def _enlarged_result(self, scale: Scale) -> Pixels:
        """Pixels of a finer scale, with the result of the present one in the hole."""
        coarse = self.scale
        before = signed(coarse.inside(self.pixels))
        hole = coarse.inside(self.hole)
        result = np.where(hole > 0, coarse.inside(self.filled), before)
        times = coarse.side // scale.side
        start = enlarge(result, times, scale.size)
        pixels, hole_now = signed(scale.inside(scale.pixels)), scale.inside(scale.hole)
        if ((hole_now > 0) & (hole_now < 1)).any():  # partly known: its own content, changed as the coarser cells were
            change = enlarge(np.where(hole < 1, result - before, 0), times, scale.size)
            start = np.where(hole_now < 1, pixels + change, start)
        start = np.clip(start, -1, 1).astype(np.float32)
        content = rounded(start) if scale.pixels.dtype == np.uint8 else start
        filled = np.where(hole_now > 0, content, scale.inside(scale.pixels))
        return pad(filled, (scale.pixels.shape[1], scale.pixels.shape[2]), None)
