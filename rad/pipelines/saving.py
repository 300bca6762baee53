"""Saves a pipeline: the files of its model, and what diffusers needs to load it.

FOLDER/model_index.json, pipeline.py   for `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER)`
FOLDER/rad_model/                      a base model, a RAD model or an adapter
FOLDER/NAME                            the base of an adapter, under the name that the adapter gives
"""

import json
import shutil
from pathlib import Path

from diffusers import __version__

from rad.images.atomic import replacing, replacing_folder, write_text
from rad.inpainting.runs import PIPELINE_MODEL, Parts
from rad.models.base import INDEX
from rad.models.loaded_model import LoadedModel
from rad.models.text_to_image.folders import find_pipeline
from rad.resources import located

MODULE = Path(__file__).with_name("pipeline.py")


def save(model: LoadedModel, parts: Parts, folder: Path, *, source: str) -> None:
    """Write the files of `model`, which was loaded from `parts`.

    Raises ValueError if they hold another model by now, or if `folder` lies in them.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder")
    if parts.info != model.info:
        raise ValueError(f"{source} holds another model than the one in memory: load it again, then save")
    for part in (located(parts.source), parts.adapter):
        if part is not None and part.exists() and part.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"{folder} lies in {part}, the files to copy: give another folder")
    if parts.adapter is not None:
        assert parts.info is not None
        name = Path(parts.info.base).name
        if name == PIPELINE_MODEL:
            raise ValueError(f"the base of {parts.adapter} is called {name!r}, as the adapter is here: rename the base")
        copy_model(str(parts.adapter), None, folder / PIPELINE_MODEL)
        copy_model(parts.source, parts.revision, folder / name)
    elif Path(parts.source).is_file():  # weights of guided-diffusion
        with replacing_folder(folder / PIPELINE_MODEL) as place:
            model.save_trained(place)
    else:
        copy_model(parts.source, parts.revision, folder / PIPELINE_MODEL)
    index = {"_class_name": ["pipeline", "RADInpaintPipeline"], "_diffusers_version": __version__}
    write_text(folder / MODULE.name, MODULE.read_text(encoding="utf-8"))
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def copy_model(source: str, revision: str | None, target: Path) -> None:
    """Copy a model's folder or file, without hidden files."""
    path = located(source)
    if not path.exists():
        index = find_pipeline(source, revision)
        if index is None:
            raise ValueError(f"{source} on the hub has no {INDEX}: download it, and load the pipeline from its folder")
        path = index.fetched().folder
    if path.resolve() == target.resolve():
        return
    if path.is_file():
        with replacing(target) as place:
            shutil.copyfile(path, place)
        return
    with replacing_folder(target) as place:
        shutil.copytree(path, place, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
