"""Base models: a diffusers folder, a guided-diffusion .pt file or a hub id becomes one stock UNet2DModel.

Rows of fused q, k, v matrices (see `rad.models.guided_diffusion`) are sorted here, once; later code runs stock diffusers.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rad.console import did_you_mean
from rad.diffusion.schedules import karras_sigmas
from rad.diffusion.step import Prediction
from rad.images.atomic import replacing
from rad.models.guided_diffusion import ADM_TIME, QkvOrder, adm_config, rename_adm, split_qkv
from rad.models.weights import (
    MOST_STEPS,
    WEIGHT_FILES,
    Config,
    _build,
    describing,
    empty_unet,
    fetch,
    is_hub_id,
    read_json,
    read_weights,
    require_fit,
    weights_hash,
    with_new_names,
)
from rad.modes import float32_modes
from rad.networks import OWN_ENTRIES, REGION_AWARE, SURROUNDINGS
from rad.resources import EXPORTED, checkpoint_names, located

FEATURES = "model.json"
"""File of a feature network for metrics."""

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
INDEX = "model_index.json"
DDPM_SCHEDULE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


@dataclass(frozen=True)
class Base:
    """A base model: the network, its noise schedule and its provenance.

    Args:
        unet: float32, eval mode, on the CPU.
        betas: (T,) float64 in (0, 1); empty for EDM, which has sigmas, (T,) float64, increasing, and sigma_data of its data.
        prediction_type: of the network; "edm": the preconditioning of `EDMDenoiser`.
        revision: hub commit, None for local files; hash: `weights_hash` of the network.
    """

    unet: UNet2DModel
    betas: Tensor
    prediction_type: Prediction | Literal["edm"]
    source: str
    revision: str | None
    hash: str
    sigmas: Tensor | None = None
    sigma_data: float = 0.5


@float32_modes()
def load_base(
    source: str | Path,
    *,
    image_size: int = 256,
    head_channels: int = 64,
    norm_eps: float | None = None,
    qkv_order: QkvOrder = "legacy",
    revision: str | None = None,
) -> Base:
    """Load a base model from a diffusers folder, a guided-diffusion .pt file or a hub id "organisation/name".

    A local path opens no connection. Raises FileNotFoundError, or ValueError for a file that cannot be read or does not fit.

    Args:
        image_size: pixels a side; head_channels: channels of an attention head. A .pt file lacks both, a folder has them.
        norm_eps: epsilon of all group norms; None: 1e-5 for ADM weights (the training value, even for converted folders with
            1e-6), otherwise the folder's value.
        qkv_order: "naive" reads q, k and v as three blocks of rows. Use it for .pt files with the new attention order, and
            for official RAD adapters, whose base was converted this way and keeps the epsilon of 1e-6.
    """
    if qkv_order not in ("legacy", "naive"):
        raise ValueError(f"qkv_order is {qkv_order!r}: use 'legacy' or 'naive'")
    path, revision = _locate(source, revision)
    if (path / FEATURES).is_file() and not ((path / "unet").exists() or (path / "config.json").exists()):
        raise ValueError(f"{path} is a feature network for metrics, no diffusion model: give it as feature_net")
    sigmas, sigma_data = None, 0.5
    if path.is_dir():
        unet = _read_unet(path, norm_eps=norm_eps, qkv_order=qkv_order)
        stored = (unet.config["sample_size"], unet.config["attention_head_dim"])
        if image_size not in (256, stored[0]) or head_channels not in (64, stored[1]):
            warnings.warn(
                f"{path} has image_size, head_channels = {stored}: other values do not change the network", stacklevel=2
            )
        karras = _read_karras(path)
        if karras is None:
            betas, prediction_type = read_schedule(path)
        else:
            betas, prediction_type, (sigmas, sigma_data) = torch.empty(0, dtype=torch.float64), "edm", karras
    else:
        eps = 1e-5 if norm_eps is None else norm_eps
        state = read_weights(path)
        if any(name.startswith("model.diffusion_model.") for name in state):
            raise ValueError(
                f"{path} is Stable Diffusion in a single file: make a folder of it with diffusers' "
                "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
            )
        with describing(path):
            unet = convert_adm(
                state, image_size=image_size, head_channels=head_channels, norm_eps=eps, qkv_order=qkv_order
            )
        betas, prediction_type = _betas(DDPM_SCHEDULE), "epsilon"
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    if inputs == 3 and outputs not in (3, 6):
        raise ValueError(f"{path} has {outputs} output channels: a pixel model has 3, or 6 if it learns variances")
    if sigmas is not None and outputs != inputs:
        raise ValueError(f"{path} has {outputs} output and {inputs} input channels: EDM networks have equal numbers")
    base_hash = weights_hash(unet.state_dict())
    return Base(unet, betas, prediction_type, str(source), revision, base_hash, sigmas, sigma_data)


def save_base(
    folder: str | Path,
    unet: UNet2DModel | UNet2DConditionModel,
    *,
    betas: Tensor,
    prediction_type: Prediction = "epsilon",
    half: bool = True,
    latent: bool = False,
    region_aware: bool = False,
) -> None:
    """Write `folder`/unet and `folder`/scheduler for `load_base` and stock diffusers; betas: (T,) in (0, 1).

    A pixel model also gets a model_index.json, with which `diffusers.DDPMPipeline.from_pretrained(folder)` loads it.

    Args:
        half: store float16, which rounds values that did not come from float16.
        latent: a network on latents, which samplers must not clip to [-1, 1].
        region_aware: a network that was only trained with a timestep per pixel. It is marked in config.json, refuses a single
            timestep (see `rad.networks.unet.patch`), and gets no model_index.json.

    Raises ValueError for a network with adapters inside, or values that float16 cannot hold.
    """
    from diffusers import UNet2DConditionModel, UNet2DModel, __version__
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from safetensors.torch import save_file

    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type is {prediction_type!r}: use one of {', '.join(PREDICTION_TYPES)}")
    config = {key: value for key, value in unet.config.items() if not key.startswith("_") and key not in OWN_ENTRIES}
    kind = UNet2DConditionModel if isinstance(unet, UNet2DConditionModel) else UNet2DModel
    dtype = torch.float16 if half else torch.float32
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in unet.state_dict().items()}
    require_fit(empty_unet(config, kind), weights)
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError(f"some weights are not finite in {dtype}: save with half=False, or check the training")
    place = Path(folder) / "unet"
    place.mkdir(parents=True, exist_ok=True)
    marks = {REGION_AWARE: region_aware, SURROUNDINGS: unet.config.get(SURROUNDINGS)}
    marks = {name: True for name, given in marks.items() if given}
    named = {
        **config,
        **{name: True for name, given in marks.items() if given},
        "_class_name": kind.__name__,
        "_diffusers_version": __version__,
    }
    (place / "config.json").write_text(json.dumps(named, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with replacing(place / WEIGHT_FILES[0]) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})

    betas = betas.detach().to("cpu", torch.float64)
    first, last, steps = betas[0].item(), betas[-1].item(), len(betas)
    linear = torch.equal(betas, torch.linspace(first, last, steps, dtype=torch.float64))
    learned = config["out_channels"] == 2 * config["in_channels"]
    DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=first,
        beta_end=last,
        trained_betas=None if linear else betas.tolist(),
        prediction_type=prediction_type,  # pyright: ignore[reportArgumentType]
        variance_type="learned_range" if learned else "fixed_small",
        clip_sample=config["in_channels"] == 3 and not latent,
    ).save_config(Path(folder) / "scheduler")
    if config["in_channels"] == 3 and kind is UNet2DModel and not latent and not region_aware:
        parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
        content = {"_class_name": "DDPMPipeline", "_diffusers_version": __version__, **parts}
        (Path(folder) / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def convert_adm(
    state: Mapping[str, Tensor],
    *,
    image_size: int,
    head_channels: int,
    norm_eps: float = 1e-5,
    qkv_order: QkvOrder = "legacy",
) -> UNet2DModel:
    """A guided-diffusion state dict as a stock UNet2DModel in eval mode: a float32 copy on the same device.

    Names and shapes give all other settings. Raises ValueError for weights that do not fit.
    """
    config = adm_config(state, image_size=image_size, head_channels=head_channels, norm_eps=norm_eps)
    return _build(config, rename_adm(state, config, qkv_order=qkv_order))


def require_source(source: str | Path) -> None:
    """Raise FileNotFoundError for a source that is neither a path on this machine nor a hub id."""
    path = located(source)
    if not path.exists() and not is_hub_id(source):
        hint = did_you_mean(path.name, checkpoint_names())
        raise FileNotFoundError(
            f"no model at {str(source)!r}{hint}: give an adapter folder, a diffusers folder, a guided-diffusion .pt file or a "
            "hub id 'organisation/name'"
        )


def _locate(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The local path of `source`, fetched first if it is a hub id, and the hub commit."""
    path = located(source)
    if path.exists():
        if revision is not None:
            warnings.warn(f"revision={revision!r} is unused: {path} is a local path", stacklevel=2)
        return path, None
    require_source(source)
    settings = ["config.json", "unet/config.json", "scheduler_config.json", "scheduler/scheduler_config.json"]
    for weights in WEIGHT_FILES:
        folder = fetch(str(source), [*settings, weights, f"unet/{weights}"], revision=revision)
        if (folder / weights).is_file() or (folder / "unet" / weights).is_file():
            break
    return folder, folder.name  # the hub client names a snapshot's folder by its commit


