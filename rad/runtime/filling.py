"""Filling the windows of canvases without torch, in batches; see `rad.inpainting.filling`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rad.errors import naming_images
from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.waves import Job, fill_waves
from rad.inpainting.canvas.windows import Kind
from rad.inpainting.progress import Finish, Reporter
from rad.inpainting.result import Progress
from rad.runtime.sampling.denoiser import Denoiser
from rad.runtime.sampling.noise import KeyedNoise
from rad.runtime.sampling.sampler import OnCall, Sampler


@dataclass(frozen=True)
class WindowFiller:
    """Fills canvases with a sampler for each kind of windows.

    `batch_size`: windows in a network call; halved for the rest of a wave when memory runs out.
    """

    samplers: Mapping[Kind, Sampler]
    denoiser: Denoiser
    seed: int
    batch_size: int

    def run(
        self, canvases: Sequence[Canvas], on_step: Callable[[Progress], None] | None, finish: Finish
    ) -> tuple[int, float]:
        """Fill all windows of all scales in place. Returns the network calls and the seconds in the sampling loops.

        `on_step` is called after each network call; `finish` makes its previews.
        """
        calls: dict[Kind, int] = {kind: sampler.nfe for kind, sampler in self.samplers.items()}
        reporter = None if on_step is None else Reporter(on_step, canvases, finish, calls)

        def fill(kind: Kind, jobs: Sequence[Job], _most: int) -> tuple[int, float]:
            began = time.perf_counter()
            self._fill_batch(jobs, self.samplers[kind], reporter)
            return calls[kind], time.perf_counter() - began

        nfe, total = 0, 0.0
        for jobs, (calls_each, seconds) in fill_waves(
            canvases, self.samplers, self.batch_size, fill, memory_error=MemoryError
        ):
            nfe, total = nfe + calls_each * len(jobs), total + seconds
            if reporter is not None:
                reporter.end(jobs, calls_each)
        return nfe, total

    def _fill_batch(self, jobs: Sequence[Job], sampler: Sampler, reporter: Reporter | None) -> None:
        pixels, hole = (np.stack(part) for part in zip(*(canvas.cut(window) for canvas, window in jobs), strict=True))
        names = [canvas.job_name(window) for canvas, window in jobs]
        noise = KeyedNoise(self.seed, names, [canvas.sample for canvas, _ in jobs])
        on_call = None if reporter is None else _reports(reporter, jobs)
        with naming_images([str(canvas.name) for canvas, _ in jobs]):
            outputs = sampler(self.denoiser, pixels, hole, noise=noise, on_call=on_call)
        for (canvas, window), output in zip(jobs, outputs, strict=True):
            canvas.paste(window, output)


def _reports(reporter: Reporter, jobs: Sequence[Job]) -> OnCall:
    """The callback of a batch."""
    return lambda calls, x0: reporter.report(jobs, calls, lambda rows: [x0[row] for row in rows])
