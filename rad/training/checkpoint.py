"""Checkpoints in optimiser steps, with models ready for use beside them."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from weakref import proxy

import lightning as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor

from rad.data.module import ImageDataModule
from rad.images.atomic import replace_link, replacing_folder, write_text
from rad.models.adapter import save_adapter
from rad.models.lora import trainable
from rad.training.autoencoder import MEASURED, AutoencoderTraining
from rad.training.diffusion import Diffusion
from rad.training.ema import find_averages, first_average, replaced
from rad.training.export.card import card, newest_panel
from rad.training.module import HALF, TrainingModule, get_setting
from rad.training.optimizers import evaluating
from rad.training.resume import WholeCheckpointIO, set_aside


class Checkpoint(callbacks.Checkpoint):
    """Writes `step=N.ckpt`, which resumes the run, and beside it models ready for use.

    `step=N/` holds the adapter, or the diffusers folder of a model trained as a whole. `step=N-SUFFIX/` holds the same with the
    averaged weights of an EMA. `last.ckpt` links to the newest checkpoint. Files and folders with these names are complete.
    A run that resumes from an older checkpoint moves the later ones to `superseded/`.

    Lightning resolves `ckpt_path="last"` only for its own ModelCheckpoint, which has no hook for files beside a checkpoint. In
    Python, give `trainer.fit` the path from `rad.training.resume.find_checkpoint`.

    Args:
        every_n_train_steps: interval in optimiser steps; the last step of a run is always saved.
        save_top_k: number of checkpoints to keep, the newest; -1: all.
        dirpath: folder; null: checkpoints/ in the run folder.
    """

    def __init__(self, every_n_train_steps: int = 10_000, save_top_k: int = -1, dirpath: str | None = None) -> None:
        if every_n_train_steps < 1 or (save_top_k < 1 and save_top_k != -1):
            raise ValueError(
                f"Checkpoint has every_n_train_steps {every_n_train_steps} and save_top_k {save_top_k}; allowed are >= 1, and "
                ">= 1 or -1"
            )
        self.every_n_train_steps, self.save_top_k, self.dirpath = every_n_train_steps, save_top_k, dirpath
        self.saved: list[int] = []
        """Steps of the kept checkpoints, the newest last."""
        self.best_model_path, self.best_model_score = "", 0.0
        """The newest checkpoint and its step; loggers such as W&B read these names of Lightning's ModelCheckpoint."""

    @property
    def state_key(self) -> str:
        return "Checkpoint" if self.dirpath is None else f"Checkpoint-{self.dirpath}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if step > 0 and trainer.is_global_zero and not get_setting(trainer, "fast_dev_run"):
            set_aside(checkpoint_folder(trainer, self), step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_train_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def state_dict(self) -> dict[str, list[int]]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, list[int]]) -> None:
        self.saved = list(state_dict["saved"])

    def _save(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step == 0 or step in self.saved[-1:] or get_setting(trainer, "fast_dev_run"):
            return
        _require_finite(trainer)
        folder = checkpoint_folder(trainer, self)
        path = folder / f"step={step}.ckpt"
        if trainer.is_global_zero and isinstance(trainer.lightning_module, TrainingModule):
            _export(trainer, trainer.lightning_module, path.with_suffix(""))
        self.saved.append(step)
        dropped = self.saved[: -self.save_top_k] if self.save_top_k > 0 else []
        self.saved = self.saved[len(dropped) :]
        trainer.save_checkpoint(path, weights_only=False)
        self.best_model_path, self.best_model_score = str(path), float(step)
        if trainer.is_global_zero:
            replace_link(folder / "last.ckpt", path.name)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
            for old in dropped:
                _remove(trainer, folder / f"step={old}.ckpt")


def _require_finite(trainer: L.Trainer) -> None:
    """Raise FloatingPointError for weights of NaN or infinity, which a finite gradient can lead to."""
    if not all(bool(weight.isfinite().all()) for weight in trainable(trainer.lightning_module).values()):
        raise FloatingPointError(
            f"the weights are not finite after step {trainer.global_step}, and no checkpoint is written: continue from the last "
            "one with a lower learning rate or a larger eps of the optimiser; use bf16-mixed in place of 16-true"
        )


def checkpoint_folder(trainer: L.Trainer, callback: callbacks.Checkpoint) -> Path:
    return Path(getattr(callback, "dirpath", None) or Path(trainer.default_root_dir) / "checkpoints")


def _export(trainer: L.Trainer, module: TrainingModule, folder: Path) -> None:
    with _disk_errors(folder):
        with evaluating(trainer.optimizers), replaced(module, _wide_weights(module)):
            export(module, trainer, folder, ema=False)
        for average in find_averages(trainer):
            if average.weights:
                with replaced(module, average.weights):
                    export(module, trainer, folder.with_name(f"{folder.name}-{average.suffix}"), ema=True)


def best_folder(trainer: L.Trainer) -> Path | None:
    """Folder of the best model, beside the checkpoints; None for a run that writes none."""
    for callback in trainer.checkpoint_callbacks:
        return checkpoint_folder(trainer, callback) / "best"
    return None


def save_best(trainer: L.Trainer, module: TrainingModule, record: Mapping[str, object]) -> None:
    """Replace `best` by the model as it is measured: with the averaged weights of an EMA or optimiser; best.json: `record`.

    The first process writes; `save_top_k` never removes it.
    """
    folder = best_folder(trainer)
    if folder is None or not trainer.is_global_zero or get_setting(trainer, "fast_dev_run"):
        return
    average = first_average(trainer)
    with (
        _disk_errors(folder),
        evaluating(trainer.optimizers),
        replaced(module, _wide_weights(module) if average is None else average.weights),
    ):
        export(module, trainer, folder, ema=average is not None, record=record)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{folder} cannot be written: {error}; make room and continue with --ckpt_path last") from error


def _wide_weights(module: TrainingModule) -> dict[str, Tensor]:
    """The trained weights of half precision, in float32."""
    weights = {name: weight.detach() for name, weight in trainable(module).items()}
    return {name: weight.float() for name, weight in weights.items() if weight.dtype in HALF}


def _remove(trainer: L.Trainer, path: Path) -> None:
    trainer.strategy.remove_checkpoint(path)
    folder = path.with_suffix("")
    for name in (folder.name, *(f"{folder.name}-{average.suffix}" for average in find_averages(trainer))):
        shutil.rmtree(folder.with_name(name), ignore_errors=True)


def export(
    module: TrainingModule,
    trainer: L.Trainer,
    folder: Path,
    *,
    ema: bool,
    record: Mapping[str, object] | None = None,
) -> None:
    """Write the model as it is now, replacing `folder`; `ema`: the weights are averages; `record`: content of best.json."""
    with replacing_folder(folder) as place:
        if isinstance(module, AutoencoderTraining):
            export_autoencoder(module, trainer, place)
        elif isinstance(module, Diffusion):
            export_diffusion(module, trainer, place, ema=ema)
        if record is not None:
            write_text(place / "best.json", json.dumps(record, indent=2) + "\n")


def export_diffusion(module: Diffusion, trainer: L.Trainer, folder: Path, *, ema: bool) -> None:
    """An adapter folder, or a diffusers folder if all weights are trained; with rad_config.json for per-pixel noise."""
    panel = newest_panel(trainer) if ema or not find_averages(trainer) else None  # panels show averaged weights
    if panel is not None:
        shutil.copyfile(panel, folder / panel.name)
    images = () if panel is None else (panel.name,)
    info, text = module.adapter_info(ema=ema), card(module, trainer, ema=ema, images=images)
    if isinstance(module.network, PeftModel):
        save_adapter(module.network, folder, info, card=text)
        return
    module.model.save_trained(folder, region_aware=module.process.has_holes and not info.unconditional)
    if module.process.has_holes:
        info.write(folder)
    write_text(folder / "README.md", text)


def export_autoencoder(module: AutoencoderTraining, trainer: L.Trainer, folder: Path) -> None:
    """A diffusers folder; scaling_factor is measured with these weights on the first training images."""
    data: ImageDataModule = get_setting(trainer, "datamodule")
    stream = data.stream()
    samples = (stream[position]["image"] for position in range(min(MEASURED, len(data.train_images))))
    images = torch.stack([image for image in samples if isinstance(image, Tensor)])
    module.autoencoder.register_to_config(scaling_factor=module.scaling_factor(images))
    module.autoencoder.save_pretrained(folder)
