"""Trained models as folders: an adapter, or a diffusers folder with its model card."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from peft import PeftModel

from rad.diffusion.processes import get_betas
from rad.images.atomic import replacing_folder
from rad.models.adapter import save_adapter
from rad.models.lora import trainable
from rad.models.text_to_image.folders import quietly
from rad.models.trainable import StableText
from rad.models.vae import PretrainedAutoencoder
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
            save_trained(place, module)
            if module.process_kind != "uniform":
                info.write(place)
            (place / "README.md").write_text(card(module, trainer, ema=ema))


def save_trained(folder: Path, module: Diffusion) -> None:
    """A diffusers folder of a model of which all weights are trained; a latent one is a pipeline with its autoencoder, and
    with its text encoder where it is told texts."""
    from rad.models.base import save_base

    network, autoencoder, text = module.unet, module.parts.autoencoder, module.parts.text
    assert isinstance(network, UNet2DModel | UNet2DConditionModel)
    latent = isinstance(autoencoder, PretrainedAutoencoder)
    save_base(
        folder,
        network,
        betas=get_betas(module.parts.base_process),
        prediction_type=module.parts.prediction,
        half=False,
        latent=latent,
    )
    if not latent:
        return
    place = "vqvae" if text is None else "vae"
    autoencoder.network.save_pretrained(folder / place)
    index: dict[str, Any] = {
        "_class_name": "LDMPipeline" if text is None else "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel" if text is None else "UNet2DConditionModel"],
        place: ["diffusers", type(autoencoder.network).__name__],
    }
    if text is not None:
        assert isinstance(text, StableText)
        libraries = {"text_encoder": "transformers", "tokenizer": "transformers", "scheduler": "diffusers"}
        with quietly():
            for name, library in libraries.items():
                part = getattr(text.pipeline, name)
                part.save_pretrained(folder / name)
                index[name] = [library, type(part).__name__]
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


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
        f"# {kind} on {module.parts.source}",
        "",
        f"- Base: `{module.parts.source}`, revision {module.parts.revision}, hash `{module.parts.hash}`.",
        f"- Data: {', '.join(f'`{Path(path).name}`' for path in data)}, {module.image_size}x{module.image_size} pixels.",
        f"- Training: {module.global_step} steps of batch {batch} on {trainer.world_size} device(s), AdamW "
        f"{module.learning_rate:g}, seed {module.seed}{', averaged weights (EMA)' if ema else ''}.",
        f"- Trained parameters: {sum(p.numel() for p in trainable(module).values()):,}.",
        *(f"- {name}: {value:.5f}" for name, value in sorted(metrics.items())),
        "",
    ]
    return "\n".join(lines)
