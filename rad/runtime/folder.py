"""The folder that `rad export --onnx` writes: settings in runtime.json, and the networks' files with their hashes."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from rad.arguments import describe, integer
from rad.models.settings.preferred import NOTHING, Preferred
from rad.resources import EXPORTED, located
from rad.runtime.precision import PRECISIONS
from rad.runtime.sampling.process import Doubles, TimeOrigin, Uniform
from rad.runtime.sampling.steps import Prediction

FORMAT = 1
"""Version of runtime.json that this version of rad writes and reads."""

NETWORKS = ("rad", "base")

ALLOWED: dict[str, tuple[str, ...]] = {
    "prediction": get_args(Prediction),
    "time_origin": get_args(TimeOrigin),
    "process": ("uniform", "region_aware", "tdpaint"),
    "precision": PRECISIONS,
}
"""Entries with a choice of texts."""


@dataclass(frozen=True)
class ExportedModel:
    """A pixel model in a folder.

    Args:
        size: (height, width) in pixels, multiples of `side_multiple`.
        betas: (T,) float64 in (0,1). learned_variance: by network.
        networks: files of the networks that the folder has, of "rad" and "base".
        preferred: settings for sampling, of the checkpoint that was exported.
    """

    folder: Path
    name: str
    size: tuple[int, int]
    side_multiple: int
    betas: Doubles
    prediction: Prediction
    clip: bool
    learned_variance: dict[str, bool]
    time_origin: TimeOrigin
    precision: str
    networks: dict[str, Path]
    preferred: Preferred = NOTHING

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "ExportedModel":
        """Read a folder, and check the files by their hashes.

        Raises FileNotFoundError for a missing file, ValueError for another format or a damaged file.
        """
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ValueError(f"path is {describe(path)}; give a folder that `rad export --onnx` wrote")
        folder = located(os.fspath(path))
        settings = _read_settings(folder)
        try:
            model = cls._from_settings(folder, settings)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{folder / EXPORTED} is damaged ({reason}): export the model again") from error
        for name, file in model.networks.items():
            _check_file(file, settings["networks"][name].get("sha256"))
        return model

    def resized(self, size: int | None) -> "ExportedModel":
        """The model for windows of `size` x `size` pixels; None: of its preferred size, otherwise as it is.

        Raises ValueError for a size that it does not take.
        """
        size = self.preferred.size if size is None else size
        if size is None:
            return self
        if integer("size", size, low=1) % self.side_multiple:
            raise ValueError(f"size is {size}; {self.folder} takes multiples of {self.side_multiple}")
        sides = (size, size)
        return replace(self, size=sides, preferred=self.preferred.at(sides, trained=self.size))

    @classmethod
    def _from_settings(cls, folder: Path, settings: dict[str, Any]) -> "ExportedModel":
        multiple = integer("side_multiple", settings["side_multiple"], low=1)
        if not isinstance(settings["size"], list) or len(settings["size"]) != 2:
            raise ValueError("size is no list of height and width")
        height, width = (integer("a side of size", side, low=1) for side in settings["size"])
        if height % multiple or width % multiple:
            raise ValueError(f"size is {width}x{height}; its sides must be multiples of {multiple}")
        for name, allowed in ALLOWED.items():
            if settings[name] not in allowed:
                raise ValueError(f"{name} is {describe(settings[name])}; allowed are {', '.join(allowed)}")
        for name in ("clip", "learned_variance", "base_learned_variance"):
            if not isinstance(settings[name], bool):
                raise ValueError(f"{name} is {describe(settings[name])}; allowed are true and false")
        if not isinstance(settings["name"], str):
            raise ValueError(f"name is {describe(settings['name'])}; expected a text")
        networks = {
            name: folder / str(settings["networks"][name]["file"]) for name in NETWORKS if name in settings["networks"]
        }
        if not networks or any(file.parent != folder for file in networks.values()):
            raise ValueError("networks has to name files in the folder")
        return cls(
            folder,
            settings["name"],
            (height, width),
            multiple,
            _betas(settings),
            settings["prediction"],
            settings["clip"],
            {"rad": settings["learned_variance"], "base": settings["base_learned_variance"]},
            settings["time_origin"],
            settings["precision"],
            networks,
            Preferred.read(settings.get("sampling", {})),
        )


def _betas(settings: dict[str, Any]) -> Doubles:
    betas = settings["betas"]
    if not isinstance(betas, list) or not all(type(beta) in (int, float) for beta in betas):
        raise ValueError("betas is no list of numbers")
    if "steps" in settings and settings["steps"] != len(betas):  # folders of earlier versions have no entry
        raise ValueError(f"betas has {len(betas)} values; expected as many as steps, {describe(settings['steps'])}")
    values = np.array(betas, np.float64)
    Uniform(values)  # raises ValueError for others than betas
    return values


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / EXPORTED
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: give a folder that `rad export CHECKPOINT --onnx FOLDER` wrote")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): export the model again") from error
    version = settings.get("format") if isinstance(settings, dict) else None
    if version != FORMAT or isinstance(version, bool):
        raise ValueError(
            f"{file} has format {describe(version)}; this version of rad reads format {FORMAT}: export the model again, "
            "or update rad"
        )
    if settings.get("kind") != "pixel":
        raise ValueError(f"{file} has kind {describe(settings.get('kind'))}; only pixel models run without torch")
    return settings


def _check_file(file: Path, expected: object) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}, which {EXPORTED} names: export the model again")
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(f"{file} is damaged: its SHA-256 differs from that in {EXPORTED}: export the model again")
