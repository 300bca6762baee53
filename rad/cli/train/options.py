"""Short options of the train command: they set entries of the resolved configuration."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from rad.inpainting.runs import find_base, find_trained
from rad.models.adapter import AdapterInfo
from rad.resources import located
from rad.training.ema import EMA
from rad.training.guards import StopOnSignal
from rad.training.logs.loggers import read_ids

RUN_FOLDER = "RUN_FOLDER"
"""`save_dir` of a logger that writes to the run folder, in a configuration."""

IN_RUN_FOLDER = ("CSVLogger", "TensorBoardLogger", "WandbLogger", "MLFlowLogger")
"""Loggers whose `save_dir` is the run folder by default."""

INTERVALS = ("every_n_steps", "every_n_train_steps")
"""Arguments of callbacks that `--every` sets."""


def with_save_dir(words: Sequence[str]) -> list[str]:
    """Arguments in which the loggers of `IN_RUN_FOLDER` have a `save_dir`, also those of the configurations."""
    change = {"--config": _config, "-c": _config, "--trainer.logger": _argument, "--trainer.logger+": _argument}
    result: list[str] = []
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if option:
            result.append(change[option](word))
        elif equals and name in change:
            result.append(f"{name}={change[name](value)}")
        else:
            result.append(word)
        option = word if not option and word in change else ""
    return result


def _config(path: str) -> str:
    """The path of a configuration, or its content if a logger lacks a `save_dir`."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        logger = content["trainer"]["logger"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):  # the parser reports what is wrong
        return path
    changed = _with_save_dir(logger)
    if changed == logger:
        return path
    return yaml.safe_dump({**content, "trainer": {**content["trainer"], "logger": changed}}, sort_keys=False)


def _argument(value: str) -> str:
    try:
        logger = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    changed = _with_save_dir(logger)
    return value if changed == logger else yaml.safe_dump(changed, default_flow_style=True, width=10**9).strip()


def _with_save_dir(logger: Any) -> Any:
    if isinstance(logger, list):
        return [_with_save_dir(entry) for entry in logger]
    entry = {"class_path": logger} if isinstance(logger, str) else logger
    if not isinstance(entry, dict) or str(entry.get("class_path")).rpartition(".")[2] not in IN_RUN_FOLDER:
        return logger
    given = entry.get("init_args") or {}
    if not isinstance(given, dict) or {"save_dir", "dir"} & given.keys():
        return logger
    return {**entry, "init_args": {**given, "save_dir": RUN_FOLDER}}


def placed(config: Namespace, folder: Path) -> Namespace:
    """A copy of the configuration whose loggers write to the run folder, and continue the remote run of a resumed run."""
    config = config.clone()
    ids = read_ids(folder) if config.ckpt_path is not None else {}
    for logger in _entries(config.trainer.logger):
        name, given = logger.class_path.rpartition(".")[2], logger.init_args
        if given.get("save_dir") == RUN_FOLDER:
            given.save_dir = str(folder / "mlruns" if name == "MLFlowLogger" else folder)
            if name in ("CSVLogger", "TensorBoardLogger"):
                given.name = "" if given.name in (None, "lightning_logs") else given.name
                given.version = "" if given.version is None else given.version
        if name == "WandbLogger":
            given.name = folder.name if given.name is None else given.name
            if given.version is None and given.id is None:
                given.id = ids.get(name)
        if name == "MLFlowLogger":
            given.run_name = folder.name if given.run_name is None else given.run_name
            given.run_id = ids.get(name) if given.run_id is None else given.run_id
    return config


def _entries(value: Any) -> Iterator[Namespace]:
    """The classes among loggers or callbacks of a configuration."""
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, Namespace) and "class_path" in entry:
            if entry.get("init_args") is None:
                entry.init_args = Namespace()
            yield entry


def set_intervals(config: Namespace) -> None:
    """Apply `--every N` to checkpoints, panels, other callbacks with an interval in steps, and validation."""
    every, trainer = config.every, config.trainer
    if every is None:
        return
    if every < 1:
        raise ValueError(f"--every is {every}; allowed are 1 or more optimiser steps between checkpoints")
    saves = False
    for callback in _entries(trainer.callbacks):
        kind, given = locate(callback.class_path), callback.init_args
        saves |= isinstance(kind, type) and issubclass(kind, LightningCheckpoint)
        if kind is StopOnSignal:  # its interval is the latency of a signal
            continue
        if kind is ModelCheckpoint and (given.get("every_n_epochs") or given.get("train_time_interval")):
            continue
        for name in INTERVALS:
            if name in given and given[name] != 0:  # 0: this callback is off
                given[name] = every
    if not saves and trainer.enable_checkpointing is not False:
        given = Namespace(every_n_train_steps=every, save_top_k=-1, dirpath=None)
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        added = Namespace(class_path="rad.training.checkpoint.Checkpoint", init_args=given)
        trainer.callbacks = [*(callback for callback in callbacks if callback is not None), added]
    trainer.val_check_interval = every * trainer.accumulate_grad_batches  # Lightning counts batches
    trainer.check_val_every_n_epoch = None
    config.every = None


def start_from_adapter(config: Namespace) -> None:
    """Apply `--adapter FOLDER`: train it further. Raises ValueError or FileNotFoundError if it is not an adapter."""
    if config.adapter is None:
        return
    if config.trains != "diffusion":
        raise ValueError(f"--adapter is for diffusion models, and trains is {config.trains!r}: leave it out")
    given = config.adapter
    if not given.strip():
        raise ValueError(f"--adapter is {given!r}, which names no folder: give one, or leave it out")
    folder = find_trained(located(given))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--adapter {given} is not a folder: give runs/NAME or the folder of an adapter. An adapter on the hub needs "
            "--model.adapter USER/NAME --model.lora null"
        )
    info = AdapterInfo.read(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"--adapter {folder} is a model trained as a whole: give it as --model.base")
    model = config.model
    model.adapter, model.lora = str(folder), None
    if model.base is None and model.scratch is None:
        model.base, model.revision, model.qkv_order = find_base(folder, info), info.base_revision, info.qkv_order
    config.adapter = None


def require_end(config: Namespace) -> None:
    """Raise ValueError for a run without a number of steps or epochs; `trainer.max_time` alone gives none."""
    trainer = config.trainer
    if trainer.max_steps == -1 and trainer.max_epochs in (None, -1):
        raise ValueError(
            "the training has no end: trainer.max_steps is -1, and trainer.max_epochs is not set. Give --trainer.max_steps or "
            "--trainer.max_epochs; trainer.max_time can only end a run earlier"
        )


def without_average(config: Namespace) -> None:
    """Remove the EMA callbacks of a run with `model.official`, whose recipe has none, and report it."""
    if config.trains != "diffusion" or not config.model.official:
        return
    given = list(_entries(config.trainer.callbacks))
    config.trainer.callbacks = [entry for entry in given if locate(entry.class_path) is not EMA]
    if len(config.trainer.callbacks) < len(given):
        rank_zero_info("model.official averages no weights: rad.training.EMA is removed from trainer.callbacks")
