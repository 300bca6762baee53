"""Trained models as folders: an adapter, or a diffusers folder; with a model card."""

from pathlib import Path

import lightning as L
import torch
from peft import PeftModel

from rad.data.module import ImageDataModule
from rad.images.atomic import replacing_folder
from rad.models.adapter import save_adapter
from rad.models.lora import trainable
from rad.training.autoencoder import MEASURED, AutoencoderTraining
from rad.training.diffusion import Diffusion
from rad.training.module import TrainingModule, get_setting


def export(module: TrainingModule, trainer: L.Trainer, folder: Path, *, ema: bool) -> None:
    """Write the model as it is now, replacing `folder`; `ema`: the weights are averages."""
    with replacing_folder(folder) as place:
        if isinstance(module, AutoencoderTraining):
            export_autoencoder(module, trainer, place)
        elif isinstance(module, Diffusion):
            export_diffusion(module, trainer, place, ema=ema)


def export_diffusion(module: Diffusion, trainer: L.Trainer, folder: Path, *, ema: bool) -> None:
    """An adapter folder, or a diffusers folder if all weights are trained; with rad_config.json for per-pixel noise."""
    info, text = module.adapter_info(ema=ema), card(module, trainer, ema=ema)
    if isinstance(module.network, PeftModel):
        save_adapter(module.network, folder, info, card=text)
        return
    module.model.save_trained(folder)
    if module.process.has_holes:
        info.write(folder)
    (folder / "README.md").write_text(text)


def export_autoencoder(module: AutoencoderTraining, trainer: L.Trainer, folder: Path) -> None:
    """A diffusers folder; scaling_factor is measured with these weights on the first training images."""
    data: ImageDataModule = get_setting(trainer, "datamodule")
    stream = data.stream()
    images = torch.stack([stream[position]["image"] for position in range(min(MEASURED, len(data.train_images)))])
    module.network.register_to_config(scaling_factor=module.scaling_factor(images))
    module.network.save_pretrained(folder)


def card(module: Diffusion, trainer: L.Trainer, *, ema: bool) -> str:
    """A model card in Markdown: base, data, training and validation losses."""
    data: ImageDataModule = get_setting(trainer, "datamodule")
    model, optimizer = module.model, trainer.optimizers[0]
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    kind = "RAD adapter" if isinstance(module.network, PeftModel) else f"diffusion model ({module.process.kind})"
    lines = [
        f"# {kind} on {model.source}",
        "",
        f"- Base: `{model.source}`, revision {model.revision}, hash `{model.hash}`.",
        f"- Data: {', '.join(f'`{Path(path).name}`' for path in data.paths)}, {module.image_size}x{module.image_size} pixels.",
        f"- Training: {module.global_step} steps of batch {data.batch_size} on {trainer.world_size} device(s), "
        f"{type(optimizer).__name__} {optimizer.param_groups[0]['initial_lr']:g}, seed {module.seed}"
        f"{', averaged weights (EMA)' if ema else ''}.",
        f"- Trained parameters: {sum(weight.numel() for weight in trainable(module).values()):,}.",
        *(f"- {name}: {value:.5f}" for name, value in sorted(metrics.items())),
        "",
    ]
    return "\n".join(lines)
