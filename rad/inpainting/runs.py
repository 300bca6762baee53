"""Finds a model and its parts: the trained model in the folder of a training run, and the base of an adapter."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rad.arguments import describe
from rad.models.adapter import AdapterInfo
from rad.models.hub.download import resolve
from rad.resources import find_data, located

MODEL_FILES = ("adapter_config.json", "rad_config.json", "model_index.json", "config.json", "unet")
"""Any of these makes a folder a model; a run folder has none of them."""

PIPELINE_MODEL = "rad_model"
"""The model in a folder of `rad.pipelines.RADInpaintPipeline`; the base of an adapter lies beside it."""


def find_trained(path: Path) -> Path:
    """The model of a run folder, its `checkpoints`, a `.ckpt` or a saved pipeline; other paths are returned unchanged.

    It is the newest `step=N-ema`, or `step=N` if the run keeps no averaged weights; for a `.ckpt` the one of its step.
    Raises FileNotFoundError for a run without a model.
    """
    if path.suffix == ".ckpt":
        return _beside(path)
    if (path / PIPELINE_MODEL).is_dir():
        return path / PIPELINE_MODEL
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


@dataclass(frozen=True)
class Parts:
    """Where a model is loaded from: base or whole model, its hub commit, the adapter's folder, and `rad_config.json`."""

    source: str
    revision: str | None = None
    adapter: Path | None = None
    info: AdapterInfo | None = None


def find_parts(path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> Parts:
    """The parts of a model, for `Inpainter.from_pretrained`. `base`: of an adapter, in place of the one that it names.

    Raises FileNotFoundError for a missing model or base, ValueError for a base without effect or an argument of another type.
    """
    for name, value in (("path", path), ("base", "base" if base is None else base)):
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ValueError(f"{name} is {describe(value)}; give a folder, a file or a name")
    if not Path(path).exists() and (shipped := find_data(str(path))) is not None:
        path = str(shipped)
    source, revision = find_model(path)
    folder = Path(source)
    described = any((folder / name).exists() for name in ("adapter_config.json", "rad_config.json"))
    info = AdapterInfo.read(folder) if described else None
    if info is not None and not (folder / "unet").is_dir():  # otherwise a fully trained model
        if base is None:
            source = find_base(folder, info)
            return Parts(source, None if Path(source).exists() else info.base_revision, folder, info)
        return Parts(*find_model(base), folder, info)
    if base is not None:
        raise ValueError(
            f"{source} is not an adapter folder (rad_config.json, no unet), so base={str(base)!r} has no effect"
        )
    return Parts(source, revision, info=info)


def find_model(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The source of a model and its hub revision. A training run becomes its model; for the hub see `resolve`."""
    given = located(os.fspath(source))
    model = find_trained(given)
    return resolve(source) if model == given else (str(model), None)


def find_base(folder: Path, info: AdapterInfo) -> str:
    """The base that an adapter names: that path, a folder of that name beside the adapter or among ours, or a hub id."""
    for path in (Path(info.base), folder.resolve().parent / Path(info.base).name, located(info.base)):
        if path.exists():
            return str(path)
    if info.base_revision is not None:
        return info.base
    raise FileNotFoundError(
        f"{folder} was trained on {info.base!r}, which is neither there nor beside the adapter: give its place with base="
    )
