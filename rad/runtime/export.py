"""`rad export --onnx`: the networks of a pixel model as ONNX files with the settings that sampling needs.

The folder holds rad.onnx, base.onnx, runtime.json and README.md. Every file is compared with PyTorch on random inputs before
the folder appears. Uses torch; the other files of `rad.runtime` read the folder without it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rad import __version__
from rad.images.atomic import write_text
from rad.models.weights import weights_hash
from rad.resources import EXPORTED, pip_install
from rad.runtime.folder import FORMAT
from rad.runtime.precision import Precision, convert

if TYPE_CHECKING:
    from onnx import ModelProto

    from rad.models.adapter import Kind
    from rad.models.loaded_model import LoadedModel
    from rad.models.unet_model import UNetModel
    from rad.networks.unet import RegionAwareUNet

CARD = "README.md"
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.05}
"""Largest allowed difference from PyTorch in float32, as a share of the largest output."""
LARGEST = 2**31 - 2**24
"""Bytes of an ONNX file: protobuf holds less than 2 GiB."""
CHECKED = ((1, 1, (1, 1)), (3, 2, (1, 2)), (2, 3, (2, 1)))
"""B, K and the size, as a multiple of the model's, of the inputs that are compared with PyTorch."""


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference from PyTorch, of outputs whose largest absolute value is `largest`."""

    file: str
    difference: float
    largest: float

    @property
    def share(self) -> float:
        return self.difference / self.largest


def require_onnx() -> None:
    """Raise ValueError if a package of the extra `onnx` is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--onnx needs {', '.join(missing)}, which is not installed: {pip_install('onnx')}")


def require_pixels(kind: Kind, source: str) -> None:
    """Raise ValueError for models other than pixel models."""
    if kind != "pixel":
        raise ValueError(
            f"{source} is a model of kind {kind!r}; --onnx is for pixel models, without autoencoder and text: "
            "run it with PyTorch"
        )


def kind_of(source: str, revision: str | None) -> Kind:
    """The kind of a base model, from its index."""
    from rad.models.text_to_image.folders import find_pipeline
    from rad.models.vae import AUTOENCODERS

    index = find_pipeline(source, revision)
    if index is None or not any(part in index.parts for part in AUTOENCODERS):
        return "pixel"
    kinds: dict[str, Kind] = {
        "StableDiffusionPipeline": "stable",
        "StableDiffusionXLPipeline": "stable_xl",
        "StableDiffusion3Pipeline": "stable3",
        "FluxPipeline": "flux",
        "FluxFillPipeline": "flux",
        "QwenImagePipeline": "qwen_image",
        "ZImagePipeline": "z_image",
        "Flux2KleinPipeline": "flux2_klein",
    }
    return kinds.get(index.kind, "latent")


def export_onnx(
    model: LoadedModel,
    folder: Path,
    *,
    name: str,
    source: str,
    precision: Precision = "fp32",
    base_weights: bool = False,
) -> list[Difference]:
    """Write the folder of `rad.runtime` into an empty folder. Returns the difference from PyTorch of each file.

    Args:
        model: on the CPU, in float32. Its adapter is merged; the model stays as it is.
        name, source: of the model, for runtime.json and the card.
        precision: of the stored weights; the graph computes in float32, with float32 inputs and outputs.
        base_weights: also write the network without the adapter, for zero-shot methods.

    Raises ValueError for a model of another kind, base weights that do not exist, or files that disagree with PyTorch.
    """
    require_onnx()
    unet_model = _exportable(model, source, base_weights=base_weights)
    networks = _networks(unet_model, base_weights=base_weights)
    written: dict[str, Difference] = {}
    entries: dict[str, dict[str, Any]] = {}
    for role, (file, network) in networks.items():
        if file not in written:
            written[file] = _write(unet_model, network, folder / file, precision)
        entries[role] = {
            "file": file,
            "sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest(),
            "output_channels": network.config["out_channels"],
            "largest_difference": written[file].difference,
            "largest_output": written[file].largest,
        }
    settings = _settings(unet_model, name=name, source=source, precision=precision)
    settings["networks"] = entries
    write_text(folder / EXPORTED, json.dumps(settings, indent=2) + "\n")
    write_text(folder / CARD, card(settings))
    return list(written.values())


def _exportable(model: LoadedModel, source: str, *, base_weights: bool) -> UNetModel:
    from rad.models.unet_model import UNetModel

    require_pixels(model.kind, source)
    assert isinstance(model, UNetModel)
    if model.base.sigmas is not None:
        raise ValueError(
            f"{source} has EDM's noise levels; --onnx is for models with DDPM's betas. Run it with PyTorch"
        )
    if base_weights and not (model.has_adapter and model.has_base):
        reason = "is a base model, whose weights are exported anyway" if model.has_base else "no longer has its base"
        raise ValueError(f"{source} {reason}: leave --base_weights out")
    size = 4 * sum(parameter.numel() for parameter in model.network.parameters())
    if size > LARGEST:
        raise ValueError(f"{source} has {size / 2**30:.1f} GiB of float32 weights; an ONNX file holds less than 2 GiB")
    return model


def _networks(model: UNetModel, *, base_weights: bool) -> dict[str, tuple[str, RegionAwareUNet]]:
    """File and network of each role. A model that was trained as a whole for both has one file."""
    region_aware, base = (cast("RegionAwareUNet", model.sampled_network(adapter=adapter)) for adapter in (True, False))
    if not model.has_adapter:
        return {"base": ("base.onnx", base)}
    networks = {"rad": ("rad.onnx", region_aware)}
    if model.has_base and region_aware is base:
        networks["base"] = ("rad.onnx", base)
    elif base_weights:
        networks["base"] = ("base.onnx", base)
    return networks


