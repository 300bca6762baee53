"""Progress of a run: finished network calls, and previews of the estimates. Loads no torch."""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from rad.inpainting.canvas.composite import Canvas, Floats, Pixels
from rad.inpainting.canvas.preview import preview
from rad.inpainting.canvas.waves import Job
from rad.inpainting.canvas.windows import Kind
from rad.inpainting.result import Progress

Finish = Callable[[int, Pixels], Image.Image]
"""(number of a canvas, pixels as `Canvas.raw`) -> the image in the input's size, with its known pixels."""

Decode = Callable[[Sequence[int]], Sequence[Floats]]
"""Rows of a batch -> their estimates (3,H,W) in [-1,1]; empty while there are none."""


class Reporter:
    """Calls `on_step` after each network call of a run.

    Args:
        canvases: in the order of the results; calls: network calls of a window of each kind.
    """

    def __init__(
        self,
        on_step: Callable[[Progress], None],
        canvases: Sequence[Canvas],
        finish: Finish,
        calls: Mapping[Kind, int],
    ) -> None:
        self._on_step, self._finish = on_step, finish
        self._numbers = {id(canvas): number for number, canvas in enumerate(canvases)}
        self._planned = sum(canvas.count_calls(calls) for canvas in canvases)
        self._finished = self._most = 0

    def report(self, jobs: Sequence[Job], calls: int, decode: Decode) -> None:
        """Report a batch after its first `calls` network calls."""
        self._most = max(self._most, self._finished + calls * len(jobs))  # a batch that is repeated counts once
        rows: dict[int, list[int]] = {}
        for row, (canvas, _) in enumerate(jobs):
            rows.setdefault(self._numbers[id(canvas)], []).append(row)

        def draw(indices: Sequence[int]) -> list[Image.Image]:
            return [self._preview(index, [jobs[row] for row in rows[index]], decode(rows[index])) for index in indices]

        self._on_step(Progress(self._most, self._planned, draw, tuple(rows)))

    def end(self, jobs: Sequence[Job], calls: int) -> None:
        """Count the calls of each window of a finished batch. A batch without network calls is reported here."""
        self._finished += calls * len(jobs)
        if calls == 0:
            self.report(jobs, 0, lambda rows: [])

    def _preview(self, number: int, jobs: Sequence[Job], estimates: Sequence[Floats]) -> Image.Image:
        """The preview of canvas `number`, whose jobs these are; without estimates there are none yet."""
        windows = {window: estimate for (_, window), estimate in zip(jobs, estimates, strict=False)}
        return self._finish(number, preview(jobs[0][0], windows))
