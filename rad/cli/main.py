"""`rad train` and `rad sample`, also train.py and sample.py. An error is one line and an exit code."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rad.cli.config import check_config
from rad.console import EXIT_OK, did_you_mean, guarded, program, with_underscores
from rad.resources import config_names, find_data

TRAIN_HELP = """usage: {program} --config NAME.yaml [--name RUN] [--SETTING VALUE ...]

Train a RAD adapter, a diffusion model or an autoencoder from a configuration.

common settings:
  --config FILE          a YAML file, or a name listed below
  --name RUN             write to runs/RUN/ (default: the name of the configuration)
  --ckpt_path last       resume from the newest checkpoint of this run; also `auto` or a .ckpt file. New settings take
                         effect and are reported. Each resume writes its own config-step=N.yaml.
  --trainer.default_root_dir DIR  write to DIR/RUN/ instead of runs/RUN/
  --data.path PATH       training images: a folder, zip, tar, LMDB, URL, hf:ID:SPLIT:COLUMN, or skimage
  --data.val_path PATH   validation images; null holds out --data.val_count of the training images
  --data.batch_size N    images per step and device
  --trainer.max_steps N  number of optimiser steps
  --every N              interval of checkpoints, panels, metrics and validation, in optimiser steps
  --adapter FOLDER       train this adapter further; runs/NAME is the newest one of a run
  --trainer.logger NAME  CSVLogger, WandbLogger, MLFlowLogger, or a list (default: TensorBoardLogger)
  --trainer.devices N    devices per node
  --find_lr [STEPS]      only suggest a learning rate, from a test over 100 steps; the curve is in runs/RUN/lr_find/

all settings (loading takes some seconds):
  {program} --config NAME.yaml --help          model, data and trainer
  {program} --config NAME.yaml --print_config  the resolved configuration

configurations:
{configs}
"""


def train(arguments: Sequence[str] | None = None) -> int:
    """`rad train --config NAME.yaml [--name RUN] [--ckpt_path last|FILE] [--data.path DIR] [--trainer.max_steps N] ...`"""

    def run() -> int:
        words = with_underscores(arguments)
        if words and set(words) <= {"-h", "--help"}:
            configs = textwrap.fill(", ".join(config_names()), 100, initial_indent="  ", subsequent_indent="  ")
            print(TRAIN_HELP.format(program=program("train"), configs=configs), end="")
            return EXIT_OK
        resolved = resolve_train_arguments(words)
        from rad.cli.train.run import fit
        from rad.inpainting.memory import is_out_of_memory

        try:
            return fit(resolved)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                "not enough memory for a training step: lower data.batch_size and raise trainer.accumulate_grad_batches "
                "by the same factor, set model.execution.gradient_checkpointing, or set trainer.precision to bf16-mixed"
            ) from error

    return guarded(run)


def sample(arguments: Sequence[str] | None = None) -> int:
    """`rad sample --checkpoint FOLDER --image FILE --mask FILE --output FILE ...`"""

    def run() -> int:
        from rad.cli.sample.options import read_options

        options = read_options(arguments)
        from rad.cli.sample.run import run as run_sample

        return run_sample(options)

    return guarded(run)


def find_config(name: str) -> str:
    """The path of a configuration: a file, or a name that `rad.resources.find_data` finds in `configs/`."""
    path = find_data(name)
    if path is None or not path.is_file():
        known = config_names()
        hint = did_you_mean(name, known)
        raise FileNotFoundError(
            f"configuration {name!r} is neither a file nor in configs/{hint}: use one of {', '.join(known)}"
        )
    check_config(path)
    return str(path)


def resolve_train_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments with the paths of configurations, and with a `--name`: by default the stem of the last configuration."""
    resolved: list[str] = []
    config = None
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in ("-c", "--config"):
            resolved.append(word)
            continue
        config = find_config(value if equals else next(words, ""))
        resolved += ["--config", config]
    if config is None and not {"-h", "--help"} & set(resolved):
        raise FileNotFoundError(
            f"no configuration: call `{program('train')} --config NAME`, with NAME from {', '.join(config_names())}"
        )
    # First, so that --name or a saved config.yaml overrides it.
    return ["--name", Path(config).stem, *resolved] if config else resolved
