"""The two command lines: `train.py` (LightningCLI, fit implied) and `sample.py`. Errors are one line and an exit code."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rad.console import guarded

ROOT = Path(__file__).resolve().parents[2]


def train(arguments: Sequence[str] | None = None) -> int:
    """`python train.py --config NAME.yaml [--name RUN] [--ckpt_path last|FILE] [--data.path DIR] [--trainer.max_steps N] ...`"""

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
                "as much, or set model.gradient_checkpointing, or trainer.precision to bf16-mixed"
            ) from error

    return guarded(run)


def sample(arguments: Sequence[str] | None = None) -> int:
    """`python sample.py --checkpoint FOLDER --image FILE --mask FILE --output FILE ...`"""

    def run() -> int:
        from rad.cli.sample import main

        return main(arguments)

    return guarded(run)


def find_config(name: str) -> str:
    """The path of a configuration: as given, or else in `configs/` of the working folder or of the project."""
    for path in (Path(name), Path("configs") / name, ROOT / "configs" / name):
        if path.is_file():
            return str(path)
    known = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    raise FileNotFoundError(f"configuration {name!r} is neither a file nor in configs/; there are {', '.join(known)}")


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
            "no configuration: call `python train.py --config rad_ffhq.yaml`, or another of configs/"
        )
    # The first of several values counts least: a saved config.yaml holds its run's name.
    return ["--name", Path(config).stem, *resolved] if config else resolved