def _write(model: UNetModel, network: RegionAwareUNet, path: Path, precision: Precision) -> Difference:
    from rad.runtime.graph import trace

    graph = convert(trace(network, side_multiple=model.side_multiple), precision)
    path.write_bytes(graph.SerializeToString())
    result = compare(network, graph, path.name, size=model.size, steps=model.base_process.steps)
    if not result.share <= TOLERANCE[precision]:
        raise ValueError(
            f"{path.name} differs from PyTorch by {result.difference:.3g}, which is {result.share:.2g} of its largest output; "
            f"allowed for {precision} is {TOLERANCE[precision]:g}. Use --precision fp32, or run the model with PyTorch"
        )
    return result


def compare(network: RegionAwareUNet, graph: ModelProto, file: str, *, size: tuple[int, int], steps: int) -> Difference:
    """Run `graph` with ONNX Runtime and `network` with PyTorch on the same random inputs, see `CHECKED`."""
    import numpy as np
    import onnxruntime
    import torch

    from rad.runtime.graph import INPUTS, random_inputs

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    for seed, (batch, levels, (tall, wide)) in enumerate(CHECKED):
        sides = (tall * size[0], wide * size[1])
        channels = network.config["in_channels"]
        inputs = random_inputs(channels, batch=batch, levels=levels, size=sides, steps=steps, seed=seed)
        with torch.no_grad():
            expected = network(inputs[0], inputs[1], index=inputs[2].argmax(1)).sample.numpy()
        (output,) = session.run(None, dict(zip(INPUTS, (value.numpy() for value in inputs), strict=True)))
        difference = float(np.maximum(difference, np.abs(output - expected).max()))  # keeps NaN, unlike `max`
        largest = float(np.maximum(largest, np.abs(expected).max()))
    return Difference(file, difference, largest or 1.0)  # a network before training gives zeros


def _settings(model: UNetModel, *, name: str, source: str, precision: Precision) -> dict[str, Any]:
    info, doubled = model.info, 2 * model.autoencoder.channels
    learns = model.network.config["out_channels"] == doubled
    sampling = {} if info is None else info.sampling.content()
    origin = {"checkpoint": source, "base_hash": model.hash}
    if model.adapted is not None:
        origin["adapter_hash"] = weights_hash(model.adapted.state_dict())
    return {
        "format": FORMAT,
        "name": name,
        "kind": model.kind,
        "size": list(model.size if info is None else info.size),
        "side_multiple": model.side_multiple,
        "channels": model.autoencoder.channels,
        "steps": len(model.base.betas),
        "betas": model.base.betas.tolist(),
        "prediction": model.prediction,
        "clip": True,
        "learned_variance": learns and info is not None and info.learned_variance,
        "base_learned_variance": learns and (info is None or info.learned_variance or model.adapted is not None),
        "time_origin": "adm" if info is None else info.time_origin,
        "process": "uniform" if info is None else info.process,
        "precision": precision,
        **({"sampling": sampling} if sampling else {}),
        "source": origin,
        "rad_version": __version__,
    }


def card(settings: dict[str, Any]) -> str:
    """The model card: content, inputs and outputs, use, provenance."""
    roles: dict[str, list[str]] = {}
    entries = {entry["file"]: entry for entry in settings["networks"].values()}
    for role, entry in settings["networks"].items():
        roles.setdefault(entry["file"], []).append(_ROLES[role])
    rows = [
        f"| `{file}` | {' and '.join(roles[file])} | {entry['output_channels']} | "
        f"{entry['largest_difference']:.2g} of {entry['largest_output']:.2g} |"
        for file, entry in entries.items()
    ]
    hashes = [f"| {key.replace('_', ' ')} | `{value}` |" for key, value in settings["source"].items()]
    return _CARD.format(
        **settings,
        height=settings["size"][0],
        width=settings["size"][1],
        method="" if "rad" in settings["networks"] else " --method repaint",
        rows="\n".join(rows),
        hashes="\n".join(hashes),
    )


_ROLES = {"rad": "the RAD weights, a noise level per pixel", "base": "the base weights, one noise level per image"}

_CARD = """---
library_name: onnx
tags:
- region-aware-diffusion
- inpainting
- diffusion
---

# {name} in ONNX

Networks of a diffusion model for images of {width}x{height} (width x height), with weights stored in {precision}.
ONNX Runtime runs them without PyTorch.

| file | network | output channels | largest difference from PyTorch |
|---|---|---|---|
{rows}
| `runtime.json` | noise schedule, image size and other settings of sampling | | |

## Use

```bash
rad sample --runtime onnx --checkpoint FOLDER --image photo.png --mask mask.png --output filled.png{method}
```

`FOLDER` is this folder. White pixels of the mask are filled.

## Inputs and output

All tensors are float32. `batch`, `levels`, `height` and `width` are free; sides are multiples of {side_multiple}.

| tensor | shape | content |
|---|---|---|
| `sample` | (batch, {channels}, height, width) | the noisy image, in [-1, 1] where it is clean |
| `timesteps` | (batch, levels) | the timestep of each noise level |
| `levels` | (batch, levels, height, width) | indicator maps: 1 where a pixel has that level, else 0 |
| `output` | (batch, output channels, height, width) | `{prediction}`; the second half of 2C channels is the variance |

## Source

| | |
|---|---|
{hashes}

Written by `rad export --onnx`, version {rad_version}. The licence is that of the source.
"""
