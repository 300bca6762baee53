"""Trained models as folders: an adapter, or a diffusers folder with its model card."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from peft import PeftModel

from rad.images.atomic import replacing_folder
from rad.models.adapter import save_adapter
from rad.models.lora import trainable
from rad.training.autoencoder import MEASURED, AutoencoderTraining
from rad.training.diffusion import Diffusion


def export(module: Diffusion | AutoencoderTraining, trainer: L.Trainer, folder: Path, *, ema: bool) -> None:
    """Write the model as it is now: an adapter folder, or a diffusers folder when all weights are trained.

    What was trained for per-pixel noise has a rad_config.json, in either form.
    """
    if isinstance(module, AutoencoderTraining):
        with replacing_folder(folder) as place:
            export_autoencoder(module, trainer, place)
        return
    info = module.adapter_info(size=(module.image_size, module.image_size), ema=ema)
    with replacing_folder(folder) as place:
        if isinstance(module.network, PeftModel):
            save_adapter(module.network, place, info, card=card(module, trainer, ema=ema))
        else:
            module.model.save_trained(place)
            if module.process_kind != "uniform":
                info.write(place)
            (place / "README.md").write_text(card(module, trainer, ema=ema))


def export_autoencoder(module: AutoencoderTraining, trainer: L.Trainer, folder: Path) -> None:
    """A diffusers folder whose scaling_factor is measured, with these weights, on the first training images."""
    source: Any = trainer
    data = source.datamodule
    count = min(MEASURED, len(data.train_images))
    images = torch.stack([data.stream()[position]["image"] for position in range(count)])
    module.autoencoder.register_to_config(scaling_factor=module.scaling_factor(images))
    module.autoencoder.save_pretrained(folder)


def card(module: Diffusion, trainer: L.Trainer, *, ema: bool) -> str:
    """A model card in Markdown: what this is, what it was trained on and how far."""
    source: Any = trainer
    data = source.datamodule.paths
    batch = getattr(source.datamodule, "batch_size", None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    kind = "RAD adapter" if isinstance(module.network, PeftModel) else f"diffusion model ({module.process_kind})"
    lines = [
        f"# {kind} on {module.model.source}",
        "",
        f"- Base: `{module.model.source}`, revision {module.model.revision}, hash `{module.model.hash}`.",
        f"- Data: {', '.join(f'`{Path(path).name}`' for path in data)}, {module.image_size}x{module.image_size} pixels.",
        f"- Training: {module.global_step} steps of batch {batch} on {trainer.world_size} device(s), AdamW "
        f"{module.learning_rate:g}, seed {module.seed}{', averaged weights (EMA)' if ema else ''}.",
        f"- Trained parameters: {sum(p.numel() for p in trainable(module).values()):,}.",
        *(f"- {name}: {value:.5f}" for name, value in sorted(metrics.items())),
        "",
    ]
    return "\n".join(lines)
