"""Panels of inpainted images, and throughput, during training."""

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.fabric.utilities import throughput
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rad.data.stream import HeldOut
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.errors import NotFiniteError
from rad.images.atomic import replacing
from rad.images.tensors import to_uint8
from rad.rng import KeyedNoise
from rad.training.diffusion import Diffusion
from rad.training.ema import averaged
from rad.training.inpainting.sampling import choose_sampler, draw_holes, inpaint
from rad.training.logs.loggers import log_image, log_step, log_values
from rad.training.module import Batch, get_setting, is_due, logs_at

if TYPE_CHECKING:
    from rad.sampling.sampler import Sampler


class Panel(Callback):
    """Inpaints the first held-out images at a fixed seed: hole | result | original, to `panels/step=N.png`
    and to every logger that shows images.

    Args:
        every_n_steps: interval in optimiser steps; 0: never.
        images: number of images.
        steps: sampling steps.
        masks: names from `rad.masks.shapes.MASKS`, taken in turn.
        solver, spacing, eta: see `rad.sampling.Sampler`; null: the preset of the method. The method is `rad` for RAD models,
            `tdpaint` for TD-Paint models and `replacement` for base models.
    """

    def __init__(
        self,
        every_n_steps: int = 5000,
        images: int = 4,
        steps: int = 50,
        masks: tuple[str, ...] = ("center", "half", "thick", "perlin"),
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
    ) -> None:
        self.every_n_steps, self.images, self.masks = every_n_steps, images, masks
        self.steps, self.eta = steps, eta
        self.solver: Solver | None = solver
        self.spacing: Spacing | None = spacing
        self._latest = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise ValueError before training if the model cannot be sampled with these settings, or without images."""
        if self.every_n_steps > 0 and isinstance(pl_module, Diffusion):
            self.sampler(pl_module)
            _held_out(trainer)

    def sampler(self, module: Diffusion) -> "Sampler":
        return choose_sampler(module, steps=self.steps, solver=self.solver, spacing=self.spacing, eta=self.eta)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (
            not is_due(trainer, self.every_n_steps, self._latest)
            or not isinstance(pl_module, Diffusion)
            or not trainer.is_global_zero
        ):
            return
        self._latest = step
        try:
            image = self.image(trainer, pl_module)
        except NotFiniteError as error:  # a look at the weights does not end their training
            warnings.warn(f"no panel of step {step}: {error}", stacklevel=2)
            return
        with replacing(Path(trainer.default_root_dir) / "panels" / f"step={step}.png") as temporary:
            to_uint8(image).save(temporary, format="PNG")
        for logger in trainer.loggers:
            log_image(logger, "panel", image, log_step(trainer))

    @torch.no_grad()
    def image(self, trainer: L.Trainer, module: Diffusion) -> Tensor:
        """(3, rows, columns) in [0,1]: for each image its hole in grey, the result and the original, side by side."""
        from torchvision.utils import make_grid

        held_out = _held_out(trainer)
        samples = [held_out[number] for number in range(min(self.images, len(held_out)))]
        image = torch.stack([torch.as_tensor(sample["image"]) for sample in samples]).to(module.device)
        height, width = image.shape[2:]
        hole = draw_holes(self.masks, range(len(image)), module.seed, "panel", height=height, width=width)
        hole, prompts = hole.to(module.device), [str(sample.get("text", "")) for sample in samples]
        with averaged(trainer, module), KeyedNoise(module.seed, range(len(image)), device=module.device) as noise:
            result = inpaint(module, self.sampler(module), image, hole, prompts, noise=noise)
        rows = [image * (1 - hole), result, image]
        return make_grid(torch.stack(rows, 1).flatten(0, 1).cpu() / 2 + 0.5, nrow=3, padding=2).clamp(0, 1)


def _held_out(trainer: L.Trainer) -> HeldOut:
    """The validation images. Raises ValueError without any."""
    data = get_setting(trainer, "datamodule")
    held_out = data.held_out() if hasattr(data, "held_out") else None
    if held_out is None:
        raise ValueError(
            "Panel needs validation images, and there are none: give data.val_path or data.val_count, or remove it from "
            "trainer.callbacks"
        )
    return held_out


class Throughput(Callback):
    """Logs `train/images_per_second` of all processes, over the last batches; validation and checkpoints count as time.

    Args:
        window_size: number of batches, at least 2; a run logs its first rate once it has that many.
    """

    def __init__(self, window_size: int = 20) -> None:
        self.window_size = window_size

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._meter = throughput.Throughput(world_size=trainer.world_size, window_size=self.window_size)
        self._start, self._batches, self._images = time.perf_counter(), 0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        self._batches += 1
        self._images += len(batch["image"])
        self._meter.update(time=time.perf_counter() - self._start, batches=self._batches, samples=self._images)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        rate = self._meter.compute().get("device/samples_per_sec")
        if rate is not None and stepped and logs_at(trainer, trainer.global_step):
            log_values(trainer, {"train/images_per_second": rate * trainer.world_size})
