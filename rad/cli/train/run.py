"""Training from a configuration: LightningCLI that always fits, with one folder per run and an explicit resume."""

import argparse
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from itertools import chain, count
from pathlib import Path
from typing import Literal, cast, get_args, get_type_hints

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from rad.cli.train.errors import explain, optimizer_hint, reported_once, without_types
from rad.cli.train.options import (
    placed,
    require_end,
    set_intervals,
    start_from_adapter,
    with_save_dir,
    without_average,
)
from rad.cli.train.status import Status, quiet
from rad.console import EXIT_INTERRUPTED, EXIT_OK, program, with_hint
from rad.data.module import ImageDataModule
from rad.images.atomic import remove_temporaries, write_text
from rad.lock import locked
from rad.training.autoencoder import AutoencoderTraining
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.guards import FiniteGuard, StopOnSignal
from rad.training.logs.loggers import drop_steps, flatten, keep_log, log_settings, write_ids
from rad.training.rate_finder import RateFinder
from rad.training.resume import find_checkpoint

Trained = Literal["diffusion", "autoencoder"]


MODULES: dict[str, type[LightningModule]] = {"diffusion": Diffusion, "autoencoder": AutoencoderTraining}


LONGEST_NAME = 200
"""Longest name of a run, in bytes; file systems allow 255."""

FORBIDDEN = '/\\:*?"<>|'
"""Characters that some file system forbids in a file name."""


