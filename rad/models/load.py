"""Loaded models of every kind: `load_model` finds out the kind of a pretrained model, `new_model` makes an untrained one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rad.arguments import describe, integer
from rad.diffusion.schedules import linear_betas
from rad.diffusion.step import Prediction
from rad.models.adapter import AdapterInfo
from rad.models.base import Base, load_base, require_source
from rad.models.guided_diffusion import QkvOrder
from rad.models.loaded_model import LoadedModel, Origin
from rad.models.memory.choices import Offload, Quantize, check_saving
from rad.models.text_to_image.folders import Pipeline, find_pipeline, require_transformers
from rad.models.unet_model import UNetModel
from rad.models.vae import AUTOENCODERS, IDENTITY, Autoencoder, PretrainedAutoencoder, tile
from rad.models.weights import Config, UNetT, empty_unet, read_json, require_run, weights_hash
from rad.modes import float32_modes
from rad.rng import check_seed

FOR_INPAINTING = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
STABLE_DIFFUSION = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", *FOR_INPAINTING)
SD3_INPAINTING = "StableDiffusion3ControlNetInpaintingPipeline"
SD3 = ("StableDiffusion3Pipeline", SD3_INPAINTING)
FLUX_FILL = "FluxFillPipeline"
FLUX = ("FluxPipeline", FLUX_FILL)
NEWER_FLOWS = ("QwenImagePipeline", "ZImagePipeline", "Flux2KleinPipeline")
FLOWS = (*SD3, *FLUX, *NEWER_FLOWS)
LATENT_CHANNELS = 4
"""Input channels of a Stable Diffusion that is not trained for inpainting, which diffusers' inpainting pipelines also take."""
UNTRAINED = ("StableDiffusionXLPipeline", *FLUX, *NEWER_FLOWS, *FOR_INPAINTING)
"""Pipelines that training does not support."""


@float32_modes()
def load_model(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    adapter: Path | None = None,
    info: AdapterInfo | None = None,
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
    head_channels: int = 64,
    qkv_order: QkvOrder = "legacy",
    controlnet: str | Path | None = None,
    t2i_adapter: str | Path | None = None,
    ip_adapter: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    offload: Offload | None = None,
    quantize: Quantize | None = None,
    vae_tiling: bool = False,
    training: bool = False,
) -> LoadedModel:
    """Load a base model of any kind, with or without an adapter.

    Args:
        source: a diffusers folder, a hub id "organisation/name", or a guided-diffusion .pt file.
        adapter: folder of a RAD adapter for it.
        info: of the adapter, None: read from its folder; or of per-pixel training of all weights.
        size: side of the images in pixels; for training, and for sampling with flow models and convolutional pixel models. None:
            the model's default.
        dtype: of the weights of flow models (SD3, Flux, Qwen-Image, Z-Image, FLUX.2 [klein]) without an adapter.
        head_channels: channels of an attention head, for a .pt file; qkv_order: see `load_base`.
        controlnet, t2i_adapter, ip_adapter, loras: for Stable Diffusion 1, 2 and XL: diffusers folders; a .safetensors file
            beside a folder `image_encoder`; .safetensors files, or folders with one, and their weights. `controlnet` may be a
            hub id. For SD3 it is one that was trained for inpainting, and excludes an adapter.
        offload, quantize: for flow models without an adapter, see `rad.models.memory.choices`; None: off.
        vae_tiling: encode and decode images that exceed the autoencoder's tile in tiles, and batches one by one.
        training: load the model for training, with the text encoder T5 in bfloat16.

    Raises FileNotFoundError for a missing file, ValueError for an unsuitable one or an option without effect on this kind.
    """
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"source is {describe(source)}; give a folder, a file or a hub id")
    size = None if size is None else integer("size", size)
    require_source(source)
    if adapter is not None:
        info = AdapterInfo.read(adapter) if info is None else info
        qkv_order = info.qkv_order
    index = find_pipeline(source, revision)
    if adapter is not None or index is None or index.kind not in FLOWS:
        _require_none(adapter or source, "a flow model without an adapter", {"offload": offload, "quantize": quantize})
    check_saving(offload, quantize, torch.device(device), bf16=dtype == torch.bfloat16, compiled=False)
    extras = {"controlnet": controlnet, "t2i_adapter": t2i_adapter, "ip_adapter": ip_adapter, "loras": loras}
    if index is not None and index.kind in (*STABLE_DIFFUSION, *FLOWS):
        whole = adapter is None and info is not None and info.kind == "stable"  # an adapter merged into the weights
        text_info = info if adapter is not None or whole else None
        model = _load_text_to_image(index, adapter, text_info, size, dtype, quantize, training, extras)
        if whole:
            model.region_aware_network()
    else:
        _require_none(adapter or source, "Stable Diffusion", extras)
        trained_size = info.size[0] if adapter is not None and info is not None else size if training else None
        base, autoencoder = _load_unet(source, index, trained_size, head_channels, qkv_order, revision)
        if not training and autoencoder is not IDENTITY:
            _require_none(adapter or source, "a flow model or a model of pixels", {"size": size})
        model = UNetModel(base, autoencoder=autoencoder, info=info, size=None if size is None else (size, size))
        if not training:
            model.require_inpainting()
        if adapter is not None:
            model.add_adapter(adapter)
    if vae_tiling:
        tile(model.autoencoder, model.source)
    if not training:
        model.checkpoint_gradients()
    if offload is not None or quantize is not None:
        from rad.models.memory.offload import place

        place(model, torch.device(device), offload=offload, quantize=quantize)
    else:
        model.to(device)
    return model


