"""Settings of a run: recorded in its checkpoints, compared when it resumes, and put into the state that it resumes from."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rad.training.optimizers import set_training

if TYPE_CHECKING:
    from rad.training.module import TrainingModule

OBJECTS = ("optimizer", "lr_scheduler", "masks")
"""Arguments of a module that are objects; a run of LightningCLI describes them by plain values."""

TRAINER_SETTINGS = (
    "max_steps",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)

Checkpoint = dict[str, Any]

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


@runtime_checkable
class Recorded(Protocol):
    """A data module or callback whose settings are kept in checkpoints."""

    def settings(self) -> Mapping[str, object]:
        """By name, values that `plain` describes."""
        ...


def plain(value: object) -> Plain:
    """`value` as a value that a checkpoint may hold; an object becomes its class and its public plain attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items() if not str(name).startswith("_")}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(entry) for entry in value]
    content = {"class": f"{type(value).__module__}.{type(value).__qualname__}"}
    if is_dataclass(value):
        return content | {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return content | {
        name: plain(entry)
        for name, entry in getattr(value, "__dict__", {}).items()
        if not name.startswith("_") and (entry is None or isinstance(entry, bool | int | float | str | list | tuple))
    }


def describe_optimizer(optimizer: Optimizer) -> dict[str, Plain]:
    """Class and settings of an optimiser before its first step, without the weights."""
    group = optimizer.param_groups[0]
    settings = {name: plain(value) for name, value in group.items() if name not in ("params", "initial_lr")}
    return {"class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}", **settings}


def state_names(optimizer: Optimizer) -> set[str]:
    """Names of the tensors that an optimiser of one weight keeps for it, found by a step."""
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad = torch.zeros_like(weight)
    set_training(optimizer)
    optimizer.step(lambda: 0.0)
    return set(optimizer.state[weight])


def differences(before: Mapping[str, Plain], now: Mapping[str, Plain]) -> dict[str, tuple[Plain, Plain]]:
    """Settings that differ, by dotted name. Settings that one side lacks belong to another version, and are left out."""
    changed: dict[str, tuple[Plain, Plain]] = {}
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if (
            isinstance(old, dict) and isinstance(new, dict) and not name.endswith("_pattern")
        ):  # these have names of layers
            if "class" in old and "class" in new and old["class"] != new["class"]:
                changed[name] = old, new
            else:
                changed |= {f"{name}.{rest}": pair for rest, pair in differences(old, new).items()}
        elif old != new and not (_is_nan(old) and _is_nan(new)):
            changed[name] = old, new
    return dict(sorted(changed.items()))


def _is_nan(value: Plain) -> bool:
    return isinstance(value, float) and value != value


def shown(value: Plain) -> str:
    """A value in a message: short, in the notation of the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        name = value.get("class")
        return (
            str(name).rpartition(".")[2] if name else f"{{{', '.join(f'{k}: {shown(v)}' for k, v in value.items())}}}"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def run_settings(module: "TrainingModule", trainer: L.Trainer) -> dict[str, Plain]:
    """Settings that influence the results of a run, by group."""
    optimizer = module.optimizer([_dummy_weight()])
    model = {name: plain(value) for name, value in module.hparams.items() if name not in OBJECTS and name[0] != "_"}
    model["optimizer"] = describe_optimizer(optimizer)
    if module.lr_scheduler is not None:
        state = vars(module.lr_scheduler(optimizer)).items()
        model["lr_scheduler"] = {name.strip("_"): plain(value) for name, value in state if name != "optimizer"}
    if hasattr(module, "masks"):
        model["masks"] = plain(module.masks)
    settings: dict[str, Plain] = {
        "model": {"lr_scheduler": None, **model},
        "trainer": {
            **{name: plain(getattr(trainer, name)) for name in TRAINER_SETTINGS},
            "devices": trainer.world_size,
        },
    }
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, Recorded):
        settings["data"] = plain(data.settings())
    callbacks: list[Any] = [entry for entry in getattr(trainer, "callbacks", []) if isinstance(entry, Recorded)]
    settings["trainer.callbacks"] = [callback.state_key for callback in callbacks]
    return settings | {callback.state_key: plain(callback.settings()) for callback in callbacks}


def continue_run(module: "TrainingModule", trainer: L.Trainer, checkpoint: Checkpoint) -> list[str]:
    """Change `checkpoint` in place to the present settings, before it is restored. Returns what changed, in words.

    Weights, averages, moments of the optimiser and the position in the data stay. Raises ValueError for a change that cannot
    take effect.
    """
    changed = differences(_settings_before(checkpoint), run_settings(module, trainer))
    _require_state(module, changed, checkpoint)
    _require_steps_left(trainer, checkpoint)
    words = _set_optimizer(module, trainer, changed, checkpoint)
    if "trainer.accumulate_grad_batches" in changed:
        _recount_batches(checkpoint, trainer.accumulate_grad_batches)
    changed.pop("model.optimizer.lr", None)
    for name, (old, new) in changed.items():
        unused = " (without effect: the checkpoint's weights are used)" if name == "model.adapter" else ""
        words.append(f"{name} {shown(old)} -> {shown(new)}{unused}")
    return words


def _settings_before(checkpoint: Checkpoint) -> Mapping[str, Plain]:
    """The settings of the checkpoint; those of earlier versions are incomplete."""
    settings = checkpoint["rad"].get("settings")
    if isinstance(settings, dict):
        return settings
    given = checkpoint.get("hyper_parameters", {})
    model = {name: plain(value) for name, value in given.items() if name not in OBJECTS and name[0] != "_"}
    for state in checkpoint.get("optimizer_states", [])[:1]:
        group = state["param_groups"][0]
        names = group.keys() - {"params", "initial_lr"}
        model["optimizer"] = {name: plain(group[name]) for name in names} | {
            "lr": plain(group.get("initial_lr", group["lr"]))
        }
    return {"model": model}


def _require_state(module: "TrainingModule", changed: Mapping[str, object], checkpoint: Checkpoint) -> None:
    """Raise ValueError for settings of the optimiser or of a torch scheduler that do not fit the state of the checkpoint."""
    scheduler = any(name.startswith("model.lr_scheduler") for name in changed)
    if scheduler or (module.lr_scheduler is not None and "model.optimizer.lr" in changed):
        raise ValueError(
            "model.lr_scheduler, or the learning rate that it starts from, differs from the checkpoint's; its state cannot be "
            "recomputed: keep both, or start a new run from the trained weights (model.adapter or model.base)"
        )
    names = [name.removeprefix("model.optimizer.") for name in changed if name.startswith("model.optimizer.")]
    states = [state for saved in checkpoint.get("optimizer_states", []) for state in saved["state"].values()]
    if not names or not states:
        return
    missing = state_names(module.optimizer([_dummy_weight()])) - set(states[0])
    if missing:
        raise ValueError(
            f"the optimiser's {', '.join(names)} differs from the checkpoint's, which lacks {', '.join(sorted(missing))}: keep "
            "the setting, or start a new run from the trained weights (model.adapter or model.base)"
        )


def _require_steps_left(trainer: L.Trainer, checkpoint: Checkpoint) -> None:
    step = checkpoint["global_step"]
    if 0 <= trainer.max_steps < step and not getattr(trainer, "fast_dev_run", False):
        raise ValueError(
            f"the checkpoint is at step {step}, and trainer.max_steps is {trainer.max_steps}: raise it to train on"
        )


def _set_optimizer(
    module: "TrainingModule", trainer: L.Trainer, changed: Mapping[str, tuple[Plain, Plain]], checkpoint: Checkpoint
) -> list[str]:
    """Put the present settings and learning rate into the states of optimiser and schedule."""
    groups = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
    if not groups:
        return []
    optimizer = module.optimizer(_dummy_groups(module))
    fresh = optimizer.param_groups[0]
    for name in changed:
        if name.startswith("model.optimizer.") and not name.endswith(".lr"):
            key = name.removeprefix("model.optimizer.")
            for group in groups:
                group[key] = fresh[key]
    if module.lr_scheduler is not None:
        return []
    bases = [float(group["lr"]) for group in optimizer.param_groups]
    bases_before = [float(group.get("initial_lr", group["lr"])) for group in groups]
    schedule, step = module.schedule.build(optimizer, trainer.max_steps), checkpoint["global_step"]
    assert isinstance(schedule, LambdaLR), "all schedules of `Schedule` are closed forms of the step"
    state = checkpoint["lr_schedulers"][0]
    rates = [base * schedule.lr_lambdas[0](state["last_epoch"]) for base in bases]
    rates_before = [float(group["lr"]) for group in groups]
    base, base_before, rate, before = bases[0], bases_before[0], rates[0], rates_before[0]
    words = [] if base == base_before else [f"learning rate {base_before:g} -> {base:g}"]
    if (rates, bases) == (rates_before, bases_before):
        return words
    if before == 0 < min(base_before, rate) and "model.schedule.name" not in changed:
        raise ValueError(
            f"the learning rate of this run has fallen to 0 at step {step} (schedule {module.schedule.name!r}), and another "
            "trainer.max_steps would lift it again: set model.schedule.name to constant to train on, resume from an earlier "
            "checkpoint, or start a new run from the trained weights (model.adapter or model.base)"
        )
    for group, own_rate, own_base in zip(groups, rates, bases, strict=True):
        group["lr"], group["initial_lr"] = own_rate, own_base
    state["base_lrs"], state["_last_lr"] = bases, rates
    if (before, rate) != (base_before, base):
        words.append(f"learning rate of the schedule at this step {before:g} -> {rate:g}")
    return words


def _recount_batches(checkpoint: Checkpoint, accumulate: int) -> None:
    """Count batches as if all steps had accumulated this number; otherwise the first step would average too few."""
    batches = checkpoint["global_step"] * accumulate
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, batches))
    for entry in checkpoint.values():
        if isinstance(entry, dict) and entry.keys() >= {"position", "batches"}:
            entry["batches"] = batches


def _dummy_groups(module: "TrainingModule") -> list[dict[str, object]]:
    """The optimiser's groups of weights, with one small weight each."""
    return [{**group, "params": [_dummy_weight()]} for group in module.weight_groups()]


def _dummy_weight() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2, 2))
