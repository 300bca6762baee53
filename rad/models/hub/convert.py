"""Trained models as other folders: the adapter merged into its base, weights in float16."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from rad.images.atomic import write_text
from rad.models.hub.card import Metadata, shown, with_metadata
from rad.models.loaded_model import LoadedModel
from rad.models.weights import require_finite_weights

MERGED = ("pixel", "latent", "stable")
COPIED = (".json", ".txt", ".md", ".png", ".jpg", ".webp", ".model")
"""Suffixes of settings, tokenizers, cards and images."""


def save_merged(model: LoadedModel, folder: Path, *, name: str, card: str | None) -> None:
    """Write the model with its adapter in the weights: a diffusers folder with rad_config.json. Its results are the same.

    W <- W + (alpha / r) B A, and the trained time layers as they are.

    Args:
        name: of the model, for its card; card: text of the adapter's model card, if it has one.

    Raises ValueError for a model without an adapter, and for SD3's transformer.
    """
    info = model.info
    if model.adapted is None or info is None:
        raise ValueError(f"{model.source} has no adapter to merge: give the folder of an adapter, or leave --merge out")
    if model.kind not in MERGED:
        raise ValueError(
            f"the adapter is for a model of kind {model.kind!r}; --merge is for {', '.join(MERGED)}: use the adapter itself"
        )
    model.save_trained(folder, adapter=True, region_aware=not info.unconditional)
    replace(info, kind=model.kind).write(folder)
    base = info.base if info.base_revision is not None else None
    title = f"# Merged RAD model on {shown(info.base, info.base_revision)}"
    text = re.sub(
        r"^# RAD adapter on .*$", lambda _: title, title if card is None else card, count=1, flags=re.MULTILINE
    )
    text = with_metadata(text, Metadata(model.kind, adapter=False, base=base).entries(name), name=name)
    write_text(
        folder / "README.md", f"{text}\nThe adapter is merged into the weights of its base (`rad export --merge`).\n"
    )


def save_half(source: Path, folder: Path) -> bool:
    """Copy a model folder with all weights in float16. Returns whether this changed a value by rounding.

    Raises ValueError for weights that are not safetensors, or that float16 cannot hold.
    """
    changed = False
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        raise ValueError(f"{source} has no .safetensors: --half is for folders of diffusers and of adapters")
    for path in files:
        target = folder / path.relative_to(source)
        if path in weights:
            target.parent.mkdir(parents=True, exist_ok=True)
            changed |= _halve(path, target)
        elif path.suffix in COPIED or path.name == "LICENSE":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        elif path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            raise ValueError(f"{path} is no .safetensors: remove it, or convert it first")
    return changed


def _halve(source: Path, target: Path) -> bool:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    weights = load_file(source)
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata()
    require_finite_weights(weights, source)
    wide = {
        name: value for name, value in weights.items() if value.is_floating_point() and value.dtype != torch.float16
    }
    halves = {name: value.half() for name, value in wide.items()}
    lost = [name for name, value in halves.items() if not bool(value.isfinite().all())]
    if lost:
        raise ValueError(f"{source}: {lost[0]} has values above 65504, which float16 cannot hold: leave --half out")
    save_file(weights | halves, target, metadata=metadata)
    return any(not torch.equal(halves[name].to(value.dtype), value) for name, value in wide.items())
