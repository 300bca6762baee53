"""Before anything is filled: checks of prompts and methods, the windows of each image, and previews of its hole."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from rad.cli.sample.fill import WindowCount, write_image
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Job, MethodRun
from rad.cli.sample.run_log import Failures
from rad.cli.sample.runtimes.base import Model
from rad.console import print_line, report
from rad.images.grid import blend
from rad.images.sources import ImageFile
from rad.masks.reading.hole import Hole, LoadedHole
from rad.masks.reading.written import same_hole

COLOUR, STRENGTH = (1.0, 0.0, 0.0), 0.6
"""Of the hole in a preview: red, and its share."""


@dataclass
class MaskMessages:
    """Messages about mask files; equal ones become one line."""

    masks: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def add(self, name: str, mask: LoadedHole) -> None:
        for kind, messages in {"note": mask.notes, "warning": mask.warnings}.items():
            for message in messages:
                self.masks.setdefault((kind, message), {})[name] = None

    def report(self) -> None:
        for (kind, message), names in self.masks.items():
            first = next(iter(names))
            report(f"{kind}: {first if len(names) == 1 else f'{len(names)} masks, such as {first}'}: {message}")


def check_model(model: Model, options: SampleOptions, jobs: Sequence[Job]) -> None:
    """Raise ValueError for prompts, latent options and a margin that the model cannot use."""
    model.check(jobs)
    most = (model.size[0] - 1) // 2
    if options.size_policy in ("crop", "pyramid") and options.margin is not None and options.margin > most:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to {most} with this model")


def count_windows(
    model: Model, jobs: Iterable[Job], options: SampleOptions, failures: Failures, thin: Collection[bool]
) -> dict[ImageFile, WindowCount]:
    """Windows of each readable image; the others are added to `failures`. Reports what its mask file leaves open.

    `thin`: whether thin windows are counted apart; both values for methods of both kinds.
    Raises ValueError if the folder of a comparison holds results of another mask.
    """
    counts: dict[ImageFile, WindowCount] = {}
    messages = MaskMessages()
    for job in jobs:
        try:
            image, mask = job.read(options)
            windows = {apart: model.count_windows(mask.hole, thin=apart) for apart in thin}
            written = job.mask_output if options.tree and job.mask_output and job.mask_output.exists() else None
            same = written is None or same_hole(written, mask.hole)
        except (ValueError, OSError) as error:
            failures.add(f"{job.image}: {error}", job.image)
            continue
        if not same:
            raise ValueError(
                f"{written} differs from the mask of {job.image}: give another --output, or delete the results"
            )
        messages.add(str(job.mask), mask)
        counts[job.image] = WindowCount(windows, image.width * image.height)
    messages.report()
    return counts


def preview(options: SampleOptions, runs: Sequence[MethodRun], failures: Failures) -> None:
    """For --preview_masks: write the overlay of each image and mask; print its path."""
    for run in {run.mask: run for run in runs}.values():
        messages = MaskMessages()
        for job in run.jobs:
            try:
                image, mask = job.read(options)
                write_image(job.overlay, overlay(image, mask.hole))
            except (ValueError, OSError) as error:
                failures.add(f"{job.image}: {error}", job.image)
                continue
            messages.add(str(job.mask), mask)
            failures.written += 1
            print_line(job.overlay)
        messages.report()


def overlay(image: Image.Image, hole: Hole) -> Image.Image:
    """The RGB image, tinted red where it is filled; grey parts of the hole (H,W) in [0,1] are tinted in part."""
    return blend(image, COLOUR, np.float32(STRENGTH) * hole)
