"""Filling the windows of canvases without torch, in batches, with progress; see `rad.inpainting.filling`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rad.errors import NotFiniteError
from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.preview import Finisher, preview
from rad.inpainting.canvas.windows import Kind, Window, next_wave
from rad.inpainting.result import Progress
from rad.runtime.sampling.denoiser import Denoiser
from rad.runtime.sampling.noise import KeyedNoise
from rad.runtime.sampling.process import Floats
from rad.runtime.sampling.sampler import Sampler

Job = tuple[Canvas, Window]
OnStep = Callable[[Progress], None]


@dataclass(frozen=True)
class WindowFiller:
    """Fills canvases with a sampler for each kind of windows.

    `batch_size`: windows in a network call; halved for the rest of a wave when memory runs out.
    """

    samplers: Mapping[Kind, Sampler]
    denoiser: Denoiser
    seed: int
    batch_size: int

    def run(self, canvases: Sequence[Canvas], reporter: "Reporter | None") -> tuple[int, float]:
        """Fill all windows of all scales in place. Returns the network calls and the seconds in the sampling loops."""
        nfe, seconds = 0, 0.0
        while jobs := [(c, w) for c in canvases if c.windows for w in next_wave(c.unknown, list(c.windows))]:
            for kind, sampler in self.samplers.items():
                part = [(canvas, window) for canvas, window in jobs if window.kind == kind]
                part_nfe, part_seconds = self._fill_wave(part, sampler, reporter)
                nfe, seconds = nfe + part_nfe, seconds + part_seconds
        return nfe, seconds

    def _fill_wave(self, jobs: Sequence[Job], sampler: Sampler, reporter: "Reporter | None") -> tuple[int, float]:
        """Fill windows that do not overlap. Returns (network calls, seconds)."""
        nfe, seconds, batch_size = 0, 0.0, self.batch_size
        while jobs:
            batch, began = jobs[:batch_size], time.perf_counter()
            try:
                self._fill_batch(batch, sampler, reporter)
            except MemoryError:
                if len(batch) == 1:
                    raise
                batch_size = (len(batch) + 1) // 2
                continue
            seconds += time.perf_counter() - began
            nfe += sampler.nfe * len(batch)
            jobs = jobs[len(batch) :]
        return nfe, seconds

    def _fill_batch(self, jobs: Sequence[Job], sampler: Sampler, reporter: "Reporter | None") -> None:
        pixels, hole = (np.stack(part) for part in zip(*(canvas.cut(window) for canvas, window in jobs), strict=True))
        names = [canvas.job_name(window) for canvas, window in jobs]
        noise = KeyedNoise(self.seed, names, [canvas.sample for canvas, _ in jobs])
        with _naming([str(canvas.name) for canvas, _ in jobs]):
            on_call = None if reporter is None else reporter.begin(jobs)
            outputs = sampler(self.denoiser, pixels, hole, noise=noise, on_call=on_call)
        for (canvas, window), output in zip(jobs, outputs, strict=True):
            canvas.paste(window, output)
        if reporter is not None:
            reporter.end(jobs, sampler.nfe)


class Reporter:
    """Calls `on_step` after each network call of a run.

    Args:
        canvases: in the order of the results; planned: network calls, over all windows.
    """

    def __init__(self, on_step: OnStep, canvases: Sequence[Canvas], finisher: Finisher, *, planned: int) -> None:
        self._on_step, self._finisher, self._planned = on_step, finisher, planned
        self._numbers = {id(canvas): number for number, canvas in enumerate(canvases)}
        self._finished = self._most = 0

    def begin(self, jobs: Sequence[Job]) -> Callable[[int, Floats], None]:
        """The callback of a batch."""
        return lambda calls, x0: self._report(self._finished + calls * len(jobs), jobs, x0)

    def end(self, jobs: Sequence[Job], calls: int) -> None:
        """Count the calls of each window of a finished batch."""
        self._finished += calls * len(jobs)

    def _report(self, done: int, jobs: Sequence[Job], x0: Floats) -> None:
        self._most = max(self._most, done)  # a batch that is repeated with less memory counts once
        canvases: dict[int, Canvas] = {}
        estimates: dict[int, dict[Window, Floats]] = {}
        for (canvas, window), row in zip(jobs, x0, strict=True):
            number = self._numbers[id(canvas)]
            canvases[number] = canvas
            estimates.setdefault(number, {})[window] = row

        def draw(indices: Sequence[int]) -> list[Image.Image]:
            return [self._finisher.preview(index, preview(canvases[index], estimates[index])) for index in indices]

        self._on_step(Progress(self._most, self._planned, draw, tuple(canvases)))


@contextmanager
def _naming(names: Sequence[str]) -> Iterator[None]:
    """Context whose NotFiniteErrors name the images of a batch."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(error.reason, error.rows, names) from None
