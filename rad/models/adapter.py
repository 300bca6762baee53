"""The folder of a RAD adapter: peft's layout, `rad_config.json` and a model card."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rad.diffusion.processes import TimeOrigin
from rad.images.atomic import replacing, write_text
from rad.models.guided_diffusion import QkvOrder
from rad.models.lora import SD3_TIME_LAYERS, TIME_LAYERS, lora_layers
from rad.models.settings.preferred import NOTHING, Preferred
from rad.models.weights import require_finite_weights
from rad.networks.dropout import key_dropout

FORMAT = 1

Kind = Literal["pixel", "latent", "stable", "stable_xl", "stable3", "flux", "qwen_image", "z_image", "flux2_klein"]
"""UNet on pixels; UNet on latents; Stable Diffusion 1 or 2, XL, 3; Flux; Qwen-Image; Z-Image; FLUX.2 [klein]."""


@dataclass(frozen=True)
class AdapterInfo:
    """The content of `rad_config.json`.

    Args:
        kind, base: kind of the base model, and its folder, file or hub id; base_revision: of a hub id.
        base_hash: `rad.models.weights.weights_hash` of the base model; loading compares it.
        time_origin: see `rad.diffusion.processes.RegionAware`; process: of training, see `rad.training.Diffusion`.
        steps: number of noise levels of a phase; size: (height, width) of the training images in pixels.
        trained_steps: optimiser steps; ema: whether these are averaged weights.
        qkv_order: of the base, see `rad.models.base.load_base`.
        learned_variance: whether the variance was trained (vlb_weight > 0); if not, sampling uses the posterior's.
        unconditional: whether some training holes were the whole image. A model trained as a whole is then also a base model.
        sampling: settings for sampling that users need not give.
    """

    base: str
    base_hash: str
    time_origin: TimeOrigin
    steps: int
    size: tuple[int, int]
    base_revision: str | None = None
    trained_steps: int = 0
    ema: bool = False
    qkv_order: QkvOrder = "legacy"
    learned_variance: bool = True
    process: str = "region_aware"
    unconditional: bool = False
    kind: Kind = "pixel"
    sampling: Preferred = NOTHING
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> "AdapterInfo":
        path = folder / "rad_config.json"
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise ValueError("not a JSON object")
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: {folder} is not a RAD adapter folder") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error}): restore it, or export the adapter again") from None
        unknown = set(content) - {field.name for field in fields(cls)}
        if content.get("format") != FORMAT or unknown:
            raise ValueError(
                f"{path} has format {content.get('format')} and unknown keys {sorted(unknown)}; "
                f"this version of rad reads format {FORMAT}"
            )
        wrong = [name for name, allowed in _INFO.items() if name in content and not allowed(content[name])]
        if wrong:
            raise ValueError(
                f"{path} is damaged ({wrong[0]} is {json.dumps(content[wrong[0]])[:60]}): restore it, or export the adapter again"
            )
        try:
            sampling = Preferred.read(content.get("sampling", {}))
            if sampling.size is not None and content.get("kind", "pixel") != "pixel":
                raise ValueError(f"sampling.size is for models of kind 'pixel', not {content['kind']!r}")
        except ValueError as error:
            raise ValueError(f"{path}: {error}; correct this entry or remove it") from None
        try:
            return cls(**{**content, "size": tuple(content["size"]), "sampling": sampling})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} is incomplete ({error}): export the adapter again") from None

    def preferred(self, size: tuple[int, int] | None = None) -> Preferred:
        """Settings for sampling with windows of `size` (height, width); None: of the size that they name, or of training."""
        return self.sampling.at(size, trained=self.size)

    def write(self, folder: Path) -> None:
        content = {**asdict(self), "sampling": self.sampling.content()}
        kept = {name: value for name, value in content.items() if name != "sampling" or value}
        write_text(folder / "rad_config.json", json.dumps(kept, indent=2) + "\n")


def inherited_sampling(folder: Path, *, process: str, size: tuple[int, int]) -> Preferred:
    """Preferred settings for a model that is trained further from the one in `folder`; none from other noise processes.

    Settings in pixels are kept for images of the same size. Raises ValueError as `AdapterInfo.read`.
    """
    if not (folder / "rad_config.json").is_file():
        return NOTHING
    info = AdapterInfo.read(folder)
    if info.process != process:
        return NOTHING
    return info.sampling if info.size == size else info.sampling.without_lengths()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


_INFO: dict[str, Callable[[object], bool]] = {
    "base": lambda value: isinstance(value, str) and value != "",
    "base_hash": lambda value: isinstance(value, str),
    "time_origin": lambda value: value in get_args(TimeOrigin),
    "steps": _is_count,
    "size": lambda value: (
        isinstance(value, list) and len(value) == 2 and all(_is_count(n) and n <= 8192 for n in value)
    ),
    "base_revision": lambda value: value is None or isinstance(value, str),
    "trained_steps": lambda value: isinstance(value, int),
    "ema": lambda value: isinstance(value, bool),
    "qkv_order": lambda value: value in get_args(QkvOrder),
    "learned_variance": lambda value: isinstance(value, bool),
    "unconditional": lambda value: isinstance(value, bool),
    "process": lambda value: value in ("region_aware", "tdpaint"),
    "kind": lambda value: value in get_args(Kind),
}
"""Checks of the entries of rad_config.json."""


def save_adapter(model: PeftModel, folder: str | Path, info: AdapterInfo, *, card: str, half: bool = False) -> Path:
    """Write the adapter folder; in float16 if `half`. Returns the folder."""
    folder = Path(folder)
    state = _adapter_state(model)
    dtype = torch.float16 if half else torch.float32
    weights = {name: w.detach().to("cpu", dtype).contiguous() for name, w in state.items()}
    with replacing(folder / "adapter_model.safetensors") as temporary:
        save_file(weights, temporary)
    config = _peft_settings(model, info.base)
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    info.write(folder)
    write_text(folder / "README.md", card)
    return folder


def load_adapter(
    network: nn.Module, folder: str | Path, *, base_hash: str | None = None, trained: bool = False
) -> PeftModel:
    """Put the adapter of `folder` on `network` in place, frozen and in eval mode; `trained`: for further training instead.

    `base_hash`: of the weights in `network`; None: not compared. Raises FileNotFoundError for a missing file, ValueError for
    other base weights, a corrupt file, or keys that do not match.
    """
    folder = Path(folder)
    info = AdapterInfo.read(folder)
    if base_hash is not None and base_hash != info.base_hash:
        raise ValueError(
            f"{folder} was trained on {info.base} with hash {info.base_hash[:12]}, but the base given has hash "
            f"{base_hash[:12]}: give the base it was trained on"
        )
    weights, config_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    for path in (weights, config_file):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: copy the whole adapter folder, or export it again")
    try:
        state = load_file(weights)
    except Exception as error:  # a damaged header can raise almost anything
        raise ValueError(f"{weights} is corrupt ({error}): copy it again, or export the adapter again") from None
    require_finite_weights(state, weights)
    try:
        config = replace(_read_peft_config(config_file, state), inference_mode=not trained)
        with torch.random.fork_rng():
            model = get_peft_model(network, config)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # layers that the base lacks, or values that peft refuses
        raise ValueError(
            f"{config_file} cannot be used ({' '.join(str(error).split())}): export the adapter again"
        ) from None
    assert isinstance(model, PeftModel)
    expected = {name: w.shape for name, w in _adapter_state(model).items()}
    given = {name: w.shape for name, w in state.items()}
    if expected != given:
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise ValueError(
            f"{weights} does not fit the base model: {len(wrong)} of {len(expected)} tensors are missing, left over or of "
            f"another shape, the first {wrong[0]}: give the base and adapter_config.json of its training"
        )
    set_peft_model_state_dict(model, {name: w.float() for name, w in state.items()})
    if not trained:
        return model.eval().requires_grad_(False)
    key_dropout(model, shared=(*TIME_LAYERS, *SD3_TIME_LAYERS))
    return model


OWN = ("r", "lora_alpha", "target_modules", "modules_to_save")
NEWER_DEFAULTS = {"qalora_group_size": 16}
"""Settings that newer versions of peft write and older ones do not know. At these values they change nothing."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pattern(value: object, allowed: Callable[[object], bool]) -> bool:
    """Whether `value` maps full names of layers, which are no regular expressions, to allowed values."""
    return isinstance(value, dict) and all(re.fullmatch(r"[\w.]+", name) and allowed(n) for name, n in value.items())


