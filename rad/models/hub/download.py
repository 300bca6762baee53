"""Adapters and models on the Hugging Face hub by name, "USER/NAME" or "USER/NAME@REVISION"."""

from __future__ import annotations

import os
from pathlib import Path

from rad.models.weights import fetch, is_hub_id
from rad.resources import located

SETTINGS = ["rad_config.json", "adapter_config.json", "model_index.json"]
ADAPTER = [*SETTINGS[:2], "adapter_model.safetensors"]
WHOLE = ["*.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
"""Files that are fetched of each kind; pickled weights are not."""


def split_revision(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """ "USER/NAME@REVISION" as ("USER/NAME", "REVISION"); a local path and any other text unchanged, with None.

    Raises ValueError for an empty revision.
    """
    text = os.fspath(source)
    name, at, revision = text.partition("@")
    if not at or located(text).exists() or not is_hub_id(name):
        return text, None
    if not revision:
        raise ValueError(f"{text} has an empty revision: give a branch, tag or commit after the @, or {name}")
    return name, revision


def resolve(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Where a model is loaded from, and the hub revision of a base model.

    An adapter or a RAD model of the hub becomes its folder in the cache, with None; only the files that it needs are fetched.
    A local path, which has precedence over a name on the hub, and a base model's name are unchanged.

    Raises ValueError for a name that cannot be fetched, or that is not in the cache while HF_HUB_OFFLINE is set.
    """
    name, revision = split_revision(source)
    if isinstance(source, Path) or located(name).exists() or not is_hub_id(name):
        return name, revision
    folder = fetch(name, SETTINGS, revision=revision)
    if not (folder / "rad_config.json").is_file():
        return name, revision
    files = ADAPTER if (folder / "adapter_config.json").is_file() else WHOLE
    return str(fetch(name, files, revision=folder.name)), None
