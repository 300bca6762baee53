"""Panels of inpainted images during training, and the throughput."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.images.atomic import replacing
from rad.images.codecs import to_uint8
from rad.masks.shapes import make
from rad.rng import KeyedNoise, generator
from rad.training.diffusion import Diffusion
from rad.training.ema import averaged

if TYPE_CHECKING:
    from rad.sampling.sampler import Sampler


class Throughput(Callback):
    """Logs `train/images_per_second`: all devices, from the last logging step to this one."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._images = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["image"]) * trainer.world_size
        interval: Any = trainer
        if trainer.global_step % interval.log_every_n_steps:
            return
        now = time.perf_counter()
        if self._since is not None:
            pl_module.log("train/images_per_second", self._images / (now - self._since))
        self._since, self._images = now, 0


class Panel(Callback):
    """Every N steps, inpaints the first held-out images at a fixed seed: hole | result | original.

    The panel is written to `panels/step=N.png` in the run folder, and logged to TensorBoard.

    Args:
        every_n_steps: in optimiser steps; 0: never.
        images: how many.
        steps: of the sampler.
        solver, spacing, eta: of the sampler; None: the preset of the method. A RAD model is shown by `rad`, a TD-Paint model by
            `tdpaint`, and a base model by `replacement`, the simplest method that fills holes with it.
        masks: names from `rad.masks.shapes.MASKS`, taken in turn.
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
        self.sampling: dict[str, Any] = {"steps": steps, "solver": solver, "spacing": spacing, "eta": eta}
        self._done = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A solver that the model cannot use is refused before training."""
        if self.every_n_steps > 0 and isinstance(pl_module, Diffusion):
            self.sampler(pl_module)

    def sampler(self, module: Diffusion) -> "Sampler":
        from rad.methods import RAD, Replacement, TDPaint
        from rad.sampling.sampler import Sampler

        methods = {"region_aware": RAD(), "tdpaint": TDPaint()}
        method = methods.get(module.process_kind, Replacement())
        return Sampler(module.sampling_process, (method,), **vars(method.choose(**self.sampling)))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._done and isinstance(pl_module, Diffusion) and trainer.is_global_zero:
            self._done = trainer.global_step
            image = self.image(trainer, pl_module)
            path = Path(trainer.default_root_dir) / "panels" / f"step={trainer.global_step}.png"
            with replacing(path) as place:
                to_uint8(image).save(place, format="PNG")
            writer = getattr(trainer.logger, "experiment", None)
            if hasattr(writer, "add_image"):
                writer.add_image("panel", image, trainer.global_step)  # pyright: ignore[reportOptionalMemberAccess]

    @torch.no_grad()
    def image(self, trainer: L.Trainer, module: Diffusion) -> Tensor:
        """(3, rows, columns) in [0,1]: for each image its hole in grey, the result and the truth, side by side."""
        from torchvision.utils import make_grid

        source: Any = trainer
        held_out = source.datamodule.val_dataloader().dataset
        chosen = [held_out[i] for i in range(min(self.images, len(held_out)))]
        data = torch.stack([one["image"] for one in chosen]).to(module.device)
        prompts = [one.get("text", "") for one in chosen]
        height, width = data.shape[2:]
        holes = [
            make(self.masks[i % len(self.masks)])([generator(module.seed, "panel", i)], height, width)
            for i in range(len(data))
        ]
        hole = torch.cat(holes).to(module.device)
        with (
            averaged(trainer, module),
            KeyedNoise(module.seed, range(len(data)), device=module.device) as noise,
        ):
            training = module.training
            module.eval()
            sample = self.sampler(module)(module.denoiser(prompts), module.task(data, hole), noise=noise)
            filled = module.model.autoencoder.decode(sample.image)
            module.train(training)
        rows = [data * (1 - hole), torch.where(hole == 1, filled, data), data]
        return make_grid(torch.stack(rows, 1).flatten(0, 1).cpu() / 2 + 0.5, nrow=3, padding=2).clamp(0, 1)