def is_for_inpainting(source: str | Path, revision: str | None = None, *, controlnet: str | Path | None = None) -> bool:
    """Whether the index of a pipeline names one for inpainting; False where it cannot be read. Loads no weights.

    Stable Diffusion 3 is one with a ControlNet.
    """
    try:
        index = find_pipeline(source, revision)
        if index is not None and index.kind in FLOWS:
            return index.kind in (SD3_INPAINTING, FLUX_FILL) or (index.kind in SD3 and controlnet is not None)
        if index is None or index.kind not in FOR_INPAINTING:
            return False
        config = index.folder / "unet" / "config.json"
        return not config.is_file() or read_json(config).get("in_channels") != LATENT_CHANNELS
    except (ValueError, OSError):
        return False


def _load_text_to_image(
    index: Pipeline,
    adapter: Path | None,
    info: AdapterInfo | None,
    size: int | None,
    dtype: torch.dtype,
    quantize: Quantize | None,
    training: bool,
    extras: dict[str, Any],
) -> LoadedModel:
    require_transformers()
    from rad.models.text_to_image.loading import load_flow, load_stable_diffusion

    if training and index.kind in UNTRAINED:
        raise ValueError(
            f"{index.source} is a {index.kind}: training is of latent diffusion, Stable Diffusion 1, 2 and 3"
        )
    if index.kind in FLOWS:
        controlnet = extras["controlnet"] if index.kind in SD3 else None
        if index.kind == SD3_INPAINTING and controlnet is None:
            controlnet = index.folder / "controlnet"
        if controlnet is not None and (adapter is not None or training):
            raise ValueError(
                f"the ControlNet {controlnet} is for sampling without a RAD adapter, and {adapter or index.source} is "
                "loaded with one or for training: leave out the ControlNet, or the adapter"
            )
        if controlnet is None:
            _require_none(adapter or index.source, "Stable Diffusion", {"controlnet": extras["controlnet"]})
        others = {name: value for name, value in extras.items() if name != "controlnet"}
        _require_none(adapter or index.source, "Stable Diffusion 1, 2 or XL", others)
        t5_dtype = torch.bfloat16 if training else None  # trained in bfloat16; overflows in float16
        options = {"info": info, "size": size, "dtype": dtype, "t5_dtype": t5_dtype, "quantize": quantize}
        return load_flow(index, adapter=adapter, controlnet=controlnet, **options)
    if not training:
        _require_none(adapter or index.source, "a flow model", {"size": size})
    if adapter is not None and extras["loras"]:
        raise ValueError(f"loras change the weights that {adapter} was trained on: leave them out")
    sides = None if size is None else (size, size)
    return load_stable_diffusion(index, adapter=adapter, info=info, size=sides, **extras)


