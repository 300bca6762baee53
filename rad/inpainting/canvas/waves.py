"""The order in which the windows of canvases are filled, and their batches. Loads no torch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.windows import Kind, Window, next_wave

Job = tuple[Canvas, Window]
FilledT = TypeVar("FilledT")


def fill_waves(
    canvases: Sequence[Canvas],
    kinds: Iterable[Kind],
    batch_size: int,
    fill: Callable[[Kind, Sequence[Job], int], FilledT],
    *,
    memory_error: type[Exception],
) -> Iterator[tuple[Sequence[Job], FilledT]]:
    """Fill all windows of all scales in place, by waves of windows that do not overlap.

    Args:
        kinds: of all windows; those of a wave are filled kind by kind.
        batch_size: most windows in a batch; halved for the rest of a kind in a wave when `fill` raises `memory_error`.
        fill: takes the kind, the jobs of a batch, and the most that a batch has at the moment.

    Yields (jobs, what `fill` returned) after each batch. Raises `memory_error` if the memory is too small for one window.
    """
    while jobs := [(c, w) for c in canvases if c.windows for w in next_wave(c.unknown, list(c.windows))]:
        for kind in kinds:
            part = [job for job in jobs if job[1].kind == kind]
            yield from _in_batches(part, batch_size, partial(fill, kind), memory_error)


def _in_batches(
    jobs: Sequence[Job],
    most: int,
    fill: Callable[[Sequence[Job], int], FilledT],
    memory_error: type[Exception],
) -> Iterator[tuple[Sequence[Job], FilledT]]:
    while jobs:
        batch = jobs[:most]
        try:
            filled = fill(batch, most)
        except memory_error:
            if len(batch) == 1:
                raise
            most = (len(batch) + 1) // 2
            continue
        yield batch, filled
        jobs = jobs[len(batch) :]
