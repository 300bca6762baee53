"""Text-to-image models from pipeline folders, with LoRAs and IP-Adapters.

The network classes are named here, so no file of a model decides which code runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
)

from rad.models.adapter import AdapterInfo
from rad.models.base import INDEX, read_schedule, scheduler_file
from rad.models.loaded_model import Origin
from rad.models.memory.choices import Quantize, quantization
from rad.models.text_to_image.controls import Controls
from rad.models.text_to_image.flow import FlowModel
from rad.models.text_to_image.flux import FluxFillModel, FluxModel
from rad.models.text_to_image.folders import (
    NetworkT,
    Pipeline,
    empty_network,
    load_encoder,
    load_network,
    load_tokenizer,
    network_folder,
    quietly,
    read_config,
    require_parts,
)
from rad.models.text_to_image.newer.loading import NEWER, check_parts, load_newer, require_versions
from rad.models.text_to_image.sd3 import SD3Model
from rad.models.text_to_image.sd3_inpaint import SD3InpaintModel, check_controlnet
from rad.models.text_to_image.stable_diffusion import StableDiffusionModel
from rad.models.vae import KINDS, PretrainedAutoencoder
from rad.models.weights import MOST_STEPS, describing, read_json, read_weights

Parts = dict[str, Any]
"""Arguments of a pipeline class; diffusers annotates some of them with enumerations."""

StableDiffusion = StableDiffusionPipeline | StableDiffusionXLPipeline

STABLE_PARTS = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "unet": UNet2DConditionModel,
}
XL_PARTS = {"text_encoder_2": CLIPTextModelWithProjection, "tokenizer_2": CLIPTokenizer}
SD3_PARTS = {
    "transformer": SD3Transformer2DModel,
    "text_encoder": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    **XL_PARTS,
}
SD3_T5 = {"text_encoder_3": T5EncoderModel, "tokenizer_3": T5TokenizerFast}
FLUX_PARTS = {
    "transformer": FluxTransformer2DModel,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "text_encoder_2": T5EncoderModel,
    "tokenizer_2": T5TokenizerFast,
}
FLUX = {"FluxPipeline": FluxModel, "FluxFillPipeline": FluxFillModel}
UNUSED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_stable_diffusion(
    index: Pipeline,
    *,
    adapter: Path | None = None,
    info: AdapterInfo | None = None,
    size: tuple[int, int] | None = None,
    controlnet: str | Path | None = None,
    t2i_adapter: str | Path | None = None,
    ip_adapter: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
) -> StableDiffusionModel:
    """Stable Diffusion 1, 2 or XL, on the CPU in float32. Arguments as of `load_model`."""
    folder = index.fetched().folder
    betas, prediction = read_schedule(folder)
    origin = Origin(index.source, index.revision)
    with quietly():
        pipeline = _stable_pipeline(folder, large="XL" in index.kind)
        controls = Controls(
            pipeline,
            None if controlnet is None else _network(ControlNetModel, network_folder(controlnet)),
            None if t2i_adapter is None else _network(T2IAdapter, Path(t2i_adapter)),
        )
        model = StableDiffusionModel(
            pipeline, origin, betas=betas, prediction=prediction, controls=controls, info=info, size=size
        )
        if adapter is not None:
            _ = model.hash  # of the base, before an IP-Adapter adds weights
        for number, (path, weight) in enumerate(loras):
            if not math.isfinite(weight):
                raise ValueError(f"the weight of LoRA {path} is {weight}; give a finite number")
            _load_lora(pipeline, Path(path), f"lora{number}")
        if loras:
            names = [f"lora{number}" for number in range(len(loras))]
            pipeline.set_adapters(names, [float(weight) for _, weight in loras])
        if ip_adapter is not None:
            _load_ip_adapter(pipeline, Path(ip_adapter))
        if adapter is not None:
            model.add_adapter(adapter)
    for module in (model.network, *model.frozen_modules()):  # LoRAs and the IP-Adapter add layers
        module.eval().requires_grad_(False)
    return model


def load_flow(
    index: Pipeline,
    *,
    adapter: Path | None = None,
    info: AdapterInfo | None = None,
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
    t5_dtype: torch.dtype | None = None,
    controlnet: str | Path | None = None,
    quantize: Quantize | None = None,
) -> FlowModel:
    """Stable Diffusion 3, Flux or a model of `NEWER`, on the CPU.

    An adapter needs the network in float32, and replaces the default size.
    `dtype`: of the network and the text encoders; `t5_dtype`: of T5; None: the same. `controlnet`: for inpainting with SD3.
    `quantize`: the network and T5.
    """
    require_versions(index)
    flux, with_t5 = index.kind in FLUX, "text_encoder_3" in index.parts
    if adapter is not None and (flux or index.kind in NEWER):
        raise ValueError(f"{index.source} is a {index.kind}, which has no RAD adapters: use another model")
    if adapter is not None and info is not None:
        size, dtype = info.size[0] if size is None else size, torch.float32
    kinds = FLUX_PARTS if flux else SD3_PARTS | (SD3_T5 if with_t5 else {})
    index = _checked(index, NEWER[index.kind][1] if index.kind in NEWER else (*kinds, "vae"), size, controlnet)
    folder = index.folder
    scheduler, t5_dtype = _flow_scheduler(folder, index.source), t5_dtype or dtype
    if index.kind in NEWER:
        return load_newer(index, scheduler, size=size, dtype=dtype, quantize=quantize)
    parts: Parts = dict.fromkeys(() if flux or with_t5 else SD3_T5)
    parts |= _parts(folder, kinds, dtype=dtype, t5_dtype=t5_dtype, quantize=quantize)
    parts |= {"vae": PretrainedAutoencoder.load(folder / "vae").network, "scheduler": None}
    origin = Origin(index.source, index.revision)
    if controlnet is not None:
        control = _network(SD3ControlNetModel, network_folder(controlnet), dtype=dtype)
        pipeline = StableDiffusion3Pipeline(**parts)
        return SD3InpaintModel(pipeline, origin, scheduler=scheduler, size=size, controlnet=control)
    kind = FLUX[index.kind] if flux else SD3Model
    pipeline = FluxPipeline(**parts) if flux else StableDiffusion3Pipeline(**parts)
    model = kind(pipeline, origin, scheduler=scheduler, size=size, info=info)
    if adapter is not None:
        model.add_adapter(adapter)
    return model


def _checked(index: Pipeline, parts: Iterable[str], size: int | None, controlnet: str | Path | None) -> Pipeline:
    """The files of a flow model. Its settings are checked before weights are fetched. Raises as `load_model`."""
    if index.revision is None:
        require_parts(index.folder, parts)
    with quietly():
        _check_settings(index.configured(), size, controlnet)
    index = index.fetched()
    require_parts(index.folder, parts)
    return index


def _check_settings(index: Pipeline, size: int | None, controlnet: str | Path | None) -> None:
    """Build the model without weights. Raises ValueError for parts, a ControlNet or a size that do not fit."""
    if index.kind in NEWER:
        check_parts(index)
        kind, allowed = NEWER[index.kind]
    else:
        kind, network = FLUX.get(index.kind, SD3Model), (FLUX_PARTS if index.kind in FLUX else SD3_PARTS)["transformer"]
        allowed = {"transformer": (network.__name__,), "vae": KINDS}
    parts = {name: _empty(index.folder / name, allowed[name]) for name in ("transformer", "vae")}
    pipeline: Any = SimpleNamespace(**parts, config={"is_distilled": False})
    options = {"scheduler": _flow_scheduler(index.folder, index.source), "size": size}
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


def load_text(folder: Path, unet: UNet2DConditionModel, autoencoder: PretrainedAutoencoder) -> StableDiffusionPipeline:
    """A pipeline of the CLIP text model and tokenizer in `folder` with a new denoiser network and its autoencoder.

    Raises FileNotFoundError for a missing part, ValueError for one that cannot be read or does not fit the network.
    """
    encoder = load_encoder(CLIPTextModel, folder / "text_encoder")
    tokenizer = load_tokenizer(CLIPTokenizer, folder / "tokenizer")
    channels, expected = encoder.config.hidden_size, unet.config["cross_attention_dim"]
    if expected != channels:
        raise ValueError(
            f"the text encoder of {folder} has {channels} channels, and model.scratch.unet takes {expected}: "
            f"set its cross_attention_dim to {channels}"
        )
    longest = encoder.config.max_position_embeddings
    if tokenizer.model_max_length > longest:
        raise ValueError(
            f"the tokenizer in {folder} has model_max_length {tokenizer.model_max_length}, and the text model reads "
            f"{longest} tokens: set model_max_length in tokenizer_config.json to that"
        )
    if not isinstance(autoencoder.network, AutoencoderKL):
        raise ValueError(
            "Text-conditioned models are saved in Stable Diffusion's format, which needs an AutoencoderKL; "
            f"got {type(autoencoder.network).__name__}: train with another autoencoder"
        )
    parts: Parts = {"vae": autoencoder.network, "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet}
    parts["scheduler"] = _scheduler(None)
    return StableDiffusionPipeline(**parts, **UNUSED)


def _network(
    kind: type[NetworkT],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize | None = None,
) -> NetworkT:
    config, scheme = read_config(folder, (kind.__name__,)), quantize and quantization(quantize, "diffusers")
    return load_network(kind, folder, config, dtype=dtype, quantization=scheme)


def _parts(
    folder: Path,
    kinds: Mapping[str, type],
    *,
    dtype: torch.dtype = torch.float32,
    t5_dtype: torch.dtype = torch.float32,
    quantize: Quantize | None = None,
) -> Parts:
    parts: Parts = {}
    for name, kind in kinds.items():
        if name.startswith("tokenizer"):
            parts[name] = load_tokenizer(kind, folder / name)
        elif name.startswith("text_encoder"):
            t5 = kind is T5EncoderModel
            scheme = quantization(quantize, "transformers") if t5 and quantize is not None else None
            parts[name] = load_encoder(kind, folder / name, dtype=t5_dtype if t5 else dtype, quantization=scheme)
        else:
            parts[name] = _network(kind, folder / name, dtype=dtype, quantize=quantize)
    return parts


def _stable_pipeline(folder: Path, *, large: bool) -> StableDiffusion:
    parts = _parts(folder, STABLE_PARTS | XL_PARTS if large else STABLE_PARTS)
    with describing(folder):
        parts["scheduler"] = _scheduler(scheduler_file(folder))
        if not large:
            return StableDiffusionPipeline(**parts, **UNUSED)
        index = read_json(folder / INDEX)
        if index.get("requires_aesthetics_score"):
            raise ValueError(f"{folder} requires an aesthetics score, which is not supported: take a base model")
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)


def _scheduler(path: Path | None) -> DDIMScheduler:
    """The scheduler that is written with a pipeline: of a scheduler_config.json; None: DDPM's noise. Sampling ignores it."""
    if path is None:
        return DDIMScheduler(clip_sample=False, steps_offset=1)
    with describing(path):
        scheduler = DDIMScheduler.from_config(read_json(path))
    assert isinstance(scheduler, DDIMScheduler)
    return scheduler