VARIANTS: dict[str, Callable[[object], bool]] = {
    "lora_dropout": lambda value: _is_number(value) and 0 <= float(str(value)) < 1,
    "use_rslora": lambda value: isinstance(value, bool),
    "use_dora": lambda value: isinstance(value, bool),
    "rank_pattern": lambda value: _is_pattern(value, _is_count),
    "alpha_pattern": lambda value: _is_pattern(value, _is_number),
}
"""Checks of the settings of variants in adapter_config.json, which are absent when off."""


def _peft_settings(model: PeftModel, base: str) -> dict[str, object]:
    """The content of adapter_config.json: only settings of `rad.models.lora.LoRA`, which every version of peft reads."""
    config = model.peft_config["default"]
    settings = {name: getattr(config, name) for name in OWN}
    names = {name: value if value is None else sorted(value) for name, value in settings.items() if name in OWN[2:]}
    variants = {name: getattr(config, name) for name in ("lora_dropout", "use_rslora", "use_dora")}
    layers = lora_layers(model)
    variants["rank_pattern"] = {n: x.r["default"] for n, x in layers.items() if x.r["default"] != settings["r"]}
    alphas = {name: layer.lora_alpha["default"] for name, layer in layers.items()}
    variants["alpha_pattern"] = {name: alpha for name, alpha in alphas.items() if alpha != settings["lora_alpha"]}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        **settings,
        **names,
        **{name: value for name, value in variants.items() if value},
    }


