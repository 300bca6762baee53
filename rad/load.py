"""Base models: a diffusers folder, a guided-diffusion .pt file or a hub id becomes one stock UNet2DModel.

ADM (Dhariwal and Nichol 2021, arXiv 2105.05233) keeps q, k, v of an attention layer in one matrix of 3C rows,
head by head: [q k v] of the first head, [q k v] of the second, ... diffusers keeps three matrices. The rows
are sorted here, once, so that everything after this file runs stock diffusers.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rad.adm import ADM_TIME, QkvOrder, adm_config, rename_adm, split_qkv
from rad.process import karras_sigmas

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
WEIGHT_FILES = tuple(f"diffusion_pytorch_model{e}" for e in (".safetensors", ".fp16.safetensors", ".bin"))
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
MOST_STEPS = 100_000
INDEX = "model_index.json"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Those of `rad.stable`, by the class that their INDEX names."""
DDPM_SCHEDULE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
# ADM's sinusoid: cosines first, frequencies exp(-ln(10000) i / half).


@dataclass(frozen=True)
class Base:
    """A base model: the network, its noise schedule and where it came from.

    unet: float32, eval mode, on the CPU. betas: (T,) float64 in (0, 1). prediction_type: epsilon, sample or
    v_prediction; or edm, in the preconditioning of `rad.prior.EDMPrior` with sigma_data, at sigmas (T,) float64 instead
    of betas, which are none. revision: the hub commit, None for local files. hash: `weights_hash` of the network.
    """

    unet: UNet2DModel
    betas: Tensor
    prediction_type: str
    source: str
    revision: str | None
    hash: str
    sigmas: Tensor | None = None
    sigma_data: float = 0.5


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of sorted names, shapes and little-endian float32 values, however they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32)
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


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

    An existing local path never touches the network. `image_size` (pixels a side) and `head_channels`
    (channels of one attention head) describe a .pt file, which does not hold them; a folder does. `norm_eps`
    replaces the epsilon of all group norms; None means 1e-5 for ADM weights, as they were trained (even if a
    converted folder says 1e-6), and a folder's own value otherwise. `qkv_order="naive"` takes q, k and v as
    three plain blocks of rows: for .pt files trained with the new attention order, and for official RAD
    adapters, trained on converted folders that were read in that way (their epsilon of 1e-6 is kept too).

    Raises FileNotFoundError if something is not there, ValueError if it cannot be read or does not fit.
    """
    if qkv_order not in ("legacy", "naive"):
        raise ValueError(f"qkv_order is {qkv_order!r}: use 'legacy' or 'naive'")
    path, revision = _locate(source, revision)
    sigmas, sigma_data = None, 0.5
    if path.is_dir():
        unet = _read_unet(path, norm_eps=norm_eps, qkv_order=qkv_order)
        own = (unet.config["sample_size"], unet.config["attention_head_dim"])
        if image_size not in (256, own[0]) or head_channels not in (64, own[1]):
            warnings.warn(f"{path} says image_size, head_channels = {own}: yours are unused", stacklevel=2)
        karras = _read_karras(path)
        if karras is None:
            betas, prediction_type = read_schedule(path)
        else:
            betas, prediction_type, (sigmas, sigma_data) = torch.empty(0, dtype=torch.float64), "edm", karras
    else:
        eps = 1e-5 if norm_eps is None else norm_eps
        size: dict[str, Any] = {"image_size": image_size, "head_channels": head_channels}
        state = read_weights(path)
        with describing(path):
            unet = convert_adm(state, **size, norm_eps=eps, qkv_order=qkv_order)
        betas, prediction_type = _betas(DDPM_SCHEDULE), "epsilon"
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    if inputs == 3 and outputs not in (3, 6):
        raise ValueError(f"{path} has {outputs} output channels: a pixel model has 3, or 6 if it learns variances")
    if sigmas is not None and outputs != inputs:
        raise ValueError(f"{path} has {outputs} output channels for {inputs}: a network of EDM's has as many")
    own_hash = weights_hash(unet.state_dict())
    return Base(unet, betas, prediction_type, str(source), revision, own_hash, sigmas, sigma_data)


def save_base(
    folder: str | Path,
    unet: UNet2DModel | UNet2DConditionModel,
    *,
    betas: Tensor,
    prediction_type: str = "epsilon",
    half: bool = True,
    latent: bool = False,
) -> None:
    """Write `folder`/unet and `folder`/scheduler as `load_base` and stock diffusers read them.

    betas: (T,) in (0, 1). `half` stores float16: exact for values that came from float16, else rounded. The
    variance type follows from the network: learned_range with twice as many output as input channels, else
    fixed_small. `latent`: it makes latents, which samplers must not clip to [-1, 1]. Raises ValueError for a
    network with adapters inside or values that float16 cannot hold.
    """
    from diffusers import UNet2DConditionModel, UNet2DModel, __version__
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from safetensors.torch import save_file

    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type is {prediction_type!r}: use one of {', '.join(PREDICTION_TYPES)}")
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    kind = UNet2DConditionModel if isinstance(unet, UNet2DConditionModel) else UNet2DModel
    dtype = torch.float16 if half else torch.float32
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in unet.state_dict().items()}
    require_fit(empty_unet(config, kind), weights)
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError(f"some weights are not finite in {dtype}: save with half=False, or check the training")
    place = Path(folder) / "unet"
    place.mkdir(parents=True, exist_ok=True)
    named = {**config, "_class_name": kind.__name__, "_diffusers_version": __version__}
    (place / "config.json").write_text(json.dumps(named, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(weights, place / WEIGHT_FILES[0], metadata={"format": "pt"})

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


def convert_adm(
    state: Mapping[str, Tensor],
    *,
    image_size: int,
    head_channels: int,
    norm_eps: float = 1e-5,
    qkv_order: QkvOrder = "legacy",
) -> UNet2DModel:
    """A guided-diffusion state dict as a stock UNet2DModel in eval mode: a float32 copy on the same device.

    Widths, depth, attention levels, learned variance, classes and the kind of resampling are read off names
    and shapes. image_size: pixels a side; head_channels: channels of one head. ValueError if it does not fit.
    """
    config = adm_config(state, image_size=image_size, head_channels=head_channels, norm_eps=norm_eps)
    return _build(config, rename_adm(state, config, qkv_order=qkv_order))


# ---- files ---------------------------------------------------------------------------------------


def _locate(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The local path of `source`, fetched first if it is a hub id, and the hub commit."""
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            warnings.warn(f"revision={revision!r} is unused: {path} is a local path", stacklevel=3)
        return path, None
    if not is_hub_id(source):
        raise FileNotFoundError(
            f"no base model at {str(source)!r}: give a diffusers folder, a guided-diffusion .pt file or a hub"
            " id 'organisation/name'"
        )
    settings = ["config.json", "unet/config.json", "scheduler_config.json", "scheduler/scheduler_config.json"]
    for weights in WEIGHT_FILES:
        folder = fetch(str(source), [*settings, weights, f"unet/{weights}"], revision=revision)
        if (folder / weights).is_file() or (folder / "unet" / weights).is_file():
            break
    return folder, folder.name  # the hub client names a snapshot's folder by its commit


