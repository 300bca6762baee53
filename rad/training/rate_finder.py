"""Learning-rate range test (Smith 2017, arXiv 1506.01186): the rate rises exponentially from step to step.

The loss of one batch depends far more on its timesteps than on a few steps of training. Each loss is therefore divided by the
loss of the initial weights on the same batch and draws. Both are averaged over the last steps.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rad.console import report
from rad.images.atomic import replacing, write_text
from rad.models.lora import swapped, trainable
from rad.training.autoencoder import AutoencoderTraining
from rad.training.diffusion import Diffusion
from rad.training.module import Batch, TrainingModule
from rad.training.schedules import Schedule

LOW, HIGH = 1e-7, 1.0
"""Range of learning rates."""

SMOOTHING = 0.9
"""Decay of the averages over the steps."""

DIVERGED = 2.0
"""Ratio to the loss of the initial weights at which the test ends."""

LEAST_STEPS = 20


class Point(NamedTuple):
    """One step: its learning rate, its loss, the loss of the initial weights, and the ratio of their averages."""

    rate: float
    loss: float
    start: float
    ratio: float


@dataclass(frozen=True)
class Suggestion:
    """Rates of the usual rules: the steepest descent of the ratio over log(rate), and a tenth of its minimum's."""

    steepest: float
    tenth: float


def suggest(points: Sequence[Point]) -> Suggestion:
    """Rates from a curve. Raises ValueError if it is too short, or its loss falls nowhere."""
    if len(points) < 4:
        raise ValueError(
            f"the learning-rate curve has {len(points)} steps before the loss diverged; it needs at least 4"
        )
    ratios = [point.ratio for point in points]
    low = min(range(len(points)), key=ratios.__getitem__)
    slopes = [
        (ratios[step + 1] - ratios[step - 1]) / math.log(points[step + 1].rate / points[step - 1].rate)
        for step in range(1, len(points) - 1)
    ]
    steepest = min(range(len(slopes)), key=slopes.__getitem__)
    if slopes[steepest] >= 0 or low == 0:
        raise ValueError(
            "the loss falls at no learning rate of the test: give more steps, such as --find_lr 300, or larger batches"
        )
    return Suggestion(points[steepest + 1].rate, points[low].rate / 10)


class RateFinder(Callback):
    """Runs the range test over the trainer's steps and writes the curve; the initial weights return at the end.

    Args:
        steps: number of optimiser steps, at least 20; the trainer's `max_steps`.
        folder: takes lr_find.csv and lr_find.png.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        if steps < LEAST_STEPS:
            raise ValueError(f"--find_lr is {steps} steps; allowed are {LEAST_STEPS} or more")
        self.steps, self.folder = steps, folder
        self.points: list[Point] = []
        self._losses: list[tuple[float, float]] = []
        self._means = (0.0, 0.0)

    def prepare(self, module: TrainingModule) -> None:
        """Replace the learning rates of `module` by those of the test."""
        module.schedule, module.lr_scheduler = Schedule(), self._rates

    def _rates(self, optimizer: Optimizer) -> LambdaLR:
        base = float(optimizer.param_groups[0]["lr"])
        return LambdaLR(optimizer, lambda step: LOW * (HIGH / LOW) ** (step / (self.steps - 1)) / base)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size != 1:
            raise ValueError(
                f"--find_lr runs on one device, and this run has {trainer.world_size}: give --trainer.devices 1, and "
                "--trainer.accumulate_grad_batches to keep the images of a step"
            )
        self._start = {name: weight.detach().clone() for name, weight in trainable(pl_module).items()}

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        with swapped(pl_module, self._start), trainer.precision_plugin.train_step_context():
            self._start_loss = float(_mean_loss(pl_module, batch))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        # Lightning divides the loss by the number of accumulated batches.
        self._losses.append((float(loss.detach()) * trainer.accumulate_grad_batches, self._start_loss))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        loss, start = (sum(values) / len(self._losses) for values in zip(*self._losses, strict=True))
        self._losses = []
        pairs = zip(self._means, (loss, start), strict=True)
        above, below = self._means = tuple(SMOOTHING * mean + (1 - SMOOTHING) * value for mean, value in pairs)
        diverged = not math.isfinite(loss) or loss > 2 * DIVERGED * start or above > DIVERGED * below
        if math.isfinite(loss):
            self.points.append(Point(self._rate, loss, start, above / below))
        trainer.should_stop = trainer.should_stop or diverged

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            for name, weight in self._start.items():
                pl_module.get_parameter(name).copy_(weight)

    def finish(self) -> Suggestion:
        """Write the curve and report the suggested rates. Raises ValueError as `suggest`."""
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("step", "learning_rate", "loss", "loss_of_the_start", "smoothed_ratio"))
        rows.writerows((step, *point) for step, point in enumerate(self.points))
        write_text(self.folder / "lr_find.csv", table.getvalue())
        suggestion = suggest(self.points)
        with replacing(self.folder / "lr_find.png") as temporary:
            plot(self.points, suggestion, temporary)
        report(
            f"suggested learning rate {suggestion.steepest:.1e} (steepest descent), or {suggestion.tenth:.1e} (a tenth of the "
            f"rate with the least loss): set --model.optimizer.lr. Curve: {self.folder / 'lr_find.png'}"
        )
        return suggestion


def plot(points: Sequence[Point], suggestion: Suggestion, file: Path) -> None:
    """Write the ratio over the rate as PNG, with the suggested rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.semilogx([point.rate for point in points], [point.ratio for point in points], color="#1f5f8b")
    for label, rate, style in (
        ("steepest descent", suggestion.steepest, "-"),
        ("a tenth of the minimum's rate", suggestion.tenth, "--"),
    ):
        axes.axvline(rate, color="#b4532a", linestyle=style, linewidth=1, label=f"{label}: {rate:.1e}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("smoothed loss / loss of the first weights")
    axes.legend(frameon=False)
    figure.savefig(file, format="png", dpi=120)


def _mean_loss(module: L.LightningModule, batch: Batch) -> Tensor:
    """The loss of a training step, without logging it."""
    if isinstance(module, Diffusion):
        return module.losses(batch, "train")[0].total.mean()
    assert isinstance(module, AutoencoderTraining)
    return module.losses(batch, sampled=True).total.mean()
