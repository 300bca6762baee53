"""Images in chunks: filled by a method and written, here or in another process; and the account of it, which is kept here."""

import argparse
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rad.cli.guidance_options import conditions_of
from rad.cli.plan import Job, Label, MethodRun
from rad.cli.record import Record
from rad.console import Progress, counted, report
from rad.evaluation.run_log import Costs, Usage
from rad.images.atomic import replacing
from rad.images.sources import ImageFile
from rad.masks.files import write_mask

if TYPE_CHECKING:
    from rad.inpainting.inpainter import Inpainted, Inpainter
    from rad.models.loaded_model import Condition
    from rad.sampling.method import Method, Schedule
    from rad.sampling.state import Cost


LARGE = 2**26
"""Pixels of all samples of a chunk; of large images fewer are held in memory together."""


@dataclass(frozen=True)
class WindowCount:
    """What an image needs: windows for each sample; and its size in pixels."""

    windows: int
    pixels: int


@dataclass(frozen=True)
class Chunk:
    """Images that are filled together, and the windows of each; `cell`: number of theirs in the run."""

    cell: int
    label: Label
    jobs: list[Job]
    windows: list[int]


def cut(
    number: int, cell: MethodRun, needs: Mapping[ImageFile, WindowCount], options: argparse.Namespace
) -> list[Chunk]:
    """The jobs of a cell whose needs are known, as many together as --batch_size says; fewer of large images."""
    ready = [job for job in cell.jobs if job.image in needs]
    parts: list[list[Job]] = []
    for start in range(0, len(ready), options.batch_size):
        pixels = 2 * LARGE
        for job in ready[start : start + options.batch_size]:
            pixels += options.num_samples * needs[job.image].pixels
            if pixels > LARGE:
                parts.append([])
                pixels = options.num_samples * needs[job.image].pixels
            parts[-1].append(job)
    return [Chunk(number, cell.label, part, [needs[job.image].windows for job in part]) for part in parts]


class Failures:
    """What could not be done: a message each, and the images; and how many results were written."""

    def __init__(self) -> None:
        self.written = 0
        self.messages: list[str] = []
        self.images: set[ImageFile] = set()

    def add(self, message: str, image: ImageFile | None = None) -> None:
        self.messages.append(message)
        if image is not None:
            self.images.add(image)


EXPECTED = (ValueError, OSError, RuntimeError)
"""Errors whose message says enough."""


def told(error: Exception) -> str:
    """What is said of an error: of one that nobody expected, its kind too."""
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error} (RAD_DEBUG=1 shows where)"


class Listener(Protocol):
    """Who hears what becomes of a chunk: made and then written, or failed."""

    def made(self, chunk: Chunk, effort: Usage) -> None: ...
    def written(self, chunk: Chunk, problems: list[str]) -> None: ...
    def failed(self, chunk: Chunk, error: Exception) -> None: ...


@dataclass
class Worker:
    """A model at work.

    Args:
        methods: with all that they need besides the model; schedules: of each.
    """

    inpainter: "Inpainter"
    methods: Mapping[Label, "Method"]
    schedules: Mapping[Label, "Schedule"]
    options: argparse.Namespace

    def fill(self, chunk: Chunk, listener: Listener, on_step: Callable[[int], None]) -> None:
        """Fill the images of a chunk and write their files; `on_step` gets the network calls done."""
        try:
            images = [job.image.open() for job in chunk.jobs]
            holes = [
                job.hole((image.height, image.width), self.options)
                for job, image in zip(chunk.jobs, images, strict=True)
            ]
            result = self._inpaint(chunk, images, holes, on_step)
        except Exception as error:  # of a method that somebody wrote it may be any, and the others go on
            listener.failed(chunk, error)
            return
        listener.made(chunk, Usage(result.nfe, result.vjp, result.seconds, result.peak_memory))
        listener.written(chunk, self._write(chunk.jobs, images, holes, result))

    def _inpaint(
        self, chunk: Chunk, images: list[Image.Image], holes: list[Tensor], on_step: Callable[[int], None]
    ) -> "Inpainted":
        from rad.models.loaded_model import PLAIN

        options = self.options
        plain = self.methods[chunk.label].weights == "none"  # nobody is told
        return self.inpainter(
            images,
            holes,
            method=self.methods[chunk.label],
            **vars(self.schedules[chunk.label]),
            seed=options.seed,
            num_samples=options.num_samples,
            size_policy=options.size_policy,
            margin=options.margin,
            batch_size=options.batch_size,
            names=[job.name for job in chunk.jobs],
            condition=[PLAIN] * len(chunk.jobs) if plain else self._conditions(chunk.jobs),
            **encoding(options),
            feather=options.feather,
            on_step=lambda done, _: on_step(done),
        )

    def _conditions(self, jobs: Sequence[Job]) -> "list[Condition]":
        return conditions_of(self.options, [job.identity for job in jobs], prompts=[job.prompt for job in jobs])

    def _write(self, jobs: list[Job], images: list[Image.Image], holes: list[Tensor], result: "Inpainted") -> list[str]:
        """For each job what went wrong; empty where nothing did."""
        samples, problems = self.options.num_samples, [""] * len(jobs)
        for number, (job, image, hole) in enumerate(zip(jobs, images, holes, strict=True)):
            try:
                for sample, path in enumerate(job.outputs):
                    index = number * samples + sample
                    write_image(path, result.images[index])
                    check_known(path, image, hole, feather=self.options.feather)
                    if job.raw:
                        write_image(job.raw[sample], result.raw[index])
                if job.mask_output is not None:
                    write_mask(job.mask_output, hole)
            except OSError as error:
                problems[number] = f"cannot be written: {error}"
        return problems


