"""Filling the windows of canvases with a model, in batches."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.windows import Window, next_wave
from rad.inpainting.memory import is_out_of_memory
from rad.models.latent_mask import Grid, Prefill
from rad.models.loaded_model import PLAIN, LoadedModel
from rad.models.vae import IDENTITY
from rad.rng import KeyedNoise
from rad.sampling.finite import NotFiniteError, require_finite
from rad.sampling.sampler import Sample, Sampler
from rad.sampling.state import Cost
from rad.sampling.task import Task

Job = tuple[Canvas, Window]


@dataclass
class WindowFiller:
    """Fills canvases with one sampler.

    Args:
        grid, fill: see `Task.encoded`, for latent models; bf16: networks run in bfloat16 (autocast).
        batch_size: windows in a forward pass; halved for the rest of a wave when memory runs out.
        noise_on: device that draws the noise.
        compiled_batches: sizes of batches that the network is compiled for, which grow; None: it is not compiled. A batch is
            padded to the smallest of them that holds it, by copies of its last window. Results do not depend on the copies.
    """

    model: LoadedModel
    sampler: Sampler
    device: torch.device
    grid: Grid | None
    fill: Prefill
    seed: int
    batch_size: int
    bf16: bool
    noise_on: torch.device | str = "cpu"
    compiled_batches: set[int] | None = None

    def run(self, canvases: Sequence[Canvas], on_step: Callable[[int, int], None] | None) -> tuple[Cost, float]:
        """Fill all windows, wave by wave, in place. Returns the total cost and the seconds in the sampling loops.

        `on_step` receives (network calls done, planned), counted per window.
        """
        planned = self.sampler.cost.nfe
        total = planned * sum(len(canvas.windows) for canvas in canvases)
        cost, seconds, finished = Cost(0), 0.0, 0
        while any(canvas.windows for canvas in canvases):
            jobs = [(c, w) for c in canvases if c.windows for w in next_wave(c.unknown, list(c.windows))]
            wave_cost, wave_seconds = self._fill_wave(
                jobs, lambda done, before=finished: on_step(before + done, total) if on_step else None
            )
            cost, seconds, finished = cost + wave_cost, seconds + wave_seconds, finished + planned * len(jobs)
        return cost, seconds

    def _fill_wave(self, jobs: Sequence[Job], on_calls: Callable[[int], None]) -> tuple[Cost, float]:
        """Fill windows that do not overlap. Returns (cost, seconds)."""
        cost, seconds, start, planned, batch_size = Cost(0), 0.0, 0, self.sampler.cost.nfe, self.batch_size
        while start < len(jobs):
            batch = jobs[start : start + batch_size]
            rows = len(batch)
            self.sampler.on_step = lambda done, steps, before=start * planned, rows=rows: on_calls(
                before + rows * planned * done // steps
            )
            try:
                result = self._fill_batch(batch, batch_size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise torch.OutOfMemoryError(str(error)) from None
                batch_size = (rows + 1) // 2
                continue
            cost = cost + Cost(result.nfe * rows, result.vjp * rows)
            seconds, start = seconds + result.seconds, start + rows
        return cost, seconds

    def _fill_batch(self, jobs: Sequence[Job], most: int) -> Sample:
        batch = [*jobs, *[jobs[-1]] * (self._rows(len(jobs), most) - len(jobs))]
        cuts = [canvas.cut(window) for canvas, window in batch]
        conditions = [(canvas.condition or PLAIN).cut(window.window) for canvas, window in batch]
        pixels, hole = (torch.from_numpy(np.stack(part)).to(self.device) for part in zip(*cuts, strict=True))
        names = [canvas.job_name(window) for canvas, window in batch]
        autoencoder = self.model.autoencoder
        with (
            _naming([str(canvas.name) for canvas, _ in jobs]),
            KeyedNoise(self.seed, names, [canvas.sample for canvas, _ in batch], device=self.noise_on) as noise,
            self._autocast(),
        ):
            with torch.no_grad():
                task = Task.encoded(pixels, hole, autoencoder, grid=self.grid, fill=self.fill)
            if autoencoder is not IDENTITY:
                require_finite(task.known, "the encoder's output is not finite: check the weights of the autoencoder")
            result = self.sampler(self.model.denoiser(conditions, adapter=self._with_adapter), task, noise=noise)
            with torch.no_grad():
                x = result.raw if autoencoder is IDENTITY else result.image
                outputs = self.sampler.method.decode(x, task)[: len(jobs)].float().cpu()
            require_finite(outputs, "the decoded image is not finite: check the weights of the autoencoder")
        for (canvas, window), output in zip(jobs, outputs, strict=True):
            canvas.paste(window, output.numpy())
        if self.compiled_batches is not None:
            self.compiled_batches.add(len(batch))
        return result

    def _rows(self, count: int, most: int) -> int:
        """Rows of a batch of `count` windows: a compiled size up to `most`, or `count`."""
        return min((size for size in self.compiled_batches or () if count <= size <= most), default=count)

    @property
    def _with_adapter(self) -> bool:
        return self.sampler.method.weights == "adapter"

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@contextlib.contextmanager
def _naming(names: Sequence[str]) -> Iterator[None]:
    """Context whose NotFiniteErrors name the images of a batch."""
    try:
        yield
    except NotFiniteError as error:
        rows = [row for row in error.rows if row < len(names)]  # the others are copies
        raise NotFiniteError(error.reason, rows, names) from None
