"""What the train command prints on stderr: a block at the start, the progress, and no adverts of libraries."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from rad.console import counted, report
from rad.inpainting.memory import peak_memory
from rad.models.lora import trainable
from rad.training.module import get_setting, logs_at

MEASURED = 10
"""Steps after the first one, from which the duration of a run is estimated."""

DROPPED = re.compile(
    r"^\n?Tip: |^(GPU|TPU|HPU|IPU) available|^LOCAL_RANK|^💡|^(\[rank: \d+\] )?Seed set to |^Initializing distributed: |"
    r"^-+\ndistributed_backend=|^(Restoring states|Restored all states) from the checkpoint|"
    r"^`Trainer\.fit` stopped: `max_steps=|^Using .* Automatic Mixed Precision"
)
"""Lightning's messages without information for a run, or with what `Status` prints."""

FOREIGN = (
    ".* in eval mode",  # autoencoders and text encoders are frozen
    ".*LeafSpec.* is deprecated",
    ".*torch.distributed.nn.functional.all_gather",
    ".*does not have many workers",
    "The number of training batches .* is smaller than the logging interval",  # `Status` counts steps instead
)
"""Warnings of Lightning and torch that a user of rad cannot act on, or should not."""


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, adverts and foreign warnings are not printed; other messages are."""

    def wanted(record: logging.LogRecord) -> bool:
        return DROPPED.search(record.getMessage()) is None

    names = ("", "lightning", "lightning.pytorch", "lightning.fabric")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            for pattern in FOREIGN:
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(wanted)


class Status(Callback):
    """Prints the size of the run at its start, then a bar of steps on a terminal, or a line at each logged step.

    Args:
        bar: whether a terminal shows a bar; a line replaces it otherwise.
    """

    def __init__(self, bar: bool = True) -> None:
        self.bar = bar
        self._tqdm: tqdm | None = None
        self._first = self._latest = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first = self._latest = trainer.global_step
        self._images, self._timed = 0, False
        self._start: float | None = None  # of the measured time: the first step of a process is slower
        self._measured_steps = self._measured_images = 0
        if not trainer.is_global_zero:
            return
        for name, value in describe(trainer, pl_module).items():
            report(f"{name:<10} {value}")
        interval, steps = get_setting(trainer, "log_every_n_steps"), last_step(trainer)
        if interval > 0 and steps > self._first and steps // interval == self._first // interval:
            report(
                f"warning: no training curves: the run ends before a multiple of trainer.log_every_n_steps {interval}; lower it"
            )
        if self.bar and shows_bar():
            self._tqdm = tqdm(total=last_step(trainer), initial=self._first, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: dict, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        self._images += len(batch["image"]) * trainer.world_size
        step = trainer.global_step
        if step == self._latest:
            return
        self._latest = step
        now = time.perf_counter()
        if self._start is None:
            self._start, self._measured_steps, self._measured_images = now, step, self._images
        elapsed, done = now - self._start, step - self._measured_steps
        loss = trainer.callback_metrics.get("train/loss")
        if self._tqdm is not None:
            self._tqdm.update()
            if loss is not None and logs_at(trainer, step):
                self._tqdm.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
            return
        left = last_step(trainer) - step
        if done == MEASURED and left > 0 and not self._timed:
            report(f"{counted(left, 'step')} left: about {duration(elapsed / done * left)}")
        if logs_at(trainer, step):
            parts = [] if loss is None else [f"loss {float(loss):.4f}"]
            if done > 0:
                rate = (self._images - self._measured_images) / elapsed
                parts += [f"{rate:.3g} images/s", *([f"{duration(elapsed / done * left)} left"] if left > 0 else [])]
                self._timed = True
            memory = peak_memory(pl_module.device) / 2**30
            report(f"step {step}/{last_step(trainer)}: {', '.join([*parts, f'peak memory {memory:.1f} GiB'])}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and trainer.is_global_zero and not trainer.sanity_checking:
            self._write(f"step {trainer.global_step}: validation loss {float(loss):.4f}")

    def _write(self, line: str) -> None:
        if self._tqdm is None:
            report(line)
        else:
            self._tqdm.clear()
            report(line)
            self._tqdm.refresh()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report a run that has reached its length; other ends have their own messages."""
        self._close()
        if trainer.is_global_zero and trainer.global_step >= last_step(trainer):
            paths = [str(getattr(callback, "best_model_path", "")) for callback in trainer.checkpoint_callbacks]
            report(": ".join([f"finished at step {trainer.global_step}", *[path for path in paths if path][:1]]))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None


def shows_bar() -> bool:
    """Whether stderr is a terminal with room for a bar; some containers have terminals of size 0, where tqdm prints nothing."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    size = os.get_terminal_size(sys.stderr.fileno())
    return size.columns > 0 and size.lines > 1


def last_step(trainer: L.Trainer) -> int:
    """Number of optimiser steps of the run; the data module computes it from `max_epochs` too."""
    return trainer.fit_loop.epoch_loop.max_steps


def describe(trainer: L.Trainer, module: L.LightningModule) -> dict[str, str]:
    """Size and place of a run, by heading."""
    data = get_setting(trainer, "datamodule")
    trained = sum(weight.numel() for weight in trainable(module).values())
    total = sum(weight.numel() for weight in module.parameters())
    world, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    device = module.device
    if device.type == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    else:
        name = device.type
    batch = [f"{data.batch_size} images"]
    batch += [f"{world} devices"] if world > 1 else []
    batch += [f"{accumulated} accumulated"] if accumulated > 1 else []
    size = data.batch_size * world * accumulated
    validated = f"{len(data.val_images):,}"
    if data.val_limit is not None and data.val_limit < len(data.val_images):
        validated = f"{data.val_limit:,} of {validated}"
    return {
        "run folder": str(Path(trainer.default_root_dir)),
        "parameters": f"{trained:,} trained of {total:,}",
        "images": f"{len(data.train_images):,} for training, {validated} for validation",
        "batch": " x ".join(batch) + (f" = {size}" if len(batch) > 1 else "") + " a step",
        "steps": f"{trainer.global_step:,} to {last_step(trainer):,}",
        "precision": str(trainer.precision),
        "devices": f"{world} x {name}",
    }


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
