"""Schedule-free optimisers (Defazio et al. 2024, arXiv 2405.15682), which average the weights themselves.

The network trains at y, between the optimiser's iterate z and the average x. Validation, panels and exported models use x;
checkpoints hold y and z. The library switches by `optimizer.eval()` and `optimizer.train()`; y would come back with rounding
errors, so it is kept here, and a run does not depend on how often it is validated.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer


@runtime_checkable
class Averaging(Protocol):
    """An optimiser with a mode for training and one in which the weights are its average."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


def set_training(optimizer: Optimizer) -> None:
    """Put a schedule-free optimiser into training mode; others have no mode."""
    if isinstance(optimizer, Averaging):
        optimizer.train()


@contextmanager
def evaluating(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Context in which the weights of schedule-free optimisers are their averages; the training weights return exactly."""
    with ExitStack() as stack:
        for optimizer in optimizers:
            if isinstance(optimizer, Averaging) and optimizer.param_groups[0].get("train_mode", False):
                stack.enter_context(_averaged(optimizer))
        yield


@contextmanager
def _averaged(optimizer: Optimizer) -> Iterator[None]:
    assert isinstance(optimizer, Averaging)
    weights: list[Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.detach().clone() for weight in weights]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


class AveragedValidation(Callback):
    """Validates schedule-free optimisers by their averages. Lightning calls a callback after an error, but no module."""

    def __init__(self) -> None:
        self._evaluation = ExitStack()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation.enter_context(evaluating(trainer.optimizers))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._evaluation.close()


def require_one_average(optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError for a schedule-free optimiser beside an EMA."""
    for optimizer in optimizers:
        if isinstance(optimizer, Averaging):
            raise ValueError(
                f"{type(optimizer).__name__} averages the weights itself, and rad.training.EMA would average others: remove EMA "
                "from trainer.callbacks, or use another model.optimizer"
            )