def _read_peft_config(path: Path, state: Mapping[str, Tensor]) -> LoraConfig:
    """Settings of an adapter of `inject`, compared with its weights. Others may change results or exhaust memory: refused."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    missing = [name for name in OWN if name not in content]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    rank, alpha, targets, full = (content[name] for name in OWN)
    variants = {name: content[name] for name in VARIANTS if content.get(name) is not None}
    wrong = [name for name, value in variants.items() if not VARIANTS[name](value)]
    if wrong:
        raise ValueError(f"{wrong[0]} is {json.dumps(content[wrong[0]])[:60]}, which no adapter of rad has")
    _compare_ranks(rank, variants, state)
    if not _is_number(alpha):
        raise ValueError(f"lora_alpha is {alpha!r}")
    if not _is_names(targets) or not (full is None or _is_names(full)):
        raise ValueError("target_modules and modules_to_save are lists of names")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        target_modules=targets,
        modules_to_save=full,
        init_lora_weights="gaussian",
        **variants,
    )
    plain = LoraConfig().to_dict()
    known = {*OWN, *VARIANTS, "init_lora_weights", "inference_mode", "base_model_name_or_path", "peft_version"}
    given = {
        name: value for name, value in content.items() if name not in known and value
    }  # without settings that are off
    defaults = {**NEWER_DEFAULTS, **plain}
    foreign = sorted(name for name, value in given.items() if name not in defaults or value != defaults[name])
    if foreign:
        raise ValueError(f"{foreign[0]} is {json.dumps(content[foreign[0]])[:60]}, which no adapter of rad has")
    return config


def _compare_ranks(rank: object, variants: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless each layer's weights have the rank that the settings give, and patterns name layers."""
    parts = {name: name.removeprefix("base_model.model.").partition(".lora_A.") for name in state}
    layers = {parts[name][0]: len(w) if w.ndim else 0 for name, w in state.items() if parts[name][1]}
    pattern, alphas = variants.get("rank_pattern", {}), variants.get("alpha_pattern", {})
    wrong = [name for name, n in pattern.items() if layers.get(name) != n]
    if wrong:
        raise ValueError(f"rank_pattern is {pattern[wrong[0]]} for {wrong[0]}, the weights have {layers.get(wrong[0])}")
    ranks = {n for name, n in layers.items() if name not in pattern}
    if ranks != {rank} or not isinstance(rank, int):
        raise ValueError(f"r is {rank!r}, the weights have {sorted(ranks)}")
    if not alphas.keys() <= layers.keys():
        raise ValueError(f"alpha_pattern has {min(alphas.keys() - layers.keys())}, which has no weights")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


def _adapter_state(model: PeftModel) -> dict[str, Tensor]:
    # Without this argument peft asks the hub whether a language model's vocabulary has changed.
    return get_peft_model_state_dict(model, save_embedding_layers=False)
