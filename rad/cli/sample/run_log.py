"""Messages, costs and failures of a run; kept in the first process, whichever process fills the images."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rad.adaptation.settings import CROPS
from rad.cli.sample.fill import Batch, ReadError
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import MethodRun
from rad.cli.sample.record import OtherSettings, Record
from rad.console import counted, print_line, report
from rad.errors import NotFiniteError
from rad.evaluation.run_log import Costs, Usage
from rad.images.sources import ImageFile
from rad.inpainting.canvas.windows import Counts, Kind, total_calls

if TYPE_CHECKING:
    from rad.cli.sample.runtimes.base import Plan
    from rad.cli.sample.runtimes.onnx import Work
    from rad.sampling.state import Cost

EXPECTED = (ValueError, OSError, RuntimeError)
"""Errors whose message says enough."""


def describe(error: BaseException) -> str:
    """The message of an error; with the type of an unexpected one."""
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error} (RAD_DEBUG=1 shows where)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch ran out of memory. Loads no torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


@dataclass
class Failures:
    """Messages and images of failures, and the number of images that were written."""

    written: int = 0
    messages: list[str] = field(default_factory=list)
    images: set[ImageFile] = field(default_factory=set)

    def add(self, message: str, image: ImageFile | None = None) -> None:
        if image is not None:
            message = message.replace(f"cannot read image {image}: ", "")  # the message begins with its name
            self.images.add(image)
        self.messages.append(message)


@dataclass
class RunLog:
    """Log of one method on one mask.

    Args:
        batches: all that will be filled; where: description of the window size and the devices.
        costs: of one window, by its kind; schedule: of the method.
        record: of a comparison; without one, an error that does not concern single images ends the program.
    """

    run: MethodRun
    batches: Sequence[Batch]
    costs: "Mapping[Kind, Cost | Work]"
    schedule: "Plan"
    where: str
    options: SampleOptions
    record: Record | None
    failures: Failures

    def __post_init__(self) -> None:
        self.calls, self.training = (sum(map(of, self.batches)) for of in (self.calls_of, self.training_of))
        self._costs, self._usage = Costs(self.run.folder, shard=self.options.part), Usage()

    def calls_of(self, batch: Batch) -> int:
        """Network calls of a batch, counted for single windows."""
        return sum(map(self._calls, batch.windows))

    def _calls(self, windows: Counts) -> int:
        """Network calls of the windows of an image."""
        return self.options.num_samples * total_calls(windows, {kind: cost.nfe for kind, cost in self.costs.items()})

    def _passes(self, windows: Counts) -> int:
        """Backward passes of the windows of an image."""
        return self.options.num_samples * total_calls(windows, {kind: cost.vjp for kind, cost in self.costs.items()})

    def training_of(self, batch: Batch) -> int:
        """Training passes of a batch, for --adapt; an image without windows is not adapted to."""
        return self.run.label.given_adapt(self.options) * CROPS * sum(windows.total() > 0 for windows in batch.windows)

    @property
    def unit(self) -> str:
        """What the progress counts."""
        return "network calls and training passes" if self.training else "network calls"

    def begin(self) -> None:
        run, cost, schedule = self.run, self.costs["first"], self.schedule
        images = counted(sum(len(batch.jobs) for batch in self.batches), "image")
        windows = self.options.num_samples * sum(each.total() for batch in self.batches for each in batch.windows)
        thin = f" ({run.label.given_thin_steps(self.options)} in thin windows)" if "thin" in self.costs else ""
        how = (
            f" with {counted(schedule.steps, 'step')}{thin} ({schedule.solver}, {schedule.spacing})" if cost.nfe else ""
        )
        passes = sum(self._passes(windows) for batch in self.batches for windows in batch.windows)
        backward = f" and {counted(passes, 'backward pass')}" if cost.vjp else ""
        training = f" and {counted(self.training, 'training pass')}" if self.training else ""
        report(
            f"{f'{run.mask}: ' if self.record else ''}{images}, {counted(windows, 'window')}, {run.label.text}{how}: "
            f"{counted(self.calls, 'network call')}{backward}{training} {self.where}"
        )

    def end(self) -> None:
        usage = self._usage
        backward = f", {usage.vjp} VJP" if usage.vjp else ""
        each = f", {1000 * usage.seconds / usage.nfe:.1f} ms per network call of one image" if usage.nfe else ""
        where = f"s in the sampler{each}"
        if usage.training:
            where = f"s in training and sampler, {counted(usage.training, 'training pass')}"
        report(
            f"{self.run.label.text}: {usage.nfe} NFE{backward}, {usage.seconds:.1f} {where}, "
            f"peak memory {usage.peak_memory / 2**20:.0f} MiB"
        )

    def filled(self, batch: Batch, usage: Usage) -> None:
        """Record the cost of a batch, before its files are written. Raises OtherSettings if its results do not fit the folder."""
        self._usage += usage
        if self.record is None:
            return
        try:
            self.record.write()
            shares = [self._calls(windows) or windows.total() for windows in batch.windows]
            self._costs.add([job.identity for job in batch.jobs], usage, shares)
        except OtherSettings:  # of another shard
            raise
        except (ValueError, OSError) as error:
            self.failures.add(f"costs of {self.run.label.text} on {self.run.mask}: {error}")

    def written(self, batch: Batch, problems: Sequence[str]) -> None:
        """Print the paths of the images without a problem."""
        for job, problem in zip(batch.jobs, problems, strict=True):
            if problem:
                self.failures.add(f"{job.image}: {problem}", job.image)
                continue
            self.failures.written += 1
            for path in job.outputs:
                print_line(path)

    def failed(self, batch: Batch, error: Exception) -> None:
        """Note the error of a batch; without a record, raise it unless it concerns the images of this batch alone."""
        if self.record is None and not isinstance(error, NotFiniteError | ReadError):
            raise error
        if os.environ.get("RAD_DEBUG"):
            traceback.print_exception(error)
        self.lost(batch, describe(error))

    def lost(self, batch: Batch, reason: str) -> None:
        for job in batch.jobs:
            self.failures.add(f"{job.image} by {self.run.label.text} on {self.run.mask}: {reason}", job.image)
