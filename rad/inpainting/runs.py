"""Finds the trained model in the folder of a training run."""

import re
from pathlib import Path

MODEL_FILES = ("adapter_config.json", "rad_config.json", "model_index.json", "config.json", "unet")
"""Any of these makes a folder a model; a run folder has none of them."""


def find_trained(path: Path) -> Path:
    """The model that a run folder, its `checkpoints` or a `.ckpt` stands for; other paths are returned unchanged.

    It is the newest `step=N-ema`, or `step=N` if the run keeps no averaged weights; for a `.ckpt` the one of its step.
    Raises FileNotFoundError for a run without a model.
    """
    if path.suffix == ".ckpt":
        return _beside(path)
    if not path.is_dir() or any((path / name).exists() for name in MODEL_FILES):
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    models = _models(folder)
    if models:
        return models[max(models)]
    if (path / "config.yaml").is_file() or any(folder.glob("step=*")):
        raise FileNotFoundError(
            f"{path} is a training run without a model: {folder}/step=N is written with the first checkpoint"
        )
    return path


def _beside(checkpoint: Path) -> Path:
    """The model of the same step as a checkpoint of training."""
    step, models = checkpoint.resolve().stem, _models(checkpoint.parent)
    of_step = {f"step={number}": model for number, model in models.items()}
    if step in of_step:
        return of_step[step]
    known = ", ".join(model.name for _, model in sorted(models.items())) or "none"
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist; models beside it: {known}")
    raise FileNotFoundError(
        f"{checkpoint} resumes training; to sample, the folder {step}-ema or {step} beside it is needed; models there: {known}"
    )


def _models(folder: Path) -> dict[int, Path]:
    """The model of each step; averaged weights before others, "ema" before other suffixes."""
    models: dict[int, Path] = {}
    for path in sorted(folder.glob("step=*"), key=_preference):
        match = re.fullmatch(r"step=(\d+)(-.+)?", path.name, re.ASCII)
        if match and any((path / name).exists() for name in MODEL_FILES):
            models.setdefault(int(match[1]), path)
    return models


def _preference(path: Path) -> tuple[bool, bool, str]:
    _, dash, suffix = path.name.partition("-")
    return not dash, suffix != "ema", suffix
