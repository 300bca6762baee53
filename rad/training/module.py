"""Base class of our LightningModules: optimiser, hyperparameters, checkpoints of the trained weights, validation means."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from inspect import signature
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from rad.console import report
from rad.models.lora import trainable
from rad.rng import check_seed
from rad.training.changes import OBJECTS, continue_run, run_settings
from rad.training.logs.curves import Curves
from rad.training.logs.loggers import log_values
from rad.training.optimizers import AveragedValidation, Averaging, set_training
from rad.training.schedules import Schedule

Batch = Mapping[str, Any]
"""From `rad.data.ImageDataModule`: "image" (B,3,H,W) in [-1,1], "position" (B,) int64 in the run, on the CPU; often "hole",
"text" and "draws", see `rad.data.draws.Draws`."""

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
"""With this entry, hyperparameters of plain values become arguments in `load_from_checkpoint`, as for runs of LightningCLI."""

HALF = (torch.bfloat16, torch.float16)
"""Dtypes of the trained weights at precision "bf16-true" and "16-true"."""


class SavedState(Protocol):
    """A part of a module with a state beside its weights; an empty state is not saved."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class DefaultOptimizer:
    """The default `optimizer` of a module class; unlike the lambda itself, it can be sent to other processes."""

    def __init__(self, module: type["TrainingModule"]) -> None:
        self.module = module

    def __call__(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return _default_optimizer(self.module)(weights)


def _default_optimizer(module: type["TrainingModule"]) -> Any:
    parameter = signature(module.__init__).parameters.get("optimizer")
    return None if parameter is None else parameter.default


class TrainingModule(L.LightningModule):
    """Base class of `Diffusion` and `AutoencoderTraining`.

    A subclass builds its networks in `configure_model`, within `rad.modes.float32_modes`; checkpoints hold only trained weights.

    Args:
        optimizer, schedule, lr_scheduler, seed: see `Diffusion`; shard_optimizer: see `rad.training.execution.Execution`.
        means: names of the validation losses, logged as val/NAME.
    """

    reports_changes = True  # on resume; `ImageDataModule` then leaves the report to this module

    def __init__(
        self,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        lr_scheduler: LRSchedulerCallable | None,
        *,
        seed: int,
        means: Sequence[str],
        shard_optimizer: bool = False,
    ) -> None:
        super().__init__()
        if lr_scheduler is not None and schedule != Schedule():
            raise ValueError(
                "model.lr_scheduler replaces model.schedule: set model.schedule.name to constant and "
                "model.schedule.warmup_steps to 0, or remove model.lr_scheduler"
            )
        default = optimizer is _default_optimizer(type(self))
        self.optimizer: OptimizerCallable = DefaultOptimizer(type(self)) if default else optimizer
        self.schedule, self.lr_scheduler = schedule, lr_scheduler
        self.seed, self.shard_optimizer = check_seed(seed), shard_optimizer
        self.curves = Curves()
        """Means of the training curves; checkpoints keep them, because a resume may lie within an interval."""
        self.changes: list[str] = []
        """What resumes have changed, each with its step; kept in checkpoints."""
        self.saved_states: dict[str, SavedState] = {}
        """Objects whose state is kept in checkpoints, by name."""
        self._resumed: str | None = None
        self._weights: dict[str, nn.Parameter] | None = None
        self._gradient_norm: Tensor | None = None
        self.strict_loading = False  # a checkpoint lacks the frozen weights; `on_load_checkpoint` compares the others
        # Lightning's mean over processes is wrong when they hold unequal numbers of images.
        # Its default leaves NaN out, which would hide the samples that a model fails on.
        self.val_means = nn.ModuleDict({name: MeanMetric(nan_strategy=math.nan) for name in means})

    @property
    def not_saved(self) -> Sequence[str]:
        """Arguments that `save_hyperparameters` has to ignore."""
        return ["optimizer"] if isinstance(self.optimizer, DefaultOptimizer) else []

    def identity(self) -> Mapping[str, str]:
        """Settings that a checkpoint and the run that resumes it share."""
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        averages = isinstance(self.optimizer([nn.Parameter(torch.zeros(1))]), Averaging)
        return [AveragedValidation()] if averages else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        weights = list(self.trained.values())
        if any(weight.dtype in HALF for weight in weights):
            rank_zero_warn(
                f"trainer.precision {self.trainer.precision} keeps weights and the optimiser's moments in half precision, which "
                "rounds small updates away: use bf16-mixed"
            )
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        split = self.shard_optimizer and self.trainer.world_size > 1
        optimizer = _sharded(self.optimizer, weights) if split else self.optimizer(self.weight_groups())
        if scaled and self.trainer.gradient_clip_val and unscales_in_step(optimizer):
            raise ValueError(
                "at precision 16-mixed a fused optimiser removes the loss scale in its step, after clipping: set bf16-mixed, "
                "model.optimizer.fused false, or no trainer.gradient_clip_val"
            )
        if isinstance(optimizer, Averaging) and self.schedule.name != "constant":
            rank_zero_warn(
                f"{type(optimizer).__name__} needs no decay of the learning rate, and model.schedule.name is "
                f"{self.schedule.name!r}: set it to constant"
            )
        if self.lr_scheduler is None:
            scheduler = self.schedule.build(optimizer, self.trainer.max_steps)
        else:
            scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "model.lr_scheduler is ReduceLROnPlateau, which needs a validation loss; allowed are schedulers that count "
                "optimiser steps"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def logs_now(self) -> bool:
        """Whether the trainer logs this step; with an interval of 0 it never does."""
        return logs_at(self.trainer, self.global_step + 1)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, and at the end of an interval log the means of the training curves."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.logs_now:
            log_values(self.trainer, self.curves.take(self._sum_over_processes))

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return tensor
        total = self.trainer.strategy.reduce(tensor.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def log_means(self, values: Mapping[str, Tensor]) -> None:
        """Log validation means over all images and processes; each value is (B,)."""
        for name, value in values.items():
            mean = self.val_means[name]
            assert isinstance(mean, MeanMetric)
            mean.update(value)
            self.log(f"val/{name}", mean, prog_bar=name == "loss", batch_size=len(value))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logs_now:
            self.curves.add("train/gradient_norm", self.gradient_norm())

    def weight_groups(self) -> list[dict[str, object]]:
        """The optimiser's weights, a group for each learning rate."""
        return [{"params": list(self.trained.values())}]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained weights by name, found once; empty before `configure_model`."""
        if not self._weights:
            self._weights = trainable(self)
        return self._weights

    def gradient_norm(self) -> Tensor:
        """Total norm of the gradients before clipping, computed once for each optimiser step."""
        if self._gradient_norm is None:
            grads = [weight.grad for weight in self.trained.values() if weight.grad is not None]
            self._gradient_norm = nn.utils.get_total_norm(grads)
        return self._gradient_norm

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that the guard and the log share."""
        norm, self._gradient_norm = self._gradient_norm, None
        if not gradient_clip_val:
            return
        weights = [weight for weight in self.clipped_weights() if weight.grad is not None]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(weights, gradient_clip_val)
            return
        if norm is None or len(weights) < len(self.trained):
            norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)

    def clipped_weights(self) -> Iterable[nn.Parameter]:
        """Weights whose gradients are clipped by their common norm."""
        return self.trained.values()

    def state_dict(self, **options: Any) -> dict[str, Tensor]:
        """Trained weights; frozen ones stay out of the checkpoints."""
        names = self.trained.keys()
        return {name: weight for name, weight in super().state_dict(**options).items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rad"] = {
            **self.identity(),
            "optimizer": _class_name(self.optimizer([nn.Parameter(torch.zeros(1))])),
            "settings": run_settings(self, self.trainer),
            "changes": self.changes,
            "curves": self.curves.totals(self._sum_over_processes),
            **{name: state for name, owner in self.saved_states.items() if (state := owner.state_dict())},
        }
        plain = {name: _plain(value) for name, value in self.hparams.items()}
        settings = {name: value for name, value in plain.items() if name not in OBJECTS or isinstance(value, dict)}
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {**settings, "_instantiator": INSTANTIATOR}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError for the checkpoint of another model, or of another optimiser."""
        saved, expected = checkpoint.get("rad"), dict(self.identity())
        if not isinstance(saved, dict):
            raise ValueError("the checkpoint was not written by rad: give a .ckpt of runs/NAME/checkpoints")
        wrong = [name for name, value in expected.items() if saved.get(name, value) != value]
        if wrong:
            pairs = ", ".join(f"{name} {saved[name]} -> {expected[name]}" for name in wrong)
            raise ValueError(
                f"the checkpoint belongs to another model, which cannot change at a resume ({pairs}): use the run's config.yaml"
            )
        given = {name: tuple(weight.shape) for name, weight in checkpoint["state_dict"].items()}
        wanted = {name: tuple(weight.shape) for name, weight in self.trained.items()}
        wrong = sorted(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
        if wrong:
            raise ValueError(
                f"the checkpoint trains other layers: {len(wrong)} tensors differ, the first {wrong[0]}; use its config.yaml"
            )
        for name, owner in self.saved_states.items():
            owner.load_state_dict(saved.get(name, {}))
        if self._resumes():
            if self.trainer.precision == "64-true":
                self.double()  # Lightning converts the module after loading, and would round the weights to float32
            self._require_optimizer(saved.get("optimizer"))
            self.curves.restore(saved.get("curves", {}), counted=self.trainer.is_global_zero)
            step, changes = checkpoint["global_step"], continue_run(self, self.trainer, checkpoint)
            self.changes = [*saved.get("changes", []), *([f"step {step}: {', '.join(changes)}"] if changes else [])]
            self._resumed = f"resumed at step {step}; " + (
                f"changed since the checkpoint: {', '.join(changes)}" if changes else "settings as in the checkpoint"
            )

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            set_training(optimizer)
        if self._resumed is not None and self.trainer.is_global_zero:
            report(self._resumed)

    def _resumes(self) -> bool:
        """Whether a trainer continues a run; `load_from_checkpoint` has no trainer."""
        try:
            return get_setting(self.trainer, "training")
        except RuntimeError:
            return False

    def _require_optimizer(self, saved: str | None) -> None:
        """Raise ValueError if the optimiser is of another class than the checkpoint's."""
        name = _class_name(self.optimizer([nn.Parameter(torch.zeros(1))]))
        if saved is not None and saved != name:
            raise ValueError(
                f"the checkpoint was trained with {saved}, this configuration has {name}: use its config.yaml, or start a new "
                "run from its weights with model.adapter or model.base"
            )


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def get_setting(trainer: L.Trainer, name: str) -> Any:
    """A public attribute of the Trainer that type checkers cannot see, since Lightning sets it from another class."""
    return getattr(trainer, name)


def unscales_in_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this is a fused optimiser: one whose step takes `found_inf`, and then changes nothing if it is 1."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def logs_at(trainer: L.Trainer, step: int) -> bool:
    """Whether the trainer logs optimiser step number `step` = 1, 2, ..."""
    interval: int = get_setting(trainer, "log_every_n_steps")
    return interval > 0 and step % interval == 0


def is_due(trainer: L.Trainer, interval: int, latest: int) -> bool:
    """Whether a callback acts after this step: at each multiple of `interval` (0: never), once, `latest` being its last step."""
    step = trainer.global_step
    return interval > 0 and step % interval == 0 and step != latest


def _class_name(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


class Frozen(nn.ModuleList):
    """Networks that are not trained: they follow the module to its device, and keep their dtype and eval mode."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__(networks)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        """Called by torch for moves and conversions; `Trainer(precision=...)` does not convert frozen weights."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


def _sharded(optimizer: OptimizerCallable, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """ZeRO stage 1: each process keeps the optimiser state of a part of `weights`."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    if isinstance(optimizer([nn.Parameter(torch.zeros(1))]), Averaging):
        raise ValueError(
            "model.execution.shard_optimizer splits the optimiser, and a schedule-free one averages all weights: remove one"
        )
    return ZeroRedundancyOptimizer(weights, optimizer_class=optimizer)  # pyright: ignore[reportArgumentType]
