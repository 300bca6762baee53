"""`rad train` (LightningCLI, fit implied) and `rad sample`, also train.py and sample.py. Errors are one line and an exit code."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rad.console import guarded, program
from rad.resources import config_names, find_data


def train(arguments: Sequence[str] | None = None) -> int:
    """`rad train --config NAME.yaml [--name RUN] [--ckpt_path last|FILE] [--data.path DIR] [--trainer.max_steps N] ...`"""

    def run() -> int:
        resolved = resolve_train_arguments(sys.argv[1:] if arguments is None else arguments)
        from rad.cli.train import fit

        try:
            return fit(resolved)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
                raise
            raise ValueError(
                "not enough memory for a training step: lower data.batch_size and raise trainer.accumulate_grad_batches "
                "as much, or set model.execution.gradient_checkpointing, or trainer.precision to bf16-mixed"
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
    """The path of a configuration: as given, or one of `configs/` as `rad.resources.find_data` finds them."""
    path = find_data(name)
    if path is None or not path.is_file():
        known = ", ".join(config_names())
        raise FileNotFoundError(f"configuration {name!r} is neither a file nor in configs/; there are {known}")
    return str(path)


def resolve_train_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments with configs found by their bare names; a run is called by --name, else by the stem of its last config."""
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
            f"no configuration: call `{program('train')} --config rad_ffhq.yaml`, or another of configs/"
        )
    # The first of several values counts least: a saved config.yaml holds its run's name.
    return ["--name", Path(config).stem, *resolved] if config else resolved
