"""Exponential moving averages of the trained weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rad.models.lora import swapped, trainable
from rad.training.module import get_setting
from rad.training.optimizers import evaluating, require_one_average


class EMA(Callback):
    """Exponential moving average of the trained weights, with warm-up: decay = min(decay, 1 - (1 + step/inv_gamma)^-power).

    The average of weights in half precision is float32, since half precision rounds its small updates away. Several averages may
    run in one training, each with its own `suffix`; validation and panels use the first.

    Args:
        decay: largest decay per optimiser step, in [0,1).
        inv_gamma: scale of the warm-up in steps, above 0.
        power: exponent of the warm-up, above 0. RAD's code has 3/4; 2/3 suits long runs.
        suffix: the average is exported to `step=N-SUFFIX`.

    `rad.training.PowerEMA` is an average whose length can be chosen after training.
    """

    def __init__(self, decay: float = 0.9999, inv_gamma: float = 1.0, power: float = 0.75, suffix: str = "ema") -> None:
        if not (0 <= decay < 1 and 0 < inv_gamma < math.inf and 0 < power < math.inf):
            raise ValueError(
                f"EMA has decay {decay}, inv_gamma {inv_gamma}, power {power}; allowed are [0,1), > 0, > 0"
            )
        if not suffix.replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"EMA has suffix {suffix!r}; allowed are letters, digits, '_' and '.'")
        self.decay, self.inv_gamma, self.power, self.suffix = decay, inv_gamma, power, suffix
        self.step = 0
        self.weights: dict[str, Tensor] = {}
        self._swap = ExitStack()

    @property
    def state_key(self) -> str:
        """Name of this average's state in a checkpoint."""
        return "EMA" if self.suffix == "ema" else f"EMA-{self.suffix}"

    def decay_at(self, step: int) -> float:
        """The decay of update number `step` = 1, 2, ..."""
        return min(self.decay, 1 - (1 + step / self.inv_gamma) ** -self.power)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        require_one_average(trainer.optimizers)
        parameters = trainable(pl_module)
        if not self.weights:
            self.weights = {name: p.detach().clone() for name, p in parameters.items()}
        self.weights = {name: _wide(w, parameters[name]) for name, w in self.weights.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step > self.step:
            self.update(pl_module, trainer.global_step)

    def update(self, pl_module: L.LightningModule, step: int) -> None:
        self.step = step
        parameters = trainable(pl_module)
        averages = [self.weights[name] for name in parameters]
        weights = [p.detach().to(average.dtype) for p, average in zip(parameters.values(), averages, strict=True)]
        get_ema_multi_avg_fn(self.decay_at(step))(averages, weights, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights and self is find_averages(trainer)[0]:
            self._swap.enter_context(swapped(pl_module, self.weights))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._swap.close()

    def settings(self) -> dict[str, object]:
        """Recorded in checkpoints; a resumed run reports the differences."""
        return {"decay": self.decay, "inv_gamma": self.inv_gamma, "power": self.power}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.weights = state_dict["step"], state_dict["weights"]


def _wide(average: Tensor, weight: Tensor) -> Tensor:
    """`average` on the device of `weight`, in its dtype or in float32 if that is wider."""
    return average.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


@contextmanager
def replaced(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which new parameters with `weights`, in their own dtype, stand in for the named ones; for exports."""
    before = {name: module.get_parameter(name) for name in weights}
    try:
        for name, weight in weights.items():
            _set_parameter(module, name, nn.Parameter(weight))
        yield
    finally:
        for name, parameter in before.items():
            _set_parameter(module, name, parameter)


def _set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, parameter)


@contextmanager
def averaged(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Within the context `module` holds averaged weights: of the first EMA callback, or of a schedule-free optimiser."""
    ema = first_average(trainer)
    if ema is None:
        with evaluating(trainer.optimizers):
            yield
        return
    with swapped(module, ema.weights):
        yield


def find_averages(trainer: L.Trainer) -> list[EMA]:
    return [callback for callback in get_setting(trainer, "callbacks") if isinstance(callback, EMA)]


def first_average(trainer: L.Trainer) -> EMA | None:
    """The first EMA callback with weights, which stands for the model in validation, panels and metrics."""
    return next((ema for ema in find_averages(trainer) if ema.weights), None)
