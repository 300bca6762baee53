"""Loading of text-to-image models that need a newer diffusers than the oldest that is allowed."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING

import torch
from packaging.version import Version

from rad.models.base import INDEX
from rad.models.loaded_model import Origin
from rad.models.memory.choices import Quantize, quantization
from rad.models.text_to_image.flow import FlowModel
from rad.models.text_to_image.folders import (
    Pipeline,
    load_encoder,
    load_network,
    load_tokenizer,
    quietly,
    read_config,
)
from rad.models.text_to_image.newer import flux2_klein, qwen_image, z_image
from rad.models.weights import read_json

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

NEWER = {
    "QwenImagePipeline": (qwen_image.QwenImageModel, qwen_image.PARTS),
    "ZImagePipeline": (z_image.ZImageModel, z_image.PARTS),
    "Flux2KleinPipeline": (flux2_klein.Flux2KleinModel, flux2_klein.PARTS),
}
"""Class and parts of each model, by the class of its pipeline."""

OLDEST = {"diffusers": "0.42", "transformers": "5.0"}
"""Versions that these models need."""


def require_versions(index: Pipeline) -> None:
    """Raise ValueError for a pipeline of `NEWER` with packages that are too old; before its weights are fetched."""
    if index.kind not in NEWER:
        return
    for package, oldest in OLDEST.items():
        installed = metadata.version(package)
        if Version(installed) < Version(oldest):
            raise ValueError(
                f"{index.source} is a {index.kind}, which needs {package} {oldest} or newer; installed is {installed}: "
                f"pip install -U {package}"
            )


def check_parts(index: Pipeline) -> None:
    """Raise ValueError for a part of another class than `NEWER` allows."""
    for name, allowed in NEWER[index.kind][1].items():
        if index.parts.get(name) not in allowed:
            raise ValueError(f"{name} of {index.source} is {index.parts.get(name)}; supported are {', '.join(allowed)}")


def load_newer(
    index: Pipeline,
    scheduler: FlowMatchEulerDiscreteScheduler,
    *,
    size: int | None = None,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
) -> FlowModel:
    """A model of `NEWER`, on the CPU; `dtype`: of the network and the text encoder; `quantize`: both.

    Its parts passed `check_parts`. Raises ValueError for one that does not fit.
    """
    kind, parts = NEWER[index.kind]
    with quietly():
        loaded = {name: _part(index, name, allowed, dtype, quantize) for name, allowed in parts.items()}
        more = {"is_distilled": bool(read_json(index.folder / INDEX).get("is_distilled", False))}
        pipeline_class = getattr(importlib.import_module("diffusers"), index.kind)
        pipeline = pipeline_class(**loaded, scheduler=None, **(more if index.kind == "Flux2KleinPipeline" else {}))
    return kind(pipeline, Origin(index.source, index.revision), scheduler=scheduler, size=size)


def _part(
    index: Pipeline, name: str, allowed: tuple[str, ...], dtype: torch.dtype, quantize: Quantize | None
) -> object:
    folder, written = index.folder / name, index.parts[name]
    package = "diffusers" if name in ("transformer", "vae") else "transformers"
    kind = getattr(importlib.import_module(package), written, None)
    if kind is None:  # the next newer name of the same tokenizer
        kind = getattr(importlib.import_module(package), allowed[0])
    if name == "tokenizer":
        return load_tokenizer(kind, folder)
    if name == "text_encoder":
        return load_encoder(kind, folder, dtype=dtype, quantization=quantize and quantization(quantize, "transformers"))
    config = read_config(folder, allowed)
    if name == "vae":
        return load_network(kind, folder, config)
    scheme = quantize and quantization(quantize, "diffusers")
    network = load_network(kind, folder, config, dtype=dtype, quantization=scheme)
    return qwen_image.with_positions(network) if written == "QwenImageTransformer2DModel" else network
