"""The model card of a checkpoint: base, data, training and measured values, with metadata for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from peft import PeftModel

from rad.images.remote import without_query
from rad.models.hub.card import Metadata, shown, with_metadata, without_paths
from rad.models.lora import trainable
from rad.streams import printable
from rad.training.module import get_setting

if TYPE_CHECKING:
    from rad.data.module import ImageDataModule
    from rad.training.diffusion import Diffusion

MEASURED = ("val/", "inpainting/")
"""Prefixes of the logged values that a card lists."""
DURATION = "inpainting/seconds"
"""Duration of a measurement; a card leaves it out."""


def card(module: Diffusion, trainer: L.Trainer, *, ema: bool, images: tuple[str, ...] = ()) -> str:
    """A model card in Markdown: base, data, training and measured values. `images`: names of files beside the card."""
    data: ImageDataModule = get_setting(trainer, "datamodule")
    model, optimizer = module.model, getattr(trainer.optimizers[0], "optim", trainer.optimizers[0])  # within ZeRO's
    metrics = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(MEASURED) and name != DURATION
    }
    adapter = isinstance(module.network, PeftModel)
    kind = "RAD adapter" if adapter else f"diffusion model ({module.process.kind})"
    base = shown(model.source, model.revision)
    lines = [
        f"# {kind} on {base}",
        "",
        f"- Base: `{base}`{'' if model.revision is None else f', revision {model.revision}'}, hash `{model.hash}`.",
        f"- Data: {', '.join(f'`{_data_name(path)}`' for path in data.paths)}, {module.image_size}x{module.image_size} pixels.",
        f"- Training: {module.global_step} steps of batch {data.batch_size} on {trainer.world_size} device(s), "
        f"{type(optimizer).__name__} {optimizer.param_groups[0]['initial_lr']:g}, seed {module.seed}"
        f"{', averaged weights (EMA)' if ema else ''}.",
        f"- Trained parameters: {sum(weight.numel() for weight in trainable(module).values()):,}.",
        *(f"- Changed when the run resumed at {without_paths(change)}." for change in module.changes),
        *(f"- {name}: {value:.5f}" for name, value in sorted(metrics.items())),
        *(line for image in images for line in ("", f"![Panel, {image}]({image})")),
        "",
    ]
    metadata = Metadata(
        model.kind,
        adapter=adapter,
        region_aware=module.process.has_holes,
        base=model.source if model.revision is not None else None,
        datasets=[name for name in map(_hub_dataset, data.paths) if name is not None],
        images=images,
        metrics=metrics,
        data=", ".join(map(_data_name, data.paths)),
    )
    return with_metadata("\n".join(map(printable, lines)), metadata.entries(_run_name(trainer) or kind))


def _run_name(trainer: L.Trainer) -> str | None:
    """The name of the run's folder; None for a training without a configuration, whose folder may be any."""
    folder = Path(trainer.default_root_dir).resolve()
    return printable(folder.name) if (folder / "config.yaml").is_file() else None


def newest_panel(trainer: L.Trainer) -> Path | None:
    """The newest panel of the run, step=N.png; None without one. Later ones are of a run before a resume."""
    panels = (Path(trainer.default_root_dir) / "panels").glob("step=*.png")
    steps = {int(path.stem.removeprefix("step=")): path for path in panels if path.stem[5:].isdigit()}
    newest = max((step for step in steps if step <= trainer.global_step), default=None)
    return None if newest is None else steps[newest]


def _data_name(path: str) -> str:
    return _hub_dataset(path) or Path(without_query(path)).name


def _hub_dataset(path: str) -> str | None:
    """The id of a dataset on the hub, from "hf:ID:SPLIT:COLUMN"; None for others, and for one in a local folder."""
    parts = str(path).split(":")
    if (
        parts[0] != "hf"
        or len(parts) < 2
        or Path(parts[1]).exists()
        or parts[1].count("/") > 1
        or parts[1][:1] in "./~"
    ):
        return None
    return parts[1]
