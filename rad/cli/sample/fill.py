"""Filling in batches of images: a worker holds a model; it reads the images of a batch, fills them and writes their files."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Job, Label, MethodRun
from rad.cli.sample.request import Requests
from rad.cli.sample.runtimes.base import Model, Plan
from rad.evaluation.run_log import Usage
from rad.images.atomic import replacing
from rad.images.formats import open_file
from rad.images.sources import ImageFile
from rad.inpainting.canvas.windows import Counts
from rad.inpainting.result import Inpainted
from rad.masks.reading.format import MaskWarning
from rad.masks.reading.hole import Hole
from rad.masks.reading.written import write_hole

if TYPE_CHECKING:
    from rad.models.loaded_model import Condition

MOST_PIXELS = 2**26
"""Pixels of all samples of a batch, which bounds the memory for large images."""


class ReadError(ValueError):
    """An image or mask of a batch cannot be read. The other batches go on."""


@dataclass(frozen=True)
class WindowCount:
    """Windows of an image for each sample, without and with thin ones counted apart, and its size in pixels."""

    windows: Mapping[bool, Counts]
    pixels: int


@dataclass(frozen=True)
class Batch:
    """Images that are filled together, with the windows of each; `run`: number of their MethodRun."""

    run: int
    label: Label
    jobs: list[Job]
    windows: list[Counts]


@dataclass(frozen=True)
class Inputs:
    """The images of a batch with their holes (H,W), their conditions, and the text chunks of their results."""

    images: list[Image.Image]
    holes: list[Hole]
    conditions: "Sequence[Condition] | Condition | None"
    texts: list[PngInfo]


def make_batches(
    number: int, run: MethodRun, window_counts: Mapping[ImageFile, WindowCount], options: SampleOptions
) -> list[Batch]:
    """The jobs of run `number` with known windows, in batches of --batch_size images; fewer if they are large.

    Images of an adaptation are filled one by one, so that each is written when it is filled.
    """
    count = 1 if run.label.given_adapt(options) else options.batch_size
    ready = [job for job in run.jobs if job.image in window_counts]
    parts: list[list[Job]] = []
    for start in range(0, len(ready), count):
        total = MOST_PIXELS + 1
        for job in ready[start : start + count]:
            pixels = options.num_samples * window_counts[job.image].pixels
            total += pixels
            if total > MOST_PIXELS:
                parts.append([])
                total = pixels
            parts[-1].append(job)
    thin = run.label.given_thin_steps(options) is not None
    windows = [[window_counts[job.image].windows[thin] for job in part] for part in parts]
    return [Batch(number, run.label, part, counts) for part, counts in zip(parts, windows, strict=True)]


@dataclass
class Worker:
    """A model, and the schedules of its methods. `read` and `write` may run in threads beside `fill`."""

    model: Model
    schedules: Mapping[Label, Plan]
    options: SampleOptions
    requests: Requests

    def read(self, batch: Batch) -> Inputs:
        """Read the images and masks of a batch. Raises ReadError for a file that cannot be read."""
        jobs = batch.jobs
        try:
            pairs = [job.read(self.options) for job in jobs]
            conditions = self.model.conditions(batch.label, jobs)
        except (ValueError, OSError) as error:
            raise ReadError(str(error)) from error
        texts = [self.requests.stored(batch.label, job) for job in jobs]
        holes = [loaded.hole for _, loaded in pairs]
        return Inputs([image for image, _ in pairs], holes, conditions, texts)

    def fill(self, batch: Batch, inputs: Inputs, on_step: Callable[[int], None]) -> Inpainted:
        """Fill the images of a batch; `on_step` receives the number of finished network calls, at most the planned ones."""
        names = [job.name for job in batch.jobs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MaskWarning)  # reported before, for all masks in one line
            return self.model.fill(
                batch.label,
                self.schedules[batch.label],
                inputs.images,
                inputs.holes,
                inputs.conditions,
                names,
                on_step,
            )

    def write(self, batch: Batch, inputs: Inputs, result: Inpainted) -> list[str]:
        """Write the files of a batch. Returns an error message for each image, empty on success."""
        samples, problems = self.options.num_samples, [""] * len(batch.jobs)
        rows = zip(batch.jobs, inputs.images, inputs.holes, inputs.texts, strict=True)
        for number, (job, image, hole, text) in enumerate(rows):
            try:
                for sample, path in enumerate(job.outputs):
                    index = number * samples + sample
                    write_image(path, result.images[index], text)
                    check_known(path, image, hole, feather=self.options.feather)
                    if job.raw:
                        write_image(job.raw[sample], result.raw[index], text)
                if job.mask_output is not None:
                    write_hole(job.mask_output, hole)
            except OSError as error:
                problems[number] = f"cannot be written: {error}"
        return problems


def usage_of(result: Inpainted) -> Usage:
    """Network calls, VJPs, seconds, bytes and training passes of a filled batch, for the log of its run."""
    return Usage(result.nfe, result.vjp, result.seconds, result.peak_memory, result.training)


def write_image(path: Path, image: Image.Image, text: PngInfo | None = None) -> None:
    """Write a PNG file with text chunks, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)


def check_known(path: Path, image: Image.Image, hole: Hole, *, feather: int = 0) -> None:
    """Assert that a written file equals `image` bit for bit, farther than `feather` pixels from the hole."""
    with open_file(path) as written:
        differ = (np.asarray(written) != np.asarray(image)).any(2)
    near = hole > 0
    if feather and near.any():
        from scipy.ndimage import distance_transform_cdt

        near = np.asarray(distance_transform_cdt(~near, metric="chessboard")) <= feather
    assert not (differ & ~near).any(), f"known pixels differ in {path}"