def _read_unet(folder: Path, *, norm_eps: float | None, qkv_order: QkvOrder) -> UNet2DModel:
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    config, per_head = _read_config(place / "config.json", norm_eps=norm_eps, qkv_order=qkv_order)
    marks = {name: True for name in OWN_ENTRIES if config.pop(name, False)}
    weights = next((place / name for name in WEIGHT_FILES if (place / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"no weights in {place}: put {' or '.join(WEIGHT_FILES)} there")
    state = with_new_names(read_weights(weights))
    with describing(place):
        if per_head:
            state |= _sorted_rows(state, config.get("attention_head_dim", 8))
        unet = _build(config, state)
    unet.register_to_config(**marks)
    return unet


def _read_config(path: Path, *, norm_eps: float | None, qkv_order: QkvOrder) -> tuple[Config, bool]:
    """UNet2DModel arguments of a config.json, and whether its q, k, v rows need sorting."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    if not path.is_file():
        if (path.parent / EXPORTED).is_file():
            raise ValueError(
                f"{path.parent} holds ONNX files, which PyTorch does not read: give the checkpoint that they were exported from"
            )
        raise FileNotFoundError(f"no {path}: give a diffusers folder, with unet/ and scheduler/ or both in one")
    config = read_json(path)
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{path} describes a {config.get('_class_name')}: only a UNet2DModel can be loaded")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    # Folders for a fork of diffusers (xutongda/adm_*) hold two settings that stock diffusers lacks.
    legacy = bool(config.pop("attention_legacy_order", False))
    unknown = sorted(config.keys() - {*OWN_ENTRIES, *inspect.signature(UNet2DModel.__init__).parameters})
    if unknown:
        raise ValueError(
            f"{path} has settings unknown to UNet2DModel ({', '.join(map(repr, unknown[:5]))}): remove them"
        )
    if legacy or config.get("time_embedding_type") == "adm":
        config |= ADM_TIME
        if config.get("attn_norm_num_groups") is None:
            config["attn_norm_num_groups"] = config.get("norm_num_groups", 32)
        if qkv_order == "legacy" and config.get("norm_eps") == 1e-6:
            config["norm_eps"] = 1e-5
    if norm_eps is not None:
        config["norm_eps"] = norm_eps
    if qkv_order == "naive" and not legacy:
        warnings.warn(
            f"{path} has no attention_legacy_order: qkv_order 'naive', which model.official sets too, has no effect",
            stacklevel=2,
        )
    return config, legacy and qkv_order == "legacy"


def _sorted_rows(state: Mapping[str, Tensor], head_channels: int | None) -> dict[str, Tensor]:
    """q, k, v of a folder that cut ADM's fused matrix into three blocks; head_channels None: one head a layer."""
    rows: dict[str, Tensor] = {}
    for name in state:
        blocks = [name.replace(".to_q.", f".to_{part}.") for part in "qkv"]
        if ".to_q." in name and all(block in state for block in blocks):
            fused = torch.cat([state[block] for block in blocks])
            parts = split_qkv(fused, head_channels or len(state[name]), "legacy")
            rows |= zip(blocks, parts.values(), strict=True)
    return rows


def scheduler_file(folder: Path) -> Path | None:
    """The scheduler_config.json of a model folder; None where there is none."""
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    return next((place for place in places if place.is_file()), None)


def read_schedule(folder: Path) -> tuple[Tensor, Prediction]:
    """(T,) float64 betas and the prediction type of a folder's scheduler."""
    path = scheduler_file(folder)
    if path is None:
        warnings.warn(f"no scheduler_config.json in {folder}: taking DDPM's linear schedule", stacklevel=3)
        return _betas(DDPM_SCHEDULE), "epsilon"
    config = read_json(path)
    prediction_type: Prediction = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"{path}: prediction_type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
    with describing(path):
        return _check_betas(_betas(config)), prediction_type


def _read_karras(folder: Path) -> tuple[Tensor, float] | None:
    """(T,) float64 sigmas, increasing, and sigma_data of a folder whose scheduler has EDM's formulation; None for others."""
    path = scheduler_file(folder)
    config = {} if path is None else read_json(path)
    if path is None or config.get("_class_name") not in EDM_SCHEDULERS:
        return None
    with describing(path):
        return _karras(config)


def _karras(config: Config) -> tuple[Tensor, float]:
    numbers = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    low, high, data, rho = (config.get(name, default) for name, default in numbers.items())
    steps = config.get("num_train_timesteps", 1000)
    right = 0 < low < high < math.inf and 0 < rho < math.inf and 0 < data < math.inf
    if not (isinstance(steps, int) and 2 <= steps <= MOST_STEPS and right):
        raise ValueError("the levels of noise do not rise from above 0: fetch the file again")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"prediction_type is {config['prediction_type']!r}: in EDM's formulation only 'epsilon' is known"
        )
    if config.get("sigma_schedule", "karras") == "exponential":
        return torch.linspace(math.log(low), math.log(high), steps, dtype=torch.float64).exp(), float(data)
    return karras_sigmas(steps, low=low, high=high, rho=rho), float(data)


def _betas(config: Config) -> Tensor:
    """(T,) float64 betas of a diffusers scheduler config; the cosine is Nichol and Dhariwal 2021, eq. 17."""
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("rescale_betas_zero_snr=true is not supported: use a model that keeps some signal at T")
    steps = config.get("num_train_timesteps", 1000)
    if not (isinstance(steps, int) and 1 <= steps <= MOST_STEPS):
        raise ValueError(f"num_train_timesteps is {steps!r}: allowed are 1 to {MOST_STEPS}")
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    schedule = config.get("beta_schedule")
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    if schedule == "squaredcos_cap_v2":
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    allowed = "linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
    raise ValueError(f"beta_schedule is {schedule!r}: use a model with {allowed}")


def _check_betas(betas: Tensor) -> Tensor:
    if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError("the betas are no list of numbers between 0 and 1: fetch the file again")
    return betas