class RunLog:
    """What one method does on one mask, as it is told and recorded.

    Args:
        chunks: that will be filled; work, schedule: of the method for one window.
        size: of a window; where: the device or devices.
        record: of a comparison.
    """

    def __init__(
        self,
        cell: MethodRun,
        chunks: Sequence[Chunk],
        work: "Cost",
        *,
        schedule: "Schedule",
        size: tuple[int, int],
        where: str,
        options: argparse.Namespace,
        record: Record | None,
        failures: Failures,
    ) -> None:
        self.cell, self.chunks, self.work, self.record, self.failures = cell, chunks, work, record, failures
        self.samples = options.num_samples
        self.calls = sum(self.calls_of(chunk) for chunk in chunks)
        self._costs = Costs(cell.folder, shard=options.shard)
        self._spent = Usage()
        count = self.samples * sum(sum(chunk.windows) for chunk in chunks)
        backward = f" and {counted(count * work.vjp, 'backward pass')}" if work.vjp else ""
        how = f" with {counted(schedule.steps, 'step')} ({schedule.solver}, {schedule.spacing})" if work.nfe else ""
        self._headline = (
            f"{f'{cell.mask}: ' if record else ''}"
            f"{counted(sum(len(chunk.jobs) for chunk in chunks), 'image')}, {counted(count, 'window')}, "
            f"{cell.label.text}{how}: {counted(self.calls, 'network call')}{backward} "
            f"of a {size[1]}x{size[0]} image on {where}"
        )

    def calls_of(self, chunk: Chunk) -> int:
        """Network calls of a chunk, counted for single windows."""
        return self.samples * sum(chunk.windows) * self.work.nfe

    def begin(self) -> None:
        report(self._headline)

    def end(self) -> None:
        spent = self._spent
        backward = f", {spent.vjp} VJP" if spent.vjp else ""
        each = f", {1000 * spent.seconds / spent.nfe:.1f} ms a network call of one image" if spent.nfe else ""
        report(
            f"{self.cell.label.text}: {spent.nfe} NFE{backward}, {spent.seconds:.1f} s in the sampler{each}, "
            f"peak memory {spent.peak_memory / 2**20:.0f} MiB"
        )

    def made(self, chunk: Chunk, effort: Usage) -> None:
        """Before anything is written. Of a comparison the costs are recorded; a failure of that loses no images."""
        self._spent += effort
        if self.record is None:
            return
        try:
            self.record.write()
            self._costs.add([job.identity for job in chunk.jobs], effort, chunk.windows)
        except (ValueError, OSError) as error:
            self.failures.add(f"costs of {self.cell.label.text} on {self.cell.mask}: {error}")

    def written(self, chunk: Chunk, problems: list[str]) -> None:
        for job, problem in zip(chunk.jobs, problems, strict=True):
            if problem:
                self.failures.add(f"{job.image}: {problem}", job.image)
                continue
            self.failures.written += 1
            for path in job.outputs:
                print(path)

    def failed(self, chunk: Chunk, error: Exception) -> None:
        """A comparison goes on with the next chunk; otherwise the error is raised."""
        if self.record is None:
            raise error
        if os.environ.get("RAD_DEBUG") and error.__traceback__:  # another process has shown its own
            traceback.print_exception(error)
        self.lost(chunk, told(error))

    def lost(self, chunk: Chunk, reason: str) -> None:
        for job in chunk.jobs:
            self.failures.add(f"{job.image} by {self.cell.label.text} on {self.cell.mask}: {reason}", job.image)


def fill_here(filler: Worker, accounts: Sequence[RunLog]) -> None:
    """Fill all chunks, in this process."""
    for account in (one for one in accounts if one.chunks):
        account.begin()
        with Progress(account.calls) as progress:
            for chunk in account.chunks:
                before = progress.done
                filler.fill(chunk, account, lambda done, before=before: progress.update(before + done))
        account.end()


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG, which is whole if it is there."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def encoding(options: argparse.Namespace) -> dict[str, Any]:
    """How a latent model sees an image and its hole, as `Inpainter` takes it."""
    from rad.models.latent_mask import Grid

    told = options.grid is not None or bool(options.dilate)
    grid = Grid(options.grid or "average", dilate=options.dilate) if told else None
    return {"grid": grid, "fill": "none" if options.encode_full else "smooth"}


def check_known(path: Path, image: Image.Image, hole: Tensor, *, feather: int = 0) -> None:
    """Read the file again and compare its known pixels, farther than `feather` from the hole, with the input's, bit for bit."""
    with Image.open(path) as written:
        differ = (np.asarray(written) != np.asarray(image)).any(2)
    near = (
        F.max_pool2d((hole[None] > 0).float(), 2 * feather + 1, stride=1, padding=feather)[0, 0] if feather else hole[0]
    )
    assert not (differ & (near == 0).numpy()).any(), f"known pixels differ in {path}"