class RunConfig(SaveConfigCallback):
    """Writes the configuration of each start to the run folder when training begins, and overwrites none.

    The first is config.yaml. A resumed run adds config-step=N.yaml, with the step that it resumed at. `ckpt_path` is left out,
    so that each file starts a new run.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None: ...

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder, config = Path(trainer.default_root_dir), self.config.clone()
        resumed, config.ckpt_path = trainer.ckpt_path, None
        stem = f"config-step={trainer.global_step}"
        names = chain(("config", stem), (f"{stem}-{number}" for number in count(2)))
        path = next(path for name in names if not (path := folder / f"{name}.yaml").exists())
        origin = f"# Resumed at step {trainer.global_step} from {resumed}\n" if resumed else ""
        content = self.parser.dump(config, skip_none=False)
        write_text(path, origin + content)
        for logger in trainer.loggers:
            if resumed:
                drop_steps(logger, trainer.global_step)
            log_settings(logger, flatten(yaml.safe_load(content)))
        write_ids(trainer.loggers, folder)


class TrainCLI(LightningCLI):
    """LightningCLI with `--name`, `--trains` and `--ckpt_path`, and with one seed and one image size for model and data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="name of the run, stored in runs/NAME/")
        parser.add_argument(
            "--trains",
            type=Trained,
            default="diffusion",
            help="type of `model`: a diffusion model or RAD adapter, or an autoencoder for latent models",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from: a .ckpt file; `last`: the newest complete one of this run, required to exist; "
            "`auto`: like `last`, or a new run if there is none",
        )
        parser.add_argument(
            "--every",
            type=int | None,
            default=None,
            help="interval in optimiser steps of checkpoints, panels, metrics, snapshots, validation; null: their own settings",
        )
        parser.add_argument(
            "--adapter",
            type=str | None,
            default=None,
            help="adapter to train further: its folder, or runs/NAME for the newest one of a run. It replaces model.lora; its "
            "base is used if model.base is null",
        )
        parser.add_argument(
            "--find_lr",
            type=int | None,
            nargs="?",
            const=100,
            default=None,
            help="only suggest a learning rate: it rises over this number of steps (100), and the curve is in runs/NAME/lr_find/",
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.size", "model.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without the parent's warning about explicit `args`, and reject empty entries."""
        assert isinstance(args, list)
        try:
            self.config = parser.parse_args(with_save_dir(args))
        except argparse.ArgumentError as error:
            error.message = optimizer_hint(error.message) or with_hint(error.message, parser)
            raise
        _require_values(self.config, MODULES[self.config.trains])
        require_end(self.config)
        set_intervals(self.config)
        start_from_adapter(self.config)
        without_average(self.config)

    def instantiate_classes(self) -> None:
        """Instantiate with loggers in the run folder; the saved configuration keeps `RUN_FOLDER`, for any run."""
        self.config_init = self.parser.instantiate_classes(placed(self.config, run_folder(self.config)))
        self.datamodule, self.model = self.config_init["data"], self.config_init["model"]
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """The trainer with guards, and with the run's folder, which a saved configuration does not contain."""
        config = self.config_init
        assert isinstance(config, Namespace)
        folder = run_folder(config)
        kwargs["default_root_dir"] = str(folder)
        self.stop_guards: list[StopOnSignal] = []
        if config.find_lr is not None:
            return self._find_lr(config, folder, kwargs)
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(folder.parent, name=folder.name, version="")
        given = config.trainer.callbacks or []
        callbacks = list(given) if isinstance(given, list) else [given]
        suffixes = [callback.suffix for callback in callbacks if isinstance(callback, EMA)]
        if len(set(suffixes)) < len(suffixes):
            raise ValueError(f"the EMA callbacks have the suffixes {', '.join(suffixes)}: give each its own")
        if any(isinstance(callback, StochasticWeightAveraging | WeightAveraging) for callback in callbacks):
            raise ValueError(
                "Lightning's callbacks for averaged weights count epochs, and exported models would not have the average: use "
                "rad.training.EMA"
            )
        if config.trainer.logger in (False, []):  # Lightning refuses a monitor that has no logger
            callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
        for guard in (StopOnSignal, FiniteGuard):
            if not any(isinstance(callback, guard) for callback in callbacks):
                callbacks.append(guard())
        checkpoints = [callback for callback in callbacks if isinstance(callback, LightningCheckpoint)]
        if not checkpoints and config.trainer.enable_checkpointing is not False:
            callbacks.append(Checkpoint())
        for callback in checkpoints:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")  # Lightning's place depends on the logger
        if not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.insert(0, Status(bar=config.trainer.enable_progress_bar is not False))
            kwargs["enable_progress_bar"] = False  # Lightning's bar counts epochs
        self.stop_guards = [callback for callback in callbacks if isinstance(callback, StopOnSignal)]
        kwargs["callbacks"] = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(
            trainer.strategy, DDPStrategy
        ):  # saves a copy of the gradients; no setting of the Trainer reaches it
            trainer.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
        return trainer

    def _find_lr(self, config: Namespace, folder: Path, kwargs: dict[str, object]) -> Trainer:
        """The trainer of a learning-rate test: without checkpoints, validation, logs and other callbacks."""
        if config.ckpt_path is not None:
            raise ValueError("--find_lr starts from the weights of the configuration: remove --ckpt_path")
        self.save_config_callback = None
        self.rate_finder = RateFinder(config.find_lr, folder / "lr_find")
        alone = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
        length = {"max_steps": config.find_lr, "max_epochs": None, "log_every_n_steps": 0}
        return super().instantiate_trainer(**kwargs, **alone, **length, callbacks=[self.rate_finder])


def _require_values(config: Namespace, module: type[LightningModule]) -> None:
    """Raises ValueError for an empty entry that needs a value; jsonargparse accepts it."""
    for group, kind in (("model", module), ("data", ImageDataModule), ("trainer", None)):
        given = vars(config[group]) if config[group] is not None else {}
        if not given:
            raise ValueError(f"the configuration's {group} is empty: fill it in, or remove the line")
        empty = _find_empty(given, kind) if kind else None
        if empty is not None:
            raise ValueError(f"{group}.{empty} is empty: give a value, or remove the line")


def _find_empty(given: Mapping[str, object], kind: type) -> str | None:
    """The first argument of `kind` without a value that it needs, with a dot before fields of a group; None if all have one."""
    for name, hint in get_type_hints(kind.__init__).items():
        if name in given and given[name] is None and type(None) not in get_args(hint):
            return name
        groups = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        if groups and isinstance(given.get(name), Namespace):
            field = _find_empty(vars(given[name]), cast(type, groups[0]))
            if field is not None:
                return f"{name}.{field}"
    return None


def trained_module(arguments: Sequence[str]) -> type[LightningModule]:
    """The class for `--trains`, which the parser of the other settings needs. The last argument or configuration counts."""
    trains = "diffusion"
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("--trains", "--config", "-c"):
            value = value if equals else next(words, "")
            trains = value if option == "--trains" else _trains(Path(value), trains)
    if trains not in MODULES:
        raise ValueError(f"trains is {trains!r}; allowed are {', '.join(MODULES)}")
    return MODULES[trains]


def _trains(config: Path, default: str) -> str:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser reports it
        return default
    trains = content.get("trains") if isinstance(content, dict) else None
    return trains if isinstance(trains, str) else default


def run_folder(config: Namespace) -> Path:
    """runs/NAME, or NAME in trainer.default_root_dir. Raises ValueError unless the name is that of one folder."""
    name = config.name
    problem = None
    if not name:
        problem = "is empty"
    elif len(os.fsencode(name)) > LONGEST_NAME:
        problem = f"has more than {LONGEST_NAME} bytes"
    elif (
        any(letter in FORBIDDEN or not letter.isprintable() for letter in name) or name[0] in ".-~ " or name[-1] in ". "
    ):
        problem = (
            f"is not the name of one folder: {FORBIDDEN} are not allowed, nor '.', '-', '~' or a space at the start"
        )
    if problem is not None:
        raise ValueError(f"--name {name[:80]!r} {problem}; the run is stored in runs/NAME: give another name")
    return Path(config.trainer.default_root_dir or "runs") / name


def fit(arguments: Sequence[str]) -> int:
    """Train; write config.yaml, logs, checkpoints and adapters to `runs/<name>/`. Returns the exit code.

    Raises ValueError or FileNotFoundError for an unsuitable argument or file.
    """
    with reported_once(), quiet():
        cli = _parse(arguments)
        with _held(cli.trainer):
            if cli.config.find_lr is None:
                return _fit(
                    cli, find_checkpoint(cli.config.ckpt_path, run_folder(cli.config), elsewhere=_elsewhere(cli))
                )
            cli.rate_finder.prepare(cli.model)
            code = _fit(cli, None)
            cli.rate_finder.finish()
            return code


def _parse(arguments: Sequence[str]) -> TrainCLI:
    """The trainer, model and data of the arguments; errors of the parser have one line."""
    try:
        return TrainCLI(
            trained_module(arguments),
            ImageDataModule,
            args=list(arguments),
            run=False,
            parser_kwargs={"exit_on_error": False, "prog": program("train")},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=RunConfig,
            trainer_defaults={
                "use_distributed_sampler": False,
                "gradient_clip_val": 1.0,
                "enable_model_summary": False,
            },
        )
    except OSError:
        raise
    except ValueError as error:
        raise ValueError(without_types(error)) from error
    except Exception as error:  # jsonargparse accepts some wrong types, which fail later with any exception
        message = f"{without_types(error)}; `{program('train')} --config NAME --help` lists the settings"
        raise ValueError(message) from error


@contextmanager
def _held(trainer: Trainer) -> Iterator[None]:
    """Hold the run folder in the first process of a run. Raises ValueError if another run writes to it."""
    folder = Path(trainer.default_root_dir)
    if not trainer.is_global_zero or "://" in trainer.default_root_dir:
        yield
        return
    with locked(folder, option="--name"):
        remove_temporaries([folder, folder / "checkpoints", folder / "panels", folder / "ema"])
        yield


def _elsewhere(cli: TrainCLI) -> list[Path]:
    """Folders of checkpoints that callbacks name."""
    paths = [getattr(callback, "dirpath", None) for callback in cli.trainer.checkpoint_callbacks]
    return [Path(path) for path in paths if path]


def _fit(cli: TrainCLI, ckpt: str | None) -> int:
    try:
        # CSVLogger warns of the run folder, where it removes an earlier metrics.csv alone
        warnings.filterwarnings("ignore", f"Experiment logs directory {re.escape(cli.trainer.default_root_dir)}/? ")
        if ckpt is not None and cli.trainer.is_global_zero:
            for logger in cli.trainer.loggers:
                keep_log(logger)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, weights_only=True)
    except SystemExit:  # Lightning's reaction to Ctrl-C
        raise KeyboardInterrupt from None
    except FloatingPointError as error:
        raise ValueError(error) from None
    except (ValueError, OSError):
        raise
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        raise ValueError(reason) from error
    stopped = any(guard.received for guard in cli.stop_guards)
    return EXIT_INTERRUPTED if stopped and cli.trainer.is_global_zero else EXIT_OK  # launchers treat others as crashes
