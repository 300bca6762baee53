"""Filling the windows of canvases with a model, in batches."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rad.errors import naming_images
from rad.inpainting.canvas.composite import Canvas, Floats
from rad.inpainting.canvas.waves import Job, fill_waves
from rad.inpainting.canvas.windows import Kind
from rad.inpainting.memory import is_out_of_memory
from rad.inpainting.progress import Finish, Reporter
from rad.inpainting.result import Progress
from rad.models.latent_mask import Grid, Prefill
from rad.models.loaded_model import PLAIN, LoadedModel
from rad.models.vae import IDENTITY
from rad.rng import KeyedNoise
from rad.sampling.finite import require_finite
from rad.sampling.sampler import Sample, Sampler
from rad.sampling.state import Cost, OnCall
from rad.sampling.task import Task


@dataclass
class WindowFiller:
    """Fills canvases with a sampler for each kind of windows.

    Args:
        grid, fill: see `Task.encoded`, for latent models; bf16: networks run in bfloat16 (autocast).
        batch_size: windows in a forward pass; halved for the rest of a wave when memory runs out.
        noise_on: device that draws the noise.
        compiled_batches: sizes of batches that the network is compiled for, which grow; None: it is not compiled. A batch is
            padded to the smallest of them that holds it, by copies of its last window. Results do not depend on the copies.
    """

    model: LoadedModel
    samplers: Mapping[Kind, Sampler]
    device: torch.device
    grid: Grid | None
    fill: Prefill
    seed: int
    batch_size: int
    bf16: bool
    noise_on: torch.device | str = "cpu"
    compiled_batches: set[int] | None = None

    def run(
        self, canvases: Sequence[Canvas], on_step: Callable[[Progress], None] | None, finish: Finish
    ) -> tuple[Cost, float]:
        """Fill all windows of all scales in place. Returns the total cost and the seconds in the sampling loops.

        `on_step` is called after each network call; `finish` makes its previews.
        """
        reporter = None
        if on_step is not None:
            calls: dict[Kind, int] = {kind: sampler.cost.nfe for kind, sampler in self.samplers.items()}
            reporter = Reporter(on_step, canvases, finish, calls)

        def fill(kind: Kind, jobs: Sequence[Job], most: int) -> Sample:
            try:
                return self._fill_batch(jobs, self.samplers[kind], most, reporter)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise torch.OutOfMemoryError(str(error)) from None
                raise

        cost, seconds = Cost(0), 0.0
        batches = fill_waves(canvases, self.samplers, self.batch_size, fill, memory_error=torch.OutOfMemoryError)
        for jobs, result in batches:
            cost, seconds = cost + Cost(result.nfe * len(jobs), result.vjp * len(jobs)), seconds + result.seconds
            if reporter is not None:
                reporter.end(jobs, result.nfe)
        return cost, seconds

    def _fill_batch(self, jobs: Sequence[Job], sampler: Sampler, most: int, reporter: Reporter | None) -> Sample:
        batch = [*jobs, *[jobs[-1]] * (self._rows(len(jobs), most) - len(jobs))]
        cuts = [canvas.cut(window) for canvas, window in batch]
        conditions = [(canvas.condition or PLAIN).cut(window.window) for canvas, window in batch]
        pixels, hole = (torch.from_numpy(np.stack(part)).to(self.device) for part in zip(*cuts, strict=True))
        names = [canvas.job_name(window) for canvas, window in batch]
        autoencoder = self.model.autoencoder
        with (
            naming_images([str(canvas.name) for canvas, _ in jobs]),
            KeyedNoise(self.seed, names, [canvas.sample for canvas, _ in batch], device=self.noise_on) as noise,
            self._autocast(),
        ):
            with torch.no_grad():
                start = sampler.strength < 1
                task = Task.encoded(pixels, hole, autoencoder, grid=self.grid, fill=self.fill, start=start)
            if autoencoder is not IDENTITY:
                require_finite(task.known, "the encoder's output is not finite: check the weights of the autoencoder")
            denoiser = self.model.denoiser(conditions, adapter=sampler.method.weights == "adapter")
            on_call = None if reporter is None else _reports(reporter, jobs, task)
            result = sampler(denoiser, task, noise=noise, on_call=on_call)
            with torch.no_grad():
                method = sampler.method
                x = result.raw if autoencoder is IDENTITY or not method.keeps_known else result.image
                outputs = method.decode(x, task)[: len(jobs)].float().cpu()
            require_finite(outputs, "the decoded image is not finite: check the weights of the autoencoder")
        for (canvas, window), output in zip(jobs, outputs, strict=True):
            canvas.paste(window, output.numpy())
        if self.compiled_batches is not None:
            self.compiled_batches.add(len(batch))
        return result

    def _rows(self, count: int, most: int) -> int:
        """Rows of a batch of `count` windows: a compiled size up to `most`, or `count`."""
        sizes = tuple(self.compiled_batches or ())  # at once: other threads add sizes
        return min((size for size in sizes if count <= size <= most), default=count)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def _reports(reporter: Reporter, jobs: Sequence[Job], task: Task) -> OnCall:
    """The callback of a batch. Rows of `task` after those of the jobs are copies, without previews."""
    shape, latest = task.known.shape, None

    def on_call(calls: int, x0: Tensor) -> None:
        nonlocal latest
        if x0.shape[:2] == shape[:2]:  # otherwise a method works on a part of the batch
            latest = x0 if x0.shape == shape else F.interpolate(x0, shape[2:], mode="bilinear")
        estimate = latest
        reporter.report(jobs, calls, lambda rows: _decoded(task, estimate, rows))

    return on_call


@torch.no_grad()
def _decoded(task: Task, x0: Tensor | None, rows: Sequence[int]) -> list[Floats]:
    """The estimates x0 (B,C,h,w) of some rows as images (3,H,W) in [-1,1]; none without estimates.

    Known latents are exact, as in the result. Images are decoded one by one, since a graph of the network may fill the memory.
    """
    if x0 is None:
        return []
    estimates = [torch.where(task.hole[[row]] == 0, task.known[[row]], x0[[row]]) for row in rows]
    return [task.autoencoder.decode(estimate)[0].float().cpu().numpy() for estimate in estimates]