def _flow_scheduler(folder: Path, source: str) -> FlowMatchEulerDiscreteScheduler:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: fetch the whole pipeline folder again")
    config = read_json(path)
    if config.get("_class_name") != "FlowMatchEulerDiscreteScheduler":
        raise ValueError(f"the scheduler of {source} is no FlowMatchEulerDiscreteScheduler, which its pipeline needs")
    steps = config.get("num_train_timesteps", 1000)
    if not (isinstance(steps, int) and 1 <= steps <= MOST_STEPS):
        raise ValueError(f"num_train_timesteps is {steps!r}: allowed are 1 to {MOST_STEPS}")
    with describing(path):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return scheduler


def _weights_file(path: Path, what: str) -> Path:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(f"{path} holds {len(files)} .safetensors: give the file of the {what}")
        return files[0]
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}: give its .safetensors file")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the weights of a {what} are read as .safetensors alone")
    return path


def _load_lora(pipeline: StableDiffusion, path: Path, name: str) -> None:
    file = _weights_file(path, "LoRA")
    _ = read_weights(file)  # refuses values that are not finite
    with describing(file):
        pipeline.load_lora_weights(
            str(file.parent),
            weight_name=file.name,
            adapter_name=name,
            use_safetensors=True,
            local_files_only=True,
        )
    if not any(name in names for names in pipeline.get_list_adapters().values()):
        raise ValueError(f"{file} changes nothing of this model: it is a LoRA of another one")


def _load_ip_adapter(pipeline: StableDiffusion, path: Path) -> None:

    file = _weights_file(path, "IP-Adapter")
    _ = read_weights(file)  # refuses values that are not finite
    encoder = load_encoder(CLIPVisionModelWithProjection, file.parent / "image_encoder")
    pipeline.register_modules(image_encoder=encoder)
    with describing(file):
        pipeline.load_ip_adapter(
            str(file.parent),
            subfolder="",
            weight_name=file.name,
            image_encoder_folder=None,
            local_files_only=True,
        )