def is_hub_id(source: str | Path) -> bool:
    """Whether it reads as "organisation/name", and not as the name of a file."""
    is_file_name = Path(source).suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
    return not (isinstance(source, Path) or is_file_name or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source))


def fetch(source: str, files: Sequence[str], *, revision: str | None) -> Path:
    """The folder of a hub id, with those of `files` (patterns) that it has. Raises ValueError where it cannot be fetched."""
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub client raises the errors of whichever HTTP library its version uses
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"{source!r} is no local path, and was not looked for on the Hugging Face hub, since HF_HUB_OFFLINE is set and"
                f" {constants.HF_HUB_CACHE} does not hold it: unset the variable, or give a local folder"
            ) from error
        raise ValueError(
            f"{source!r} is no local path and could not be fetched from the Hugging Face hub"
            f" ({type(error).__name__}): check name, revision and connection, or give a local folder"
        ) from error


def _read_unet(folder: Path, *, norm_eps: float | None, qkv_order: QkvOrder) -> UNet2DModel:
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    config, per_head = _read_config(place / "config.json", norm_eps=norm_eps, qkv_order=qkv_order)
    weights = next((place / name for name in WEIGHT_FILES if (place / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"no weights in {place}: put {' or '.join(WEIGHT_FILES)} there")
    state = with_new_names(read_weights(weights))
    with describing(place):
        if per_head:
            state |= _sorted_rows(state, config.get("attention_head_dim", 8))
        return _build(config, state)


def with_new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention layers had other names when google/ddpm-* and CompVis/ldm-* were stored (diffusers before 0.15)."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = re.compile(r"(?<=\d\.)(query|key|value|proj_attn)(?=\.)")
    return {pattern.sub(lambda m: old[m[0]], name): value for name, value in state.items()}


def _read_config(path: Path, *, norm_eps: float | None, qkv_order: QkvOrder) -> tuple[dict[str, Any], bool]:
    """UNet2DModel arguments of a config.json, and whether its q, k, v rows are still to be sorted."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give a diffusers folder, with unet/ and scheduler/ or both in one")
    config = read_json(path)
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{path} describes a {config.get('_class_name')}: only a UNet2DModel can be loaded")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    # Folders made for a fork of diffusers (xutongda/adm_*) hold two settings that stock diffusers lacks.
    legacy = bool(config.pop("attention_legacy_order", False))
    unknown = sorted(config.keys() - inspect.signature(UNet2DModel.__init__).parameters.keys())
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
        warnings.warn(f"qkv_order='naive' is unused: {path} has no attention_legacy_order", stacklevel=4)
    return config, legacy and qkv_order == "legacy"


def _sorted_rows(state: Mapping[str, Tensor], head_channels: int | None) -> dict[str, Tensor]:
    """q, k, v of a folder that cut ADM's fused matrix into three plain blocks; None: one head a layer."""
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


def read_schedule(folder: Path) -> tuple[Tensor, str]:
    """(T,) float64 betas and the prediction type of a folder's scheduler."""
    path = scheduler_file(folder)
    if path is None:
        warnings.warn(f"no scheduler_config.json in {folder}: taking DDPM's linear schedule", stacklevel=3)
        return _betas(DDPM_SCHEDULE), "epsilon"
    config = read_json(path)
    prediction_type = config.get("prediction_type", "epsilon")
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


def _karras(config: Mapping[str, Any]) -> tuple[Tensor, float]:
    numbers = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    low, high, data, rho = (config.get(name, default) for name, default in numbers.items())
    steps = config.get("num_train_timesteps", 1000)
    if not (isinstance(steps, int) and 2 <= steps <= MOST_STEPS and 0 < low < high < math.inf and rho > 0 and data > 0):
        raise ValueError("the levels of noise do not rise from above 0: fetch the file again")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"prediction_type is {config['prediction_type']!r}: in EDM's formulation only 'epsilon' is known"
        )
    if config.get("sigma_schedule", "karras") == "exponential":
        return torch.linspace(math.log(low), math.log(high), steps, dtype=torch.float64).exp(), float(data)
    return karras_sigmas(steps, low=low, high=high, rho=rho), float(data)


def _betas(config: Mapping[str, Any]) -> Tensor:
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: fetch it again")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor, from a .safetensors or a torch file; pickled code is never run."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged or holds more than"
            " tensors; fetch it again or export a plain state dict"
        ) from error
    if not (isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{path} is no plain dictionary of tensors: export the (EMA) state dict alone")
    return dict(state)


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """What settings or shapes out of a file make diffusers and torch raise, in one line with its path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {_flat(error)}") from error
    except Exception as error:  # settings of a wrong type or size fail anywhere, with anything
        raise ValueError(
            f"{path} cannot be used, a setting or shape is wrong ({type(error).__name__}: {_flat(error)})"
        ) from error


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


# ---- building ------------------------------------------------------------------------------------


def empty_unet(config: Mapping[str, Any], kind: Any = None) -> UNet2DModel:
    """The network of `config` without values: costs no time and leaves the global random generator alone.

    kind: None or a class, UNet2DModel or UNet2DConditionModel."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    with torch.device("meta"):
        return (kind or UNet2DModel)(**config)


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UNet2DModel:
    """The network of `config` with a float32 copy of `state`, every name and shape matched, in eval mode."""
    layers = config.get("layers_per_block", 2)
    if not (isinstance(layers, int) and layers <= len(state)):  # each has weights; a million layers would take hours
        raise ValueError(
            f"layers_per_block is {layers!r}, for {len(state)} weights: use the config they were saved with"
        )
    unet = empty_unet(config)
    require_fit(unet, state)
    require_run(unet)
    unet.to_empty(device=next(iter(state.values())).device)
    unet.load_state_dict(state)
    return unet.eval()


def require_run(unet: UNet2DModel) -> None:
    """Raise ValueError if the network, whose parameters have shapes alone (device "meta"), cannot predict an image."""
    size = unet.config["sample_size"]
    sides = (size, size) if isinstance(size, int) else size
    if sides is None or unet.config["class_embed_type"] is not None:  # of an unknown size, or with labels of any kind
        return
    right = isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(n, int) for n in sides)
    if not (right and all(1 <= n <= 8192 for n in sides)):
        raise ValueError(f"sample_size is {size!r}: give 1 to 8192 pixels a side, or [height, width]")
    image = torch.empty(1, unet.config["in_channels"], *sides, device="meta")
    told: dict[str, Any] = {}
    if unet.class_embedding is not None:
        told["class_labels"] = torch.zeros(1, dtype=torch.long, device="meta")
    if unet.config.get("cross_attention_dim") is not None:
        told["encoder_hidden_states"] = torch.empty(1, 1, unet.config["cross_attention_dim"], device="meta")
    try:
        with torch.no_grad():
            shape = unet(image, torch.zeros(1, device="meta"), **told).sample.shape
    except Exception as error:  # whatever does not fit inside
        raise ValueError(
            f"the network cannot run on {tuple(image.shape)} ({_flat(error)}): check its config"
        ) from error
    if shape[2:] != image.shape[2:]:
        raise ValueError(f"the network makes {tuple(shape)} of {tuple(image.shape)}: check sample_size in its config")


def require_fit(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `state` has every name and shape of the network, and no other."""
    wanted = {name: value.shape for name, value in [*network.named_parameters(), *network.named_buffers()]}
    problems = {
        "missing": wanted.keys() - state.keys(),
        "left over": state.keys() - wanted.keys(),
        "of another shape": {name for name in wanted.keys() & state.keys() if wanted[name] != state[name].shape},
    }
    told = [f"{len(names)} {kind}: {', '.join(sorted(names)[:5])}" for kind, names in problems.items() if names]
    if told:
        raise ValueError(f"weights do not fit the network ({'; '.join(told)}): use the config they were saved with")
