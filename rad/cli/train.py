"""Training from a configuration: LightningCLI with `fit` implied, one run folder a run, no silent fresh start."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_type_hints

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from rad.console import EXIT_INTERRUPTED, EXIT_OK, program
from rad.data.module import ImageDataModule
from rad.training.autoencoder import AutoencoderTraining
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.guards import FiniteGuard, StopOnSignal
from rad.training.resume import find_checkpoint

Trained = Literal["diffusion", "autoencoder"]


MODULES: dict[str, type[LightningModule]] = {"diffusion": Diffusion, "autoencoder": AutoencoderTraining}


class TrainCLI(LightningCLI):
    """Adds `--name`, `--trains` and `--ckpt_path`, and ties what must agree: one seed, one image size."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="of the run, which is kept in runs/NAME/")
        parser.add_argument(
            "--trains",
            type=Trained,
            default="diffusion",
            help="what `model` describes: a diffusion model or RAD adapter, or an autoencoder for latent models",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from: a .ckpt file; `last`: the newest whole one of this run, an error if there is none; "
            "`auto`: the same, and a new run if there is none",
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.size", "model.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As the parent, without its warning that `args` may not be those of the command line; and empty entries are errors."""
        self.config = parser.parse_args(args)
        _require_values(self.config, MODULES[self.config.trains])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With the run folder, which is no part of the configuration (a saved one may be used for another run), and guards."""
        config: Any = self.config_init
        if not config.name:
            raise ValueError("--name is empty: give the run a name, or leave the option out")
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(Path("runs") / config.name)
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger("runs", name=config.name, version="")
        given = config.trainer.callbacks or []
        callbacks = list(given) if isinstance(given, list) else [given]
        suffixes = [one.suffix for one in callbacks if isinstance(one, EMA)]
        if len(set(suffixes)) < len(suffixes):
            raise ValueError(f"the EMA callbacks have the suffixes {', '.join(suffixes)}: give each its own")
        missing = [
            guard for guard in (StopOnSignal, FiniteGuard) if not any(isinstance(one, guard) for one in callbacks)
        ]
        kwargs["callbacks"] = callbacks + [guard() for guard in missing]
        return super().instantiate_trainer(**kwargs)


def _require_values(config: Any, module: type[LightningModule]) -> None:
    """Raise ValueError for an entry without a value where there has to be one, which jsonargparse lets pass."""
    for group, kind in (("model", module), ("data", ImageDataModule), ("trainer", None)):
        given = vars(config[group]) if config[group] is not None else {}
        if not given:
            raise ValueError(f"the configuration's {group} is empty: fill it in, or remove the line")
        empty = _find_empty(given, kind) if kind else None
        if empty is not None:
            raise ValueError(f"{group}.{empty} is empty: give a value, or remove the line")


def _find_empty(given: Mapping[str, Any], kind: type) -> str | None:
    """The first argument of `kind` without a value that it needs, with a dot before fields of a group; None if all have one."""
    for name, hint in get_type_hints(kind.__init__).items():
        if name in given and given[name] is None and type(None) not in get_args(hint):
            return name
        if name in given and is_dataclass(hint):
            field = _find_empty(vars(given[name]), cast(type, hint))
            if field is not None:
                return f"{name}.{field}"
    return None


def trained_module(arguments: Sequence[str]) -> type[LightningModule]:
    """What `--trains` will say, which the parser of the other settings has to know: of the arguments and configs, the last."""
    found = "diffusion"
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("--trains", "--config", "-c"):
            value = value if equals else next(words, "")
            found = value if option == "--trains" else _trains(Path(value), found)
    if found not in MODULES:
        raise ValueError(f"trains is {found!r}; allowed are {', '.join(MODULES)}")
    return MODULES[found]


def _trains(config: Path, otherwise: str) -> str:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong with it
        return otherwise
    found = content.get("trains") if isinstance(content, dict) else None
    return found if isinstance(found, str) else otherwise


def fit(arguments: Sequence[str]) -> int:
    """Train; the run is kept in `runs/<name>/`: config.yaml, TensorBoard events, checkpoints/ with adapters beside them.

    Raises:
        ValueError, FileNotFoundError: what the user gave cannot be used.
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
    except (ValueError, OSError):
        raise
    except Exception as error:  # a value of a type that jsonargparse lets pass fails anywhere, with anything
        raise ValueError(f"{error}; `{program('train')} --help` lists the settings") from error
    config: Any = cli.config
    ckpt = find_checkpoint(config.ckpt_path, Path("runs") / config.name)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* in eval mode")  # autoencoders and text encoders are frozen
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    except FloatingPointError as error:
        raise ValueError(error) from None
    callbacks: list[Any] = cli.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    stopped = any(isinstance(callback, StopOnSignal) and callback.received for callback in callbacks)
    return EXIT_INTERRUPTED if stopped and cli.trainer.is_global_zero else EXIT_OK  # launchers take others' for crashes
