"""Checkpoints in optimiser steps, with models ready for use beside them."""

import shutil
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError

from rad.models.lora import swapped
from rad.training.autoencoder import AutoencoderTraining
from rad.training.diffusion import Diffusion
from rad.training.ema import _averages
from rad.training.export import export
from rad.training.resume import WholeCheckpointIO


class Checkpoint(ModelCheckpoint):
    """ModelCheckpoint in optimiser steps that writes models ready for use beside each `.ckpt`.

    `step=N.ckpt` resumes the run. `step=N/` and, for each EMA, `step=N-SUFFIX/` hold the adapter (or, of a model trained as a
    whole, the diffusers folder) with the raw and the averaged weights. A file or folder with such a name is always complete.

    Args:
        every_n_train_steps: distance of checkpoints in optimiser steps.
        save_top_k: how many are kept: -1 all; otherwise the newest.
    """

    def __init__(self, every_n_train_steps: int = 10_000, save_top_k: int = -1, dirpath: str | None = None) -> None:
        newest = {} if save_top_k in (-1, 0) else {"monitor": "step", "mode": "max"}
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            save_last="link",
            every_n_train_steps=every_n_train_steps,
            save_top_k=save_top_k,
            save_on_train_epoch_end=True,
            enable_version_counter=False,  # a step that is trained again takes the place of what was left of it
            **newest,  # pyright: ignore[reportArgumentType]
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        module = trainer.lightning_module
        ours = isinstance(module, Diffusion | AutoencoderTraining)
        if ours and trainer.is_global_zero and Path(filepath).stem != "last":
            folder = Path(filepath).with_suffix("")
            try:
                export(module, trainer, folder, ema=False)
                for average in _averages(trainer):
                    if average.weights:
                        with swapped(module, average.weights):
                            export(module, trainer, folder.with_name(f"{folder.name}-{average.suffix}"), ema=True)
            except SafetensorError as error:
                raise OSError(
                    f"{folder} cannot be written: {error}; make room and go on with --ckpt_path last"
                ) from error
        super()._save_checkpoint(trainer, filepath)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step is kept, whether or not it is a multiple of the distance."""
        if trainer.global_step > self._last_global_step_saved and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            folder = Path(filepath).with_suffix("")
            suffixes = [ema.suffix for ema in _averages(trainer)]
            for path in (folder, *(folder.with_name(f"{folder.name}-{suffix}") for suffix in suffixes)):
                shutil.rmtree(path, ignore_errors=True)
