"""Windows of the model's size over the holes of larger images: positions, and order of filling.

A window has S x S pixels. Only its core is kept, the window without a margin, which gives every filled pixel some context.
A hole that fits into a core gets one centred window. A longer hole is cut into cores; later windows see earlier results.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""top, left, bottom, right in pixels; bottom and right are exclusive."""

Kind = Literal["first", "finer", "thin"]
"""Kind of a window, which decides its sampler.

- first: of the only scale, or of the coarsest one of size policy "pyramid".
- finer: of a finer scale, which starts from the coarser result.
- thin: of any scale, without a hole wider than `THIN`, if thin windows have their own steps. It starts from noise.
"""

Counts = Counter[Kind]
"""Number of windows of each kind."""

THIN = 8
"""Width in pixels of the widest thin hole: no square of more pixels a side fits into it."""


@dataclass(frozen=True)
class Window:
    """The model's input area `window` and the kept area `core`, in pixels of the image."""

    window: Box
    core: Box
    kind: Kind = "first"

    @property
    def slices(self) -> tuple[slice, slice]:
        top, left, bottom, right = self.window
        return slice(top, bottom), slice(left, right)

    @property
    def core_slices(self) -> tuple[slice, slice]:
        top, left, bottom, right = self.core
        return slice(top, bottom), slice(left, right)


def total_calls(counts: Mapping[Kind, int], calls: Mapping[Kind, int]) -> int:
    """Network calls of windows, with `calls` for one of each kind."""
    return sum(count * calls[kind] for kind, count in counts.items())


def has_square(hole: NDArray[np.bool_], side: int) -> bool:
    """Whether a square of `side` x `side` pixels fits into the hole (H,W)."""
    if side > min(hole.shape):
        return False
    total = np.pad(hole.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    squares = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return bool((squares == side * side).any())


CHUNK = 2**16
"""Boxes that are Python objects at the same time: a mask of single pixels has millions."""


def plan_windows(hole: NDArray[np.bool_], *, size: int, margin: int, most: int | None = None) -> list[Window]:
    """Windows whose cores cover every hole pixel. Raises ValueError for an image below `size` or a margin out of range.

    Args:
        hole: (H,W) with H, W >= size. Pad a smaller image with hole.
        size: S, side of the model's images in pixels.
        margin: between a window's edge and its core in pixels, below S / 2; 0 at the edge of the image.
        most: stop after `most` + 1 windows; None: never.
    """
    if min(hole.shape) < size or not 0 <= 2 * margin < size:
        raise ValueError(
            f"image is {hole.shape} and margin {margin}; expected sides of at least {size}, 0 <= margin < {size / 2}"
        )
    return list(islice(_windows(hole, size, margin), None if most is None else most + 1))


def _windows(hole: NDArray[np.bool_], size: int, margin: int) -> Iterator[Window]:
    """The windows of `plan_windows`, one by one."""
    open_pixels, boxes = hole.copy(), component_boxes(hole)
    rows_of_boxes = (row for start in range(0, len(boxes), CHUNK) for row in boxes[start : start + CHUNK].tolist())
    for top, left, bottom, right in rows_of_boxes:
        for rows in _cuts(top, bottom, hole.shape[0], size, margin):
            for columns in _cuts(left, right, hole.shape[1], size, margin):
                window = Window((rows[0], columns[0], rows[1], columns[1]), (rows[2], columns[2], rows[3], columns[3]))
                inside = open_pixels[window.core_slices]
                if inside.any():
                    inside[:] = False
                    yield window
    assert not open_pixels.any()


def component_boxes(hole: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The `Box` of each 8-connected component of hole (H,W), in the order of their first pixels, row by row: (N,4).

    A row is cut into runs of hole pixels. Runs of neighbouring rows that touch are merged (union-find on whole arrays).
    """
    height, width = hole.shape
    padded = np.zeros((height, width + 1), np.bool_)  # a column of known pixels ends the runs of a row
    padded[:, :-1] = hole
    changes = np.flatnonzero(np.diff(padded.ravel(), prepend=False))
    starts, ends = changes[::2], changes[1::2]  # exclusive ends, both in the padded image
    stride = width + 1
    # A run touches those of the next row that end at or after its start, and start at or before its end.
    first = np.searchsorted(ends, starts + stride)
    last = np.searchsorted(starts, ends + stride, side="right")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    root = _roots(len(starts), upper, lower)

    numbers, number = np.unique(root, return_inverse=True)
    tops, lefts, bottoms, rights = (np.full(len(numbers), fill) for fill in (height, width, 0, 0))
    rows = starts // stride
    np.minimum.at(tops, number, rows)
    np.minimum.at(lefts, number, starts - rows * stride)
    np.maximum.at(bottoms, number, rows + 1)
    np.maximum.at(rights, number, ends - rows * stride)
    return np.stack([tops, lefts, bottoms, rights], 1)


def _roots(count: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node of each node's component, (count,), in a graph with edges from `first` to `second`."""
    root = np.arange(count)
    while True:
        one_end, other_end = root[first], root[second]
        apart = one_end != other_end
        if not apart.any():
            return root
        first, second = first[apart], second[apart]
        ends = one_end[apart], other_end[apart]
        np.minimum.at(root, np.maximum(*ends), np.minimum(*ends))
        while not np.array_equal(following := root[root], root):
            root = following


def _cuts(first: int, last: int, length: int, size: int, margin: int) -> list[tuple[int, int, int, int]]:
    """Along one axis: (window start, window end, core start, core end) of each window that covers [first, last)."""
    core = size - 2 * margin
    count = max(1, -(-(last - first) // core))
    cuts = []
    for number in range(count):
        middle = first + (last - first) * (2 * number + 1) / (2 * count)
        start = min(max(0, round(middle - size / 2)), length - size)
        inner = 0 if start == 0 else start + margin
        outer = length if start + size == length else start + size - margin
        cuts.append((start, start + size, inner, outer))
    return cuts


def next_wave(unknown: NDArray[np.bool_], windows: list[Window]) -> list[Window]:
    """The windows to fill next. They do not overlap, and have known pixels if any remaining window has; most known first.

    `unknown`: (H,W), pixels still to fill; `windows`: at least one.
    """
    unknown_shares = {window: float(unknown[window.slices].mean()) for window in windows}
    ordered = sorted(windows, key=lambda window: unknown_shares[window])
    if unknown_shares[ordered[0]] == 1.0:
        return ordered[:1]
    wave: list[Window] = []
    taken = np.zeros_like(unknown)
    for window in ordered:
        if unknown_shares[window] < 1.0 and not taken[window.slices].any():
            taken[window.slices] = True
            wave.append(window)
    return wave
