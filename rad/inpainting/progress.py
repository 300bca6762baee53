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

Decode = Callable[[Sequence[int]], list[Floats]]
"""Rows of a batch -> their estimates (3,H,W) in [-1,1]; empty while there are none."""


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
            self._report(self._finished + calls * len(jobs), jobs, lambda rows: _decoded(task, estimate, rows))

        return on_call

    def end(self, jobs: Sequence[Job], calls: int) -> None:
        """Count the calls of each window of a finished batch. A batch without network calls is reported here."""
        self._finished += calls * len(jobs)
        if calls == 0:
            self._report(self._finished, jobs, lambda rows: [])

    def _report(self, done: int, jobs: Sequence[Job], decode: Decode) -> None:
        self._most = max(self._most, done)
        rows: dict[int, list[int]] = {}
        for row, (canvas, _) in enumerate(jobs):
            rows.setdefault(self._numbers[id(canvas)], []).append(row)

        def draw(indices: Sequence[int]) -> list[Image.Image]:
            return [self._preview(index, [jobs[row] for row in rows[index]], decode(rows[index])) for index in indices]

        self._on_step(Progress(self._most, self._planned, draw, tuple(rows)))

    def _preview(self, number: int, jobs: Sequence[Job], estimates: list[Floats]) -> Image.Image:
        """The preview of canvas `number`, whose jobs these are; without estimates there are none yet."""
        windows = {window: estimate for (_, window), estimate in zip(jobs, estimates, strict=False)}
        return self._finish(number, preview(jobs[0][0], windows))


@torch.no_grad()
def _decoded(task: Task, x0: Tensor | None, rows: Sequence[int]) -> list[Floats]:
    """The estimates x0 (B,C,h,w) of some rows as images (3,H,W) in [-1,1]; none without estimates.

    Known latents are exact, as in the result. Images are decoded one by one, since a graph of the network may fill the memory.
    """
    if x0 is None:
        return []
    estimates = [torch.where(task.hole[[row]] == 0, task.known[[row]], x0[[row]]) for row in rows]
    return [task.autoencoder.decode(estimate)[0].float().cpu().numpy() for estimate in estimates]
