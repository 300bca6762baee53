"""Files of weights and settings: find, fetch, read safely, check and hash them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from rad.resources import is_data_name

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

UNetT = TypeVar("UNetT", bound="UNet2DModel | UNet2DConditionModel")


WEIGHT_FILES = tuple(f"diffusion_pytorch_model{e}" for e in (".safetensors", ".fp16.safetensors", ".bin"))


MOST_STEPS = 100_000


Config = dict[str, Any]
"""Entries of a JSON file, such as a diffusers config.json."""


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of sorted names, shapes and little-endian float32 values, however they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach()
        values = values.dequantize() if type(values).__module__.startswith("torchao") else values
        tensor = values.to("cpu", torch.float32)
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def is_hub_id(source: str | Path) -> bool:
    """Whether it reads as "organisation/name", and not as the name of a file."""
    is_file_name = Path(source).suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors") or is_data_name(source)
    return not (isinstance(source, Path) or is_file_name or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source))


def fetch(source: str, files: Sequence[str], *, revision: str | None) -> Path:
    """The local folder of a hub id, with its files that match `files`. Raises ValueError if the download fails."""
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub client raises the errors of whichever HTTP library its version uses
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"{source!r} is no local path, HF_HUB_OFFLINE is set, and"
                f" {constants.HF_HUB_CACHE} does not hold it: unset the variable, or give a local folder"
            ) from error
        raise ValueError(
            f"{source!r} is no local path and could not be fetched from the Hugging Face hub"
            f" ({type(error).__name__}): check name, revision and connection, or give a local folder"
        ) from error


def with_new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename attention layers of files from diffusers before 0.15, such as google/ddpm-* and CompVis/ldm-*."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = re.compile(r"(?<=\d\.)(query|key|value|proj_attn)(?=\.)")
    return {pattern.sub(lambda m: old[m[0]], name): value for name, value in state.items()}


def read_json(path: Path) -> Config:
    """The object in a JSON file. Raises ValueError for other content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: fetch it again")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor, from a .safetensors or a torch file; pickled code is never run. Raises ValueError if one is not finite."""
    state = _read_weights(path)
    require_finite_weights(state, path)
    return state


def require_finite_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError for a tensor with NaN or infinity. `path`: of the file, for the message."""
    for name, value in state.items():
        if value.is_floating_point() and value.numel() and not _is_finite(value):
            count = int((~value.isfinite()).sum())
            raise ValueError(
                f"{path} is damaged: {count} of {value.numel()} values of {name} are NaN or infinite; fetch or export it again"
            )


def _is_finite(value: Tensor) -> bool:
    low, high = torch.aminmax(value)  # NaN if a value is; much quicker than a test of each value
    return math.isfinite(low) and math.isfinite(high)


def _read_weights(path: Path) -> dict[str, Tensor]:
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
    """Turn errors of diffusers and torch about a file's settings or shapes into one line with its path."""
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


def empty_unet(config: Config, kind: type[UNetT]) -> UNetT:
    """A network on device "meta", without values and random draws."""
    with torch.device("meta"):
        return kind(**config)


def _build(config: Config, state: Mapping[str, Tensor]) -> UNet2DModel:
    from diffusers.models.unets.unet_2d import UNet2DModel

    layers = config.get("layers_per_block", 2)
    if not (isinstance(layers, int) and layers <= len(state)):  # each has weights; a million layers would take hours
        raise ValueError(
            f"layers_per_block is {layers!r}, for {len(state)} weights: use the config they were saved with"
        )
    unet = empty_unet(config, UNet2DModel)
    require_fit(unet, state)
    require_run(unet)
    unet.to_empty(device=next(iter(state.values())).device)
    unet.load_state_dict(state)
    return unet.eval()


def require_run(unet: UNet2DModel | UNet2DConditionModel) -> None:
    """Raise ValueError if the network, on device "meta", cannot predict an image of its size."""
    size = unet.config["sample_size"]
    sides = (size, size) if isinstance(size, int) else size
    if sides is None or unet.config["class_embed_type"] is not None:  # unknown size, or labels
        return
    right = isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(n, int) for n in sides)
    if not (right and all(1 <= n <= 8192 for n in sides)):
        raise ValueError(f"sample_size is {size!r}: give 1 to 8192 pixels a side, or [height, width]")
    image = torch.empty(1, unet.config["in_channels"], *sides, device="meta")
    inputs: dict[str, Tensor] = {}
    if unet.class_embedding is not None:
        inputs["class_labels"] = torch.zeros(1, dtype=torch.long, device="meta")
    if unet.config.get("cross_attention_dim") is not None:
        inputs["encoder_hidden_states"] = torch.empty(1, 1, unet.config["cross_attention_dim"], device="meta")
    try:
        with torch.no_grad():
            shape = unet(image, torch.zeros(1, device="meta"), **inputs).sample.shape
    except Exception as error:  # layers that do not fit each other
        raise ValueError(
            f"the network cannot run on {tuple(image.shape)} ({_flat(error)}): check its config"
        ) from error
    if shape[2:] != image.shape[2:]:
        raise ValueError(
            f"the network's output for {tuple(image.shape)} is {tuple(shape)}: check sample_size in its config"
        )


def require_fit(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `state` has every name and shape of the network, and no other."""
    wanted = {name: value.shape for name, value in [*network.named_parameters(), *network.named_buffers()]}
    problems = {
        "missing": wanted.keys() - state.keys(),
        "left over": state.keys() - wanted.keys(),
        "of another shape": {name for name in wanted.keys() & state.keys() if wanted[name] != state[name].shape},
    }
    messages = [f"{len(names)} {kind}: {', '.join(sorted(names)[:5])}" for kind, names in problems.items() if names]
    if messages:
        raise ValueError(f"weights do not fit the network ({'; '.join(messages)}): use the config they were saved with")
