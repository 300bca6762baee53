"""Metrics of held-out inpainting during training, split over the processes; the best model and early stopping by them."""

import json
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rad.arguments import describe, integer
from rad.console import counted, report
from rad.data.module import ImageDataModule
from rad.data.stream import HeldOut
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.errors import NotFiniteError
from rad.masks.shapes import make
from rad.rng import KeyedNoise, check_seed, key_of
from rad.sampling.finite import require_finite
from rad.training.checkpoint import best_folder, save_best
from rad.training.diffusion import Diffusion
from rad.training.ema import averaged, find_averages
from rad.training.inpainting.best import Best, Monitor, Record
from rad.training.inpainting.sampling import choose_sampler, draw_holes, inpaint
from rad.training.inpainting.scores import Networks, load_networks, score, summarise
from rad.training.logs.loggers import log_values
from rad.training.module import get_setting, is_due

DEFINING = ("images", "steps", "masks", "solver", "spacing", "eta", "monitor", "seed")
"""Settings that a value depends on."""


class InpaintingMetrics(Callback):
    """Inpaints the first held-out images with the averaged weights, and logs metrics of the results as `inpainting/...`.

    The values are those of `rad evaluate`: perceptual distance in the box of the hole, PSNR of the hole, texture (1 is right),
    and the Fréchet distance from the originals. `inpainting/seconds` is the duration of the measurement. Masks and noise do not
    depend on the step, the training seed, the batch size or the devices. Each device measures a part of the images. The weights
    are the average of the first `EMA`, or the trained ones without it. List this callback after `EMA` in trainer.callbacks.

    `best` beside the checkpoints holds the model with the best monitored value, ready for use, and best.json with its values.

    Args:
        every_n_steps: interval in optimiser steps; 0: never.
        images: number of images, at least 2; the Fréchet distance depends on it.
        batch_size: images at once on each device. The last batch is padded, so values do not depend on the number of devices.
        steps: sampling steps.
        masks: names from `rad.masks.shapes.MASKS`, taken in turn.
        solver, spacing, eta: see `rad.sampling.Sampler`; null: the preset of the method, see `Panel`.
        feature_net: network of distance and features, see `rad.evaluation.features.feature_net`. null: the shipped one; the
            distance is LPIPS (AlexNet) if its weights are on every machine.
        monitor: value that decides on the best model: "distance", "psnr", "texture" or "frechet"; null: keep none.
        patience: number of measurements without a better value after which the run ends; null: never.
        seed: seed of masks and noise, independent of the training seed.
    """

    def __init__(
        self,
        every_n_steps: int = 5000,
        images: int = 64,
        batch_size: int = 8,
        steps: int = 20,
        masks: tuple[str, ...] = ("center", "half", "thick", "perlin"),
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
        feature_net: str | None = None,
        monitor: Monitor | None = "distance",
        patience: int | None = None,
        seed: int = 0,
    ) -> None:
        least = {"every_n_steps": (every_n_steps, 0), "images": (images, 2), "batch_size": (batch_size, 1)}
        for name, (value, low) in {**least, "steps": (steps, 1)}.items():
            integer(f"InpaintingMetrics.{name}", value, low=low)
        if monitor is not None and monitor not in get_args(Monitor):
            raise ValueError(f"monitor is {describe(monitor)}; allowed are {', '.join(get_args(Monitor))} and null")
        if patience is not None and monitor is None:
            raise ValueError(f"patience is {describe(patience)} and monitor is null: set monitor, or patience to null")
        if patience is not None:
            integer("patience", patience, low=1)
        if not masks:
            raise ValueError("masks is empty: give at least one name of a mask")
        for mask in masks:
            make(mask)
        self.every_n_steps, self.images, self.batch_size = every_n_steps, images, batch_size
        self.steps, self.eta, self.masks = steps, eta, tuple(masks)
        self.solver: Solver | None = solver
        self.spacing: Spacing | None = spacing
        self.feature_net, self.patience, self.seed = feature_net, patience, check_seed(seed)
        self.monitor: Monitor | None = monitor
        self.best = Best()
        self._latest, self._stopped = 0, False
        self._networks: Networks | None = None

    def settings(self) -> dict[str, object]:
        """What the values and the end of the run depend on; see `rad.training.changes.Recorded`."""
        return {name: getattr(self, name) for name in (*DEFINING, "every_n_steps", "feature_net", "patience")}

    def state_dict(self) -> dict[str, Record | int]:
        return {"latest": self._latest, "best": self.best.record()}

    def load_state_dict(self, state_dict: dict[str, Record | int]) -> None:
        latest, best = state_dict["latest"], state_dict["best"]
        assert isinstance(latest, int)
        assert isinstance(best, dict)
        self._latest, self.best = latest, Best.from_record(best)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise ValueError before training if nothing can be measured with these settings."""
        self._stopped = False
        if self.every_n_steps == 0:
            return
        held_out = self._require_fit(trainer, pl_module)
        self._networks = self._load_networks(trainer)
        content = {name: getattr(self, name) for name in DEFINING} | {
            "value": self._key(self._networks),
            "weights": self._networks.weights,
            "images": key_of(held_out.images[number].name for number in range(min(self.images, len(held_out.images)))),
            "size": [held_out.framing.size, self.count(held_out)],
        }
        definition = json.dumps(content, sort_keys=True)
        if self.best.definition not in ("", definition):
            rank_zero_warn(
                "the held-out images or the settings of InpaintingMetrics differ from the checkpoint's: its best value is not "
                "comparable, and the search for the best model begins anew"
            )
            self.best = Best()
        self.best.definition = definition

    def _require_fit(self, trainer: L.Trainer, module: L.LightningModule) -> HeldOut:
        """The held-out images. Raises ValueError for a model, data or callbacks that do not fit."""
        from rad.evaluation.metrics import crop_box

        if not isinstance(module, Diffusion):
            raise ValueError("InpaintingMetrics needs a diffusion model: remove it from trainer.callbacks")
        data = get_setting(trainer, "datamodule")
        held_out = data.held_out() if isinstance(data, ImageDataModule) else None
        if held_out is None or self.count(held_out) < max(2, trainer.world_size):
            raise ValueError(
                f"InpaintingMetrics needs validation images, at least 2 and one for each device; there are "
                f"{0 if held_out is None else self.count(held_out)}: give data.val_path or data.val_count, or remove it from "
                "trainer.callbacks"
            )
        if self.count(held_out) < self.images:
            rank_zero_warn(f"InpaintingMetrics has {self.count(held_out)} validation images, not {self.images}")
        callbacks = get_setting(trainer, "callbacks")
        if any(callbacks.index(average) > callbacks.index(self) for average in find_averages(trainer)[:1]):
            raise ValueError(
                "InpaintingMetrics comes before EMA and would measure old averages: list it after EMA in trainer.callbacks"
            )
        choose_sampler(module, steps=self.steps, solver=self.solver, spacing=self.spacing, eta=self.eta)
        crop_box(torch.ones(1, module.image_size, module.image_size))
        return held_out

    def _load_networks(self, trainer: L.Trainer) -> Networks:
        from rad.evaluation.features import has_lpips

        lpips = trainer.strategy.reduce_boolean_decision(has_lpips("alex"), all=True)
        return load_networks(self.feature_net, lpips=lpips, device=trainer.strategy.root_device)

    def _key(self, networks: Networks) -> str | None:
        """Name of the monitored value."""
        names = {"distance": networks.distance_name, "psnr": "psnr-hole", "frechet": networks.frechet_name}
        return None if self.monitor is None else names.get(self.monitor, self.monitor)

    def count(self, held_out: HeldOut) -> int:
        """Number of images that are measured."""
        return min(self.images, len(held_out))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every_n_steps > 0 and self.best.has_ended(self.patience):  # resumed after its end
            trainer.should_stop = self._stopped = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not is_due(trainer, self.every_n_steps, self._latest) or not isinstance(pl_module, Diffusion):
            return
        self._latest = step
        values = self.measure(trainer, pl_module)
        if values is None:
            return
        log_values(trainer, values)
        if trainer.is_global_zero:
            shown = [f"{name.removeprefix('inpainting/')} {value:.4g}" for name, value in values.items()]
            report(f"step {step}: inpainting {', '.join(shown)}")
        self._compare(trainer, pl_module, values)

    def _compare(self, trainer: L.Trainer, module: Diffusion, values: Mapping[str, float]) -> None:
        """Keep the model if it is the best, and end the run if it has waited long enough; the same on all processes."""
        assert self._networks is not None
        if self.monitor is None:
            return
        key = f"inpainting/{self._key(self._networks)}"
        if key not in values:
            rank_zero_warn(f"{key} of step {trainer.global_step} is not finite, and is not compared")
        elif self.best.update(self.monitor, values[key], trainer.global_step):
            numbers = {name: value for name, value in values.items() if name != "inpainting/seconds"}
            save_best(trainer, module, {"metric": key, "value": values[key], "step": trainer.global_step, **numbers})
        elif self.best.has_ended(self.patience):
            trainer.should_stop = self._stopped = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report an early end."""
        if self._stopped and self._networks is not None and trainer.is_global_zero:
            folder = best_folder(trainer)
            place = "" if folder is None or not folder.is_dir() else f"; the best model is {folder}"
            report(
                f"training has ended early at step {trainer.global_step}: inpainting/{self._key(self._networks)} has not "
                f"improved on {self.best.value:.6g} of step {self.best.step} in {counted(self.best.waited, 'measurement')}"
                f"{place}. To train on, raise patience (now {self.patience}) and give --ckpt_path last"
            )

    def measure(self, trainer: L.Trainer, module: Diffusion) -> dict[str, float] | None:
        """The values of all processes, by their logged names; None after a warning if a sample is not finite."""
        began, rows = time.perf_counter(), None
        held_out = get_setting(trainer, "datamodule").held_out()
        numbers = range(trainer.global_rank, self.count(held_out), trainer.world_size)
        try:
            with averaged(trainer, module):
                rows = self.rows(module, held_out, numbers)
        except NotFiniteError as error:  # a look at the weights does not end their training
            warnings.warn(f"no inpainting metrics of step {trainer.global_step}: {error}", stacklevel=2)
        if not trainer.strategy.reduce_boolean_decision(rows is not None, all=True) or rows is None:
            return None
        assert self._networks is not None
        rows = join(trainer, rows, self.count(held_out))
        values = summarise(rows, self._networks) if trainer.is_global_zero else {}
        values["seconds"] = time.perf_counter() - began
        values = trainer.strategy.broadcast(values)
        return {f"inpainting/{name}": value for name, value in values.items()}

    def rows(self, module: Diffusion, held_out: HeldOut, numbers: Iterable[int]) -> Tensor:
        """A row of values (see `scores.score`) for each of these images, with the present weights.

        Raises NotFiniteError for a sample with NaN or infinity.
        """
        assert self._networks is not None
        sampler = choose_sampler(module, steps=self.steps, solver=self.solver, spacing=self.spacing, eta=self.eta)
        order, parts = list(numbers), []
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            batch += batch[-1:] * (self.batch_size - len(batch))  # another batch size would round differently
            samples = [held_out[number] for number in batch]
            original = torch.stack([torch.as_tensor(sample["image"]) for sample in samples]).to(module.device)
            height, width = original.shape[2:]
            hole = draw_holes(self.masks, batch, self.seed, "inpainting", height=height, width=width).to(module.device)
            prompts = [str(sample.get("text", "")) for sample in samples]
            with KeyedNoise(self.seed, batch) as noise:
                filled = inpaint(module, sampler, original, hole, prompts, noise=noise)
            require_finite(filled, "the decoded sample is not finite")
            parts.append(score(filled / 2 + 0.5, original / 2 + 0.5, hole, self._networks))
        return torch.cat(parts)[: len(order)]


def join(trainer: L.Trainer, rows: Tensor, count: int) -> Tensor:
    """The rows (N,C) of all W processes in the order of the images: process r has the images r, r + W, r + 2W, ..."""
    if trainer.world_size == 1:
        return rows
    most = -(-count // trainer.world_size)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])])
    gathered = trainer.strategy.all_gather(padded.to(trainer.strategy.root_device)).cpu()
    return interleave(gathered, count)


def interleave(gathered: Tensor, count: int) -> Tensor:
    """(count,C) from (W,N,C), where row k of process r belongs to image k * W + r; rows beyond `count` are fill."""
    return gathered.transpose(0, 1).flatten(0, 1)[:count]
