"""Training from a configuration: LightningCLI that always fits, with one folder per run and an explicit resume."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Literal, cast, get_args, get_type_hints

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from rad.console import EXIT_INTERRUPTED, EXIT_OK, program
from rad.data.module import ImageDataModule
from rad.images.atomic import remove_temporaries
from rad.images.lock import locked
from rad.training.autoencoder import AutoencoderTraining
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.guards import FiniteGuard, StopOnSignal
from rad.training.resume import find_checkpoint

Trained = Literal["diffusion", "autoencoder"]


MODULES: dict[str, type[LightningModule]] = {"diffusion": Diffusion, "autoencoder": AutoencoderTraining}


TYPE_LISTS = {
    r"Type typing\.Callable\[\[.*?\], [\w.]+\] expects a function or a callable class: ": "",
    r"- Expected a path but .*? either not accessible or invalid - ": "",
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (.*?) - Expected a .*?(?=;|$)": r"\1",
    r"Problem with given class_path '[\w.]+': ": "",
    r"Parser key \"([\w.]+)\": Unable to load config '(.*?)' - .*?(?=;|$)": r"\1 is a group, not '\2': give --\1.SETTING",
}
"""Parts of jsonargparse's messages, as regular expressions, and what replaces them; applied in this order."""


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
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.size", "model.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without the parent's warning about explicit `args`, and reject empty entries."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        _require_values(self.config, MODULES[self.config.trains])

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """The trainer with guards, and with the run's folder, which a saved configuration does not contain."""
        config = self.config_init
        assert isinstance(config, Namespace)
        if not config.name:
            raise ValueError("--name is empty: give the run a name, or leave the option out")
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(Path("runs") / config.name)
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger("runs", name=config.name, version="")
        given = config.trainer.callbacks or []
        callbacks = list(given) if isinstance(given, list) else [given]
        suffixes = [callback.suffix for callback in callbacks if isinstance(callback, EMA)]
        if len(set(suffixes)) < len(suffixes):
            raise ValueError(f"the EMA callbacks have the suffixes {', '.join(suffixes)}: give each its own")
        for guard in (StopOnSignal, FiniteGuard):
            if not any(isinstance(callback, guard) for callback in callbacks):
                callbacks.append(guard())
        self.stop_guards = [callback for callback in callbacks if isinstance(callback, StopOnSignal)]
        kwargs["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)


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


def _without_types(error: Exception) -> str:
    """The message of jsonargparse without its lists of types, which hide the reason."""
    message = " ".join(str(error).split())
    for pattern, short in TYPE_LISTS.items():
        message = re.sub(pattern, short, message)
    return message


def fit(arguments: Sequence[str]) -> int:
    """Train; write config.yaml, TensorBoard events, checkpoints and adapters to `runs/<name>/`. Returns the exit code.

    Raises ValueError or FileNotFoundError for an unsuitable argument or file.
    """
    try:
        cli = TrainCLI(
            trained_module(arguments),
            ImageDataModule,
            args=list(arguments),
            run=False,
            parser_kwargs={"exit_on_error": False, "prog": program("train")},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "use_distributed_sampler": False,
                "gradient_clip_val": 1.0,
                "enable_model_summary": False,
            },
        )
    except OSError:
        raise
    except ValueError as error:
        raise ValueError(_without_types(error)) from error
    except Exception as error:  # jsonargparse accepts some wrong types, which fail later with any exception
        message = f"{_without_types(error)}; `{program('train')} --config NAME --help` lists the settings"
        raise ValueError(message) from error
    with _held(cli.trainer):
        return _fit(cli)


@contextmanager
def _held(trainer: Trainer) -> Iterator[None]:
    """Hold the run folder in the first process of a run. Raises ValueError if another run writes to it."""
    folder = Path(trainer.default_root_dir)
    if not trainer.is_global_zero or "://" in trainer.default_root_dir:
        yield
        return
    with locked(folder, option="--name"):
        remove_temporaries([folder, folder / "checkpoints", folder / "panels"])
        yield


def _fit(cli: TrainCLI) -> int:
    config: Namespace = cli.config
    ckpt = find_checkpoint(config.ckpt_path, Path("runs") / config.name)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* in eval mode")  # autoencoders and text encoders are frozen
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, weights_only=True)
    except SystemExit:  # Lightning's reaction to Ctrl-C
        raise KeyboardInterrupt from None
    except FloatingPointError as error:
        raise ValueError(error) from None
    stopped = any(guard.received for guard in cli.stop_guards)
    return EXIT_INTERRUPTED if stopped and cli.trainer.is_global_zero else EXIT_OK  # launchers treat others as crashes
