"""Checks of a flow model by the config.json files of its parts, before weights are read or fetched."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers

from rad.models.loaded_model import Origin
from rad.models.text_to_image.flow import FlowModel
from rad.models.text_to_image.flux import FluxFillModel
from rad.models.text_to_image.folders import Pipeline, empty_network, network_folder, quietly, read_config
from rad.models.text_to_image.newer.loading import NEWER, check_parts
from rad.models.text_to_image.sd3_inpaint import SD3InpaintModel, check_controlnet
from rad.models.vae import KINDS

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

NETWORKS = {
    "StableDiffusion3Pipeline": "SD3Transformer2DModel",
    "StableDiffusion3ControlNetInpaintingPipeline": "SD3Transformer2DModel",
    "FluxPipeline": "FluxTransformer2DModel",
    "FluxFillPipeline": "FluxTransformer2DModel",
}
"""Class of the transformer, by the class of the pipeline; `NEWER` has those of newer models."""


def check_settings(
    index: Pipeline,
    scheduler: FlowMatchEulerDiscreteScheduler,
    kind: type[FlowModel],
    size: int | None,
    controlnet: str | Path | None,
) -> None:
    """Build a model of `kind` without weights. Raises ValueError for parts, a ControlNet or a size that do not fit."""
    if index.kind in NEWER:
        check_parts(index)
        allowed = NEWER[index.kind][1]
    else:
        allowed = {"transformer": (NETWORKS[index.kind],), "vae": KINDS}
    with quietly():
        parts = {name: _empty(index.folder / name, allowed[name]) for name in ("transformer", "vae")}
        pipeline: Any = SimpleNamespace(**parts, config={"is_distilled": False})
        options = {"scheduler": copy.copy(scheduler), "size": size}
        origin = Origin(index.source, index.revision)
        if controlnet is not None:
            control = _empty(network_folder(controlnet, weights=False), ("SD3ControlNetModel",))
            check_controlnet(control.config, parts["transformer"].config, name=str(controlnet), source=index.source)
            SD3InpaintModel(pipeline, origin, controlnet=control, **options)
            return
        model = kind(pipeline, origin, **options)
    if isinstance(model, FluxFillModel):
        model.check_channels()


def _empty(folder: Path, allowed: tuple[str, ...]) -> Any:
    config = read_config(folder, allowed)
    return empty_network(getattr(diffusers, config["_class_name"]), folder, config)
