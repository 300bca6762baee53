"""The JSON beside the weights of a feature network, read and checked."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rad.evaluation.features.extractor import Resize, last_line

FORMATS = {".pt": "torchscript", ".safetensors": "safetensors"}
REQUIRED = {"torchscript": {"name", "format", "size"}}
REQUIRED["safetensors"] = REQUIRED["torchscript"] | {"architecture", "features", "distance"}
OPTIONAL = {"resize", "range", "mean", "std"}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Description:
    """The keys of the JSON (`rad.evaluation.features.feature_net`), with defaults filled in.

    `size` is (height, width), or None for any; images become (x - mean) / std; `input_range` is text for the provenance.
    `architecture` holds arguments of torchvision's ResNet; it is empty for TorchScript, as `features` and `distance`.
    """

    name: str
    size: tuple[int, int] | None
    resize: Resize
    mean: list[float]
    std: list[float]
    input_range: str
    features: str
    distance: list[str]
    architecture: Settings


def find_weights(path: Path) -> Path:
    """The file of weights: the path itself, or the only one in a folder. Raises ValueError for anything else."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FORMATS)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ValueError(f"{path} must hold one file of weights ({' or '.join(FORMATS)}); it holds {names}")
        return files[0]
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} is no feature network: give a folder, or a file ending in {' or '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"no such file or folder: {path}; give a feature network, for example a folder with its files")
    return path


def read_description(weights: Path) -> Description:
    """The JSON beside a file of weights. Raises ValueError for a missing file and for wrong keys or values."""
    file = weights.with_suffix(".json")
    try:
        settings: Settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{weights} has no description: write {file.name} with name, format and size") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {last_line(error)}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: give an object with name, format and size, not {_short(settings)}")
    kind = FORMATS[weights.suffix]
    if settings.get("format") != kind:
        raise ValueError(f'{file}: "format" is {_short(settings.get("format"))}, but {weights.name} is "{kind}"')
    if "range" in settings and ("mean" in settings or "std" in settings):
        raise ValueError(f'{file}: give "range", or "mean" and "std", not both')
    if "mean" in settings or "std" in settings:
        settings = dict.fromkeys(("mean", "std")) | settings
    _check(str(file), settings, CHECKS, required=REQUIRED[kind], optional=OPTIONAL)
    architecture = settings.get("architecture", {})
    if kind == "safetensors":
        required = {"class", "block", "layers", "num_classes"}
        where = f'{file}: "architecture"'
        _check(where, architecture, ARCHITECTURE, required=required, optional={"groups", "width_per_group"})
    size = settings["size"]
    return Description(
        name=settings["name"],
        size=None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1]),
        resize=settings.get("resize", "bilinear"),
        features=settings.get("features", ""),
        distance=settings.get("distance", []),
        architecture=architecture,
        **_normalisation(settings),
    )


def _normalisation(settings: Settings) -> Settings:
    if "mean" in settings:
        texts = (f"{key} {' '.join(f'{number:g}' for number in settings[key])}" for key in ("mean", "std"))
        return {"mean": settings["mean"], "std": settings["std"], "input_range": "; ".join(texts)}
    low, high = settings.get("range", [0, 1])
    spread = high - low
    return {"mean": [-low / spread] * 3, "std": [1 / spread] * 3, "input_range": f"[{low:g},{high:g}]"}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _are(kinds: tuple[type, ...], values: object, count: int, *, least: float = -math.inf) -> bool:
    """Whether `values` are `count` finite numbers of these types, none below `least`."""
    if not (isinstance(values, list) and len(values) == count):
        return False
    return all(type(value) in kinds and math.isfinite(value) and value >= least for value in values)


_are_numbers = partial(_are, (int, float))
_are_counts = partial(_are, (int,), least=1)

Check = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and the allowed values in words."""

COUNT: Check = (lambda v: _are_counts([v], 1), "a number of at least 1")
CHECKS: dict[str, Check] = {
    "name": (
        lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9._-]+", v) is not None,
        'letters, digits, ".", "_" and "-"',
    ),
    "size": (
        lambda v: v is None or _are_counts([v], 1) or _are_counts(v, 2),
        "a number of pixels, [height, width], or null for any size",
    ),
    "resize": (lambda v: v in get_args(Resize), " or ".join(get_args(Resize))),
    "range": (lambda v: _are_numbers(v, 2) and v[0] < v[1], "[low, high], the values of black and white"),
    "mean": (lambda v: _are_numbers(v, 3), 'three numbers, together with "std"'),
    "std": (lambda v: _are_numbers(v, 3) and min(v) > 0, 'three numbers above 0, together with "mean"'),
    "features": (lambda v: isinstance(v, str), "the name of a layer"),
    "distance": (
        lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v) and len(set(v)) == len(v),
        "a list of names of different layers, [] for none",
    ),
    "architecture": (
        lambda v: isinstance(v, dict),
        'an object such as {"class": "ResNet", "block": "BasicBlock", ...}',
    ),
}
ARCHITECTURE: dict[str, Check] = {
    "class": (lambda v: v == "ResNet", '"ResNet"; for other networks write a TorchScript file'),
    "block": (lambda v: v in ("BasicBlock", "Bottleneck"), '"BasicBlock" or "Bottleneck"'),
    "layers": (lambda v: _are_counts(v, 4), "four numbers, the blocks of each stage"),
    **dict.fromkeys(("num_classes", "groups", "width_per_group"), COUNT),
}


def _check(
    where: str, settings: Mapping[str, object], checks: Mapping[str, Check], *, required: set[str], optional: set[str]
) -> None:
    if unknown := sorted(set(settings) - required - optional):
        raise ValueError(f'{where}: unknown key "{unknown[0]}"; known are {", ".join(sorted(required | optional))}')
    if missing := sorted(required - set(settings)):
        raise ValueError(f'{where}: the key "{missing[0]}" is missing')
    for key, (allowed, words) in checks.items():
        if key in settings and not allowed(settings[key]):
            raise ValueError(f'{where}: "{key}" is {_short(settings[key])}: give {words}')
