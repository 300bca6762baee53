"""Filling in batches of images: a worker holds a model; it reads the images of a batch, fills them and writes their files."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rad.cli.sample.options import GUIDES, SampleOptions
from rad.cli.sample.plan import Job, Label, MethodRun
from rad.cli.sample.request import Requests
from rad.evaluation.run_log import Usage
from rad.images.atomic import replacing
from rad.images.formats import open_file
from rad.images.sources import ImageFile, by_stem, holds_one, list_images, match_names
from rad.inpainting.inpainter import Inpainted, Inpainter
from rad.masks.files import write_mask
from rad.masks.reading.format import MaskWarning
from rad.models.latent_mask import Grid
from rad.models.loaded_model import PLAIN, Condition

if TYPE_CHECKING:
    from rad.sampling.method import Method, Schedule

SAMPLING = ("seed", "num_samples", "size_policy", "margin", "batch_size", "feather")
"""Options that `Inpainter.__call__` takes under the same names."""

MOST_PIXELS = 2**26
"""Pixels of all samples of a batch, which bounds the memory for large images."""


class ReadError(ValueError):
    """An image or mask of a batch cannot be read. The other batches go on."""


@dataclass(frozen=True)
class WindowCount:
    """Windows of an image for each sample, and its size in pixels."""

    windows: int
    pixels: int


@dataclass(frozen=True)
class Batch:
    """Images that are filled together, with their windows; `run`: number of their MethodRun."""

    run: int
    label: Label
    jobs: list[Job]
    windows: list[int]


@dataclass(frozen=True)
class Inputs:
    """The images of a batch with their holes (1,H,W), their conditions, and the text chunks of their results."""

    images: list[Image.Image]
    holes: list[Tensor]
    conditions: Sequence[Condition] | Condition
    texts: list[PngInfo]


def make_batches(
    number: int, run: MethodRun, window_counts: Mapping[ImageFile, WindowCount], options: SampleOptions
) -> list[Batch]:
    """The jobs of run `number` with known windows, in batches of --batch_size images; fewer if they are large."""
    ready = [job for job in run.jobs if job.image in window_counts]
    parts: list[list[Job]] = []
    for start in range(0, len(ready), options.batch_size):
        total = MOST_PIXELS + 1
        for job in ready[start : start + options.batch_size]:
            pixels = options.num_samples * window_counts[job.image].pixels
            total += pixels
            if total > MOST_PIXELS:
                parts.append([])
                total = pixels
            parts[-1].append(job)
    return [Batch(number, run.label, part, [window_counts[job.image].windows for job in part]) for part in parts]


def load_inpainter(options: SampleOptions, device: str, *, planning: bool = False) -> Inpainter:
    """The model of the options; only to plan the run if `planning`. Raises ValueError or FileNotFoundError."""
    names = ("base", "precision", "channels_last", "size", "controlnet", "t2i_adapter", "ip_adapter")
    names += () if planning else ("compile", "noise_device")
    given = {name: getattr(options, name) for name in names}
    return Inpainter.from_pretrained(options.checkpoint, device=device, loras=options.loras, **given)


@dataclass
class Worker:
    """A model with its completed methods (`Inpainter.complete`). `read` and `write` may run in threads beside `fill`."""

    inpainter: Inpainter
    methods: Mapping[Label, "Method"]
    schedules: Mapping[Label, "Schedule"]
    options: SampleOptions
    requests: Requests

    def read(self, batch: Batch) -> Inputs:
        """Read the images and masks of a batch. Raises ReadError for a file that cannot be read."""
        options, jobs = self.options, batch.jobs
        try:
            images = [job.image.open() for job in jobs]
            holes = [job.hole(image, options) for job, image in zip(jobs, images, strict=True)]
        except (ValueError, OSError) as error:
            raise ReadError(str(error)) from error
        unguided = self.methods[batch.label].weights == "none"
        conditions = PLAIN if unguided else [condition_of(options, job) for job in jobs]
        return Inputs(images, holes, conditions, [self.requests.stored(batch.label, job) for job in jobs])

    def fill(self, batch: Batch, inputs: Inputs, on_step: Callable[[int], None]) -> Inpainted:
        """Fill the images of a batch; `on_step` receives the number of finished network calls, at most the planned ones."""
        options = self.options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MaskWarning)  # reported before, for all masks in one line
            return self.inpainter(
                inputs.images,
                inputs.holes,
                method=self.methods[batch.label],
                **vars(self.schedules[batch.label]),
                **{name: getattr(options, name) for name in SAMPLING},
                **encoding(options),
                names=[job.name for job in batch.jobs],
                condition=inputs.conditions,
                on_step=lambda progress: on_step(min(progress.done, progress.planned)),
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
                    write_mask(job.mask_output, hole)
            except OSError as error:
                problems[number] = f"cannot be written: {error}"
        return problems


def usage_of(result: Inpainted) -> Usage:
    return Usage(result.nfe, result.vjp, result.seconds, result.peak_memory)


def condition_of(options: SampleOptions, job: Job) -> Condition:
    """Text and guiding images of a job. Raises ValueError for a missing image."""
    guides: dict[str, Any] = {}
    for kind in GUIDES:
        source = getattr(options, f"{kind}_image")
        guides[f"{kind}_image"] = None if source is None else _guide(source, job.identity, f"--{kind}_image")
        guides[f"{kind}_scale"] = getattr(options, f"{kind}_scale")
    return Condition(job.prompt, options.negative_prompt, options.guidance, **guides)


def _guide(source: str, name: str, option: str) -> Image.Image:
    if holds_one(source):
        return list_images(source)[0].open()
    (image,) = match_names(_by_name(source, option), [name])
    if image is None:
        raise ValueError(f"{option} {source} has no image for {name}: expected one of the same name")
    return image.open()


@lru_cache(maxsize=len(GUIDES))
def _by_name(source: str, option: str) -> dict[str, ImageFile]:
    return by_stem(list_images(source), where=f"{option} {source}", what="images")


def encoding(options: SampleOptions) -> dict[str, Any]:
    chosen = options.grid is not None or options.dilate > 0
    grid = Grid(options.grid or "average", dilate=options.dilate) if chosen else None
    return {"grid": grid, "fill": "none" if options.encode_full else "smooth"}


def write_image(path: Path, image: Image.Image, text: PngInfo | None = None) -> None:
    """Write a PNG file with text chunks, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)


def check_known(path: Path, image: Image.Image, hole: Tensor, *, feather: int = 0) -> None:
    """Assert that a written file equals `image` bit for bit, farther than `feather` pixels from the hole."""
    with open_file(path) as written:
        differ = (np.asarray(written) != np.asarray(image)).any(2)
    near = (hole[0] > 0).numpy()
    if feather and near.any():
        from scipy.ndimage import distance_transform_cdt

        near = np.asarray(distance_transform_cdt(~near, metric="chessboard")) <= feather
    assert not (differ & ~near).any(), f"known pixels differ in {path}"
