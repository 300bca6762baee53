"""Progress of a run: finished network calls, and previews of the estimates."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.preview import preview
from rad.inpainting.canvas.windows import Window
from rad.inpainting.result import Progress
from rad.sampling.state import OnCall
from rad.sampling.task import Task

Job = tuple[Canvas, Window]
Floats = NDArray[np.float32]
Finish = Callable[[int, NDArray[np.uint8] | Floats], Image.Image]
"""(number of a canvas, pixels as `Canvas.raw`) -> the image in the input's size, with its known pixels."""


class Reporter:
    """Calls `on_step` after each network call of a run.

    Args:
        planned: network calls, over all windows; canvases: in the order of the results.
    """

    def __init__(
        self, on_step: Callable[[Progress], None], canvases: Sequence[Canvas], finish: Finish, *, planned: int
    ) -> None:
        self._on_step, self._finish, self._planned = on_step, finish, planned
        self._numbers = {id(canvas): number for number, canvas in enumerate(canvases)}
        self._finished = self._most = 0

    def begin(self, jobs: Sequence[Job], task: Task) -> OnCall:
        """The callback of a batch. Rows of `task` after those of the jobs are copies, without previews."""
        shape, latest = task.known.shape, None

        def on_call(calls: int, x0: Tensor) -> None:
            nonlocal latest
            if x0.shape[:2] == shape[:2]:  # otherwise a method works on a part of the batch
                latest = x0 if x0.shape == shape else F.interpolate(x0, shape[2:], mode="bilinear")
            estimate = latest
            self._report(self._finished + calls * len(jobs), jobs, lambda: _decoded(task, estimate, len(jobs)))

        return on_call

    def end(self, jobs: Sequence[Job], calls: int) -> None:
        """Count the calls of each window of a finished batch. A batch without network calls is reported here."""
        self._finished += calls * len(jobs)
        if calls == 0:
            self._report(self._finished, jobs, list)

    def _report(self, done: int, jobs: Sequence[Job], estimates: Callable[[], list[Floats]]) -> None:
        self._most = max(self._most, done)
        numbers = dict.fromkeys(self._numbers[id(canvas)] for canvas, _ in jobs)
        self._on_step(Progress(self._most, self._planned, lambda: self._previews(jobs, estimates()), tuple(numbers)))

    def _previews(self, jobs: Sequence[Job], estimates: list[Floats]) -> list[Image.Image]:
        canvases = {id(canvas): canvas for canvas, _ in jobs}
        windows: dict[int, dict[Window, Floats]] = {key: {} for key in canvases}
        for (canvas, window), estimate in zip(jobs, estimates, strict=False):  # there may be none yet
            windows[id(canvas)][window] = estimate
        return [self._finish(self._numbers[key], preview(canvas, windows[key])) for key, canvas in canvases.items()]


@torch.no_grad()
def _decoded(task: Task, x0: Tensor | None, count: int) -> list[Floats]:
    """The first `count` estimates x0 (B,C,h,w) as images (3,H,W) in [-1,1]; none without estimates.

    Known latents are exact, as in the result. Images are decoded one by one, since a graph of the network may fill the memory.
    """
    if x0 is None:
        return []
    rows = torch.where(task.hole == 0, task.known, x0)[:count].split(1)
    return [task.autoencoder.decode(row)[0].float().cpu().numpy() for row in rows]