def _load_unet(
    source: str | Path,
    index: Pipeline | None,
    image_size: int | None,
    head_channels: int,
    qkv_order: QkvOrder,
    revision: str | None,
) -> tuple[Base, Autoencoder]:
    part = None if index is None else next((part for part in AUTOENCODERS if part in index.parts), None)
    if index is None or part is None or index.parts.get("unet") != "UNet2DModel":
        options = {"image_size": image_size or 256, "head_channels": head_channels}
        return load_base(source, **options, qkv_order=qkv_order, revision=revision), IDENTITY
    autoencoder = PretrainedAutoencoder.load(index.fetched().folder / part)
    return load_base(source, qkv_order=qkv_order, revision=revision), autoencoder


def _require_none(source: str | Path, kind: str, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value:
            raise ValueError(f"{source} is not {kind}, so {name}={value!r} has no effect")


@float32_modes()
def new_model(
    fields: Config,
    *,
    autoencoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    prediction: Prediction = "epsilon",
    image_size: int,
    seed: int = 0,
) -> LoadedModel:
    """An untrained UNet with DDPM's linear schedule; its output is zero. Raises FileNotFoundError or ValueError for its parts.

    Args:
        fields: arguments of diffusers' UNet2DModel, or UNet2DConditionModel with a text encoder; without sample_size.
        autoencoder: folder of an autoencoder, for a UNet on its latents; None: on pixels.
        text_encoder: folder with text_encoder/ and tokenizer/ of a CLIP text model; needs an autoencoder.
        image_size: side of the images in pixels; seed: of the new weights.
    """
    from diffusers import UNet2DConditionModel, UNet2DModel

    codec = IDENTITY if autoencoder is None else PretrainedAutoencoder.find(Path(autoencoder))
    sides, cells = (image_size, image_size), image_size // codec.factor
    if text_encoder is None:
        unet = _new_unet(UNet2DModel, fields, cells, image_size=image_size, seed=seed)
        frozen = _frozen(codec)
        base = Base(unet, linear_betas(), prediction, "scratch", None, _frozen_hash(frozen))
        return UNetModel(base, autoencoder=codec, size=sides)
    require_transformers()
    from rad.models.text_to_image.loading import load_text
    from rad.models.text_to_image.stable_diffusion import StableDiffusionModel

    assert isinstance(codec, PretrainedAutoencoder), "a text encoder needs an autoencoder"
    conditional = _new_unet(UNet2DConditionModel, fields, cells, image_size=image_size, seed=seed)
    frozen = _frozen(codec)
    pipeline = load_text(Path(text_encoder), conditional, codec)
    origin = Origin("scratch", hash=_frozen_hash({**frozen, "text_encoder": pipeline.text_encoder}))
    return StableDiffusionModel(pipeline, origin, betas=linear_betas(), prediction=prediction, size=sides)


def _frozen(autoencoder: Autoencoder) -> dict[str, nn.Module]:
    if not isinstance(autoencoder, PretrainedAutoencoder):
        return {}
    if autoencoder.shift:
        raise ValueError(
            f"the autoencoder has shift_factor {autoencoder.shift}, which pipelines of this kind leave out when they decode: "
            "set it to 0 in its config.json"
        )
    return {"autoencoder": autoencoder.network}


def _frozen_hash(networks: Mapping[str, nn.Module]) -> str:
    """A run is resumed on the latents and the texts that it began with."""
    return weights_hash(
        {f"{part}.{name}": w for part, network in networks.items() for name, w in network.state_dict().items()}
    )


def _new_unet(kind: type[UNetT], fields: Config, cells: int, *, image_size: int, seed: int) -> UNetT:
    if fields.get("sample_size", cells) != cells:
        raise ValueError(
            f"model.scratch.unet.sample_size is {fields['sample_size']}, and images of {image_size} pixels give it {cells}: "
            "remove it, or set data.size"
        )
    if fields.get("dropout"):
        raise ValueError(
            f"model.scratch.unet.dropout is {fields['dropout']}; its random draws would depend on how a batch is split, and "
            "differ in a resumed run: remove it"
        )
    settings = {**fields, "sample_size": cells}
    with torch.random.fork_rng():
        torch.manual_seed(check_seed(seed))
        try:
            require_run(empty_unet(settings, kind))
            network = kind(**settings)
        except Exception as error:  # settings of a wrong type or size fail anywhere, with anything
            raise ValueError(
                f"model.scratch.unet does not describe a {kind.__name__}: {' '.join(str(error).split())}"
            ) from error
    for parameter in network.conv_out.parameters():  # ADM starts from a network that predicts zero
        nn.init.zeros_(parameter)
    return network
