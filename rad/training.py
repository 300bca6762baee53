"""Training from a configuration: LightningCLI with `fit` implied, one run folder a run, no silent fresh start."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from rad.data import PictureData
from rad.module import Diffusion

ENTRIES = {"pytorch-lightning_version", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "rad"}
"""What a checkpoint must hold to be resumed from."""


class TrainCLI(LightningCLI):
    """Adds `--name` and `--ckpt_path`, and ties what must agree: one seed, one image size."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="of the run, which is kept in runs/NAME/")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from: a .ckpt file, or `last` for the newest of this run; a missing one is an error",
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.size", "model.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As the parent, without its warning that `args` may not be those of the command line; and empty entries are errors."""
        self.config = parser.parse_args(args)
        _require_values(self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With the run folder, which is no part of the configuration: a saved one may be used for another run."""
        config: Any = self.config_init
        if not config.name:
            raise ValueError("--name is empty: give the run a name, or leave the option out")
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(Path("runs") / config.name)
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger("runs", name=config.name, version="")
        return super().instantiate_trainer(**kwargs)


def _require_values(config: Any) -> None:
    """Raise ValueError for an entry without a value where there has to be one, which jsonargparse lets pass."""
    for group, kind in (("model", Diffusion), ("data", PictureData), ("trainer", None)):
        given = vars(config[group]) if config[group] is not None else {}
        if not given:
            raise ValueError(f"the configuration's {group} is empty: fill it in, or remove the line")
        hints = get_type_hints(kind.__init__) if kind else {}
        empty = [name for name, hint in hints.items() if name in given and given[name] is None and not _optional(hint)]
        if empty:
            raise ValueError(f"{group}.{empty[0]} is empty: give a value, or remove the line")


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def check_checkpoint(path: Path) -> None:
    """Raise ValueError for a file that training did not write, or that is not as it was written; no pickled code is run.

    A file of torch.save is a zip, whose checksums torch itself does not look at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # damaged zips and pickles raise almost anything
        raise ValueError(
            f"checkpoint {path} is damaged, or holds more than weights and numbers ({type(error).__name__}): "
            f"resume from an older one of {path.parent}"
        ) from error
    if damaged is not None:
        raise ValueError(f"checkpoint {path} is damaged ({damaged}): resume from an older one of {path.parent}")
    if not isinstance(content, dict) or not content.keys() >= ENTRIES:
        raise ValueError(f"checkpoint {path} was not written by rad: give a .ckpt of runs/NAME/checkpoints")


def fit(arguments: Sequence[str]) -> int:
    """Train; the run is kept in `runs/<name>/`: config.yaml, TensorBoard events, checkpoints/ with adapters beside them.

    Raises:
        ValueError, FileNotFoundError: what the user gave cannot be used.
    """
    try:
        cli = TrainCLI(
            Diffusion,
            PictureData,
            args=list(arguments),
            run=False,
            parser_kwargs={"exit_on_error": False},
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
        raise ValueError(f"{error}; `python train.py --help` lists the settings") from error
    config: Any = cli.config
    ckpt = find_checkpoint(config.ckpt_path, Path("runs") / config.name)
    if ckpt is not None and Path(ckpt).is_file():
        check_checkpoint(Path(ckpt))
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    return 0


def find_checkpoint(ckpt_path: str | None, folder: Path) -> str | None:
    """The checkpoint to resume from. Raises if it is missing, or if a fresh start would run into an earlier run."""
    checkpoints = folder / "checkpoints"
    if ckpt_path is None:
        if any(checkpoints.glob("*.ckpt")):
            raise ValueError(
                f"{checkpoints} holds an earlier run: continue it with --ckpt_path last, or give this one another --name"
            )
        return None
    path = checkpoints / "last.ckpt" if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: without --ckpt_path a new run is started")
    if not zipfile.is_zipfile(path):  # the format of torch.save; a file cut short has no table of contents
        raise ValueError(f"checkpoint {path} is damaged: resume from an older one of {path.parent}")
    return str(path)
