"""The folder that `rad export --onnx` writes: settings in runtime.json, and the networks' files with their hashes."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from rad.arguments import describe
from rad.resources import located
from rad.runtime.sampling.process import Doubles, TimeOrigin
from rad.runtime.sampling.steps import Prediction

FORMAT = 1
"""Version of runtime.json that this version of rad reads."""

SETTINGS = "runtime.json"
NETWORKS = ("rad", "base")


@dataclass(frozen=True)
class ExportedModel:
    """A pixel model in a folder.

    Args:
        size: (height, width) in pixels, multiples of `side_multiple`.
        betas: (T,) float64 in (0,1). learned_variance: by network.
        networks: files of the networks that the folder has, of "rad" and "base".
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
            raise ValueError(f"{folder / SETTINGS} is damaged ({reason}): export the model again") from error
        for name, file in model.networks.items():
            _check_file(file, settings["networks"][name].get("sha256"))
        return model

    @classmethod
    def _from_settings(cls, folder: Path, settings: dict[str, Any]) -> "ExportedModel":
        height, width = (int(side) for side in settings["size"])
        for name, allowed in (("prediction", get_args(Prediction)), ("time_origin", get_args(TimeOrigin))):
            if settings[name] not in allowed:
                raise ValueError(f"{name} is {describe(settings[name])}; allowed are {', '.join(allowed)}")
        networks = {
            name: folder / str(settings["networks"][name]["file"]) for name in NETWORKS if name in settings["networks"]
        }
        if not networks or any(file.parent != folder for file in networks.values()):
            raise ValueError("networks has to name files in the folder")
        return cls(
            folder,
            str(settings["name"]),
            (height, width),
            int(settings["side_multiple"]),
            np.array(settings["betas"], np.float64),
            settings["prediction"],
            bool(settings["clip"]),
            {"rad": bool(settings["learned_variance"]), "base": bool(settings["base_learned_variance"])},
            settings["time_origin"],
            str(settings["precision"]),
            networks,
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / SETTINGS
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: give a folder that `rad export CHECKPOINT --onnx FOLDER` wrote")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): export the model again") from error
    version = settings.get("format") if isinstance(settings, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{file} has format {describe(version)}; this version of rad reads format {FORMAT}: export the model again, "
            "or update rad"
        )
    if settings.get("kind") != "pixel":
        raise ValueError(f"{file} has kind {describe(settings.get('kind'))}; only pixel models run without torch")
    return settings


def _check_file(file: Path, expected: object) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}, which {SETTINGS} names: export the model again")
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(f"{file} is damaged: its SHA-256 differs from that in {SETTINGS}: export the model again")
