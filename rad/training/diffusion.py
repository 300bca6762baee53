"""The LightningModule of diffusion models: base models (one noise level per image) and RAD (one per pixel or latent cell).

Each random draw of a step is keyed by (seed, position of the sample in the run). Losses do not depend on how a batch is split,
and a resumed run equals an uninterrupted one. Latent models train on the inputs of sampling: holes drawn in pixels are mapped
to the latent grid, and filled before encoding, which hides their content from known cells.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import Losses
from rad.diffusion.step import noised
from rad.masks import MaskGenerator
from rad.masks.perlin import Perlin
from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.guided_diffusion import QkvOrder
from rad.models.latent_mask import Grid, Prefill, encode_training
from rad.models.load import load_model
from rad.models.loaded_model import LoadedModel, RegionAwareNetwork
from rad.models.lora import LoRA, inject
from rad.modes import float32_modes
from rad.resources import located
from rad.rng import generator
from rad.sampling.task import Task
from rad.training.module import Batch, Frozen, TrainingModule
from rad.training.schedules import Schedule
from rad.training.settings import Execution, Scratch, TrainingLoss, TrainingProcess, draw_timesteps

BUCKETS = 4
"""Ranges of timesteps whose squared errors are logged separately."""

PROCESS, LOSS, EXECUTION, SCHEDULE, GRID = TrainingProcess(), TrainingLoss(), Execution(), Schedule(), Grid()


class Diffusion(TrainingModule):
    """Trains a denoiser: an adapter on a base model, or all weights.

    Example:
        module = Diffusion("checkpoints/base-nature32", image_size=32, lora=LoRA(rank=16))
        Trainer(max_steps=1000, use_distributed_sampler=False).fit(module, ImageDataModule("photos/", size=32))

    Args:
        base: base model: a diffusers folder, a hub id, or a guided-diffusion .pt file. It works on pixels or on latents (LDM,
            Stable Diffusion 1.x, 2.x and 3). null: train `scratch`.
        revision: revision of a hub id.
        head_channels: width of the attention heads of a .pt file.
        qkv_order: attention layout of a .pt file: "legacy" for ADM weights in OpenAI's order, "naive" for official RAD weights.
        scratch: network to train from scratch, in place of `base`.
        image_size: side of the training images in pixels.
        process: noise process.
        loss: loss.
        lora: adapter to train; null: all weights.
        adapter: folder of an adapter to train further, with its own rank and layers; `lora` is then null.
        masks: generator of training holes; a batch with its own "hole" takes precedence.
        grid: rule that maps holes to the latent grid.
        fill: content of the hole while the encoder runs: "smooth", "mean" or "none" (the original, which leaks).
        prompt_dropout: fraction of samples with the empty prompt, 0 to 1, for guidance; for models with text.
        execution: memory, speed and parallelism.
        optimizer: optimiser of the trained weights, such as torch.optim.AdamW with its arguments.
        schedule: learning rate over the run.
        lr_scheduler: a torch scheduler in place of `schedule`; it steps after each optimiser step.
        seed: seed of holes, timesteps, noise and new weights.
    """

    network: nn.Module

    def __init__(
        self,
        base: str | None = None,
        revision: str | None = None,
        head_channels: int = 64,
        qkv_order: QkvOrder = "legacy",
        scratch: Scratch | None = None,
        image_size: int = 256,
        process: TrainingProcess = PROCESS,
        loss: TrainingLoss = LOSS,
        lora: LoRA | None = None,
        adapter: str | None = None,
        masks: MaskGenerator | None = None,
        grid: Grid = GRID,
        fill: Prefill = "smooth",
        prompt_dropout: float = 0.1,
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = lambda weights: torch.optim.AdamW(weights, lr=1e-4),
        schedule: Schedule = SCHEDULE,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            optimizer,
            schedule,
            lr_scheduler,
            seed=seed,
            means=("loss", "simple", "vlb"),
            shard_optimizer=execution.shard_optimizer,
        )
        self.save_hyperparameters(logger=False, ignore=self.not_saved)
        if (base is None) == (scratch is None):
            raise ValueError("give either model.base (a trained model to start from) or model.scratch (a new network)")
        self.base, self.revision, self.head_channels, self.scratch = base, revision, head_channels, scratch
        self.qkv_order: QkvOrder = qkv_order
        self.lora, self.adapter, self.image_size = lora, adapter, image_size
        self.process, self.loss, self.execution = process, loss, execution
        self.masks: MaskGenerator = Perlin() if masks is None else masks
        self.grid, self.prompt_dropout = grid, prompt_dropout
        self.fill: Prefill = fill
        self._model: LoadedModel | None = None
        self._require_consistent()

    def _require_consistent(self) -> None:
        for name, value in (("base", self.base), ("adapter", self.adapter)):
            if value is not None and not value.strip():
                raise ValueError(f"model.{name} is {value!r}, which names no folder: give one, or null for none")
        if not self.whole and not self.process.has_holes:
            raise ValueError(
                f"process.kind {self.process.kind!r} trains a base model, all of it: remove model.lora and model.adapter, or use "
                "'region_aware'"
            )
        if not self.whole and self.scratch is not None:
            raise ValueError(
                "model.lora and model.adapter are for a trained model.base: model.scratch is trained as a whole"
            )
        if self.lora is not None and self.adapter is not None:
            raise ValueError(f"model.adapter {self.adapter} has its own rank and layers: set model.lora to null")
        if not 0 <= self.prompt_dropout <= 1:
            raise ValueError(f"model.prompt_dropout is {self.prompt_dropout}; allowed are fractions from 0 to 1")

    @property
    def whole(self) -> bool:
        """Whether all weights are trained, without an adapter."""
        return self.lora is None and self.adapter is None

    @property
    def model(self) -> LoadedModel:
        """The loaded model; `model.network` is the denoiser as it is now, with its adapter."""
        if self._model is None:
            raise RuntimeError("the model is not loaded yet: call configure_model(), as the Trainer does")
        return self._model

    def configure_model(self) -> None:
        """Load the model and prepare the trained weights, once.

        Raises FileNotFoundError or ValueError if weights are missing, or cannot be trained with these settings.
        """
        if self._model is not None:
            return
        with float32_modes():
            model = self._load()
            self.loss.require_fit(model.prediction)
            model.require_trainable(self.process.kind, whole=self.whole)
            self.noise_process = self.process.build(model.base_process)
            self.sampling_process = self.process.build_sampling(model.base_process)
            self.timestep_sampler = self.process.timestep_sampler(self.noise_process)
            self.saved_states["timesteps"] = self.timestep_sampler
            self.network = self._trained(self.execution.prepare(model), model.hash).train()
            self.frozen = Frozen(model.frozen_modules())
        self.forward_network: Callable[..., Any] = self.network
        if self.execution.compile:
            self.forward_network = torch.compile(self.network)
        self._model = model

    def _load(self) -> LoadedModel:
        if self.scratch is not None:
            return self.scratch.build(image_size=self.image_size, seed=self.seed)
        return load_model(
            str(self.base),
            revision=self.revision,
            size=self.image_size,
            head_channels=self.head_channels,
            qkv_order=self.qkv_order,
            training=True,
        )

    def _trained(self, network: RegionAwareNetwork, base_hash: str) -> nn.Module:
        """The network as a whole, or with its adapter; only trained weights require a gradient."""
        if self.adapter is not None:
            return load_adapter(network, located(self.adapter), base_hash=base_hash, trained=True)
        if self.lora is not None:
            return inject(network, self.lora, seed=self.seed)
        return network.requires_grad_(True)

    @property
    def learned_variance(self) -> bool:
        return self.model.learns_variance and self.loss.vlb_weight > 0

    def on_fit_start(self) -> None:
        captioned = getattr(getattr(self.trainer, "datamodule", None), "captions", None) is not None
        if captioned and not self.model.takes_text:
            rank_zero_warn(f"{self.model.source} takes no text: the captions are unused")
        if self.model.takes_text and not captioned:
            rank_zero_warn(f"{self.model.source} takes text; without data.captions it is trained on the empty prompt")

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """The network as it is now, for sampling one image for each prompt; models without text ignore prompts."""
        return self.model.training_denoiser(prompts, learned_variance=self.learned_variance)

    def task(self, image: Tensor, hole: Tensor) -> Task:
        """image (B,3,H,W) in [-1,1], hole (B,1,H,W) in [0,1], on the module's device."""
        return Task.encoded(image, hole, self.model.autoencoder, grid=self.grid, fill=self.fill)

    def adapter_info(self, *, ema: bool) -> AdapterInfo:
        return AdapterInfo(
            base=self.model.source,
            base_hash=self.model.hash,
            base_revision=self.model.revision,
            time_origin=self.process.time_origin,
            steps=self.model.base_process.steps,
            size=(self.image_size, self.image_size),
            trained_steps=self.global_step,
            ema=ema,
            qkv_order=self.qkv_order,
            learned_variance=self.learned_variance,
            process=self.process.kind,
            unconditional=self.process.unconditional_share > 0,
            kind=self.model.kind,
        )

    def identity(self) -> dict[str, str]:
        return {
            "base_hash": self.model.hash,
            "process": self.process.kind,
            "prediction": self.model.prediction,
            "time_origin": self.process.time_origin,
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses, t, hole = self.losses(batch, "train")
        loss = losses.total.mean()
        self.timestep_sampler.record(batch["position"], t, losses.total)
        if self.logs_now:
            means = {"simple": losses.simple.mean(), "vlb": losses.vlb.mean(), "hole_fraction": hole.mean()}
            for name, mean in bucket_means(losses.simple, t, self.noise_process.steps).items():
                means[f"simple_{name}"] = mean
            self.log_dict({f"train/{name}": mean for name, mean in means.items()}, batch_size=len(hole))
            self.log("train/loss", loss, prog_bar=True, batch_size=len(hole))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.timestep_sampler.finish_step(self.trainer.strategy.all_gather)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, _, _ = self.losses(batch, "val")
        self.log_means({"loss": losses.total, "simple": losses.simple, "vlb": losses.vlb})

    def losses(self, batch: Batch, purpose: Literal["train", "val"]) -> tuple[Losses, Tensor, Tensor]:
        """Losses, timesteps t (B,) and holes (B,1,H,W); all draws are keyed by (seed, purpose, position)."""
        image: Tensor = batch["image"]
        rngs = [generator(self.seed, purpose, position, device=image.device) for position in batch["position"].tolist()]
        t = self.timestep_sampler.draw(draw_timesteps(rngs), training=purpose == "train")
        hole = self._draw_holes(batch, rngs, purpose)
        x0, regions = self._encode(image, hole, soft="hole" in batch)
        eps = torch.stack(
            [torch.randn(x0.shape[1:], generator=rng, device=x0.device, dtype=torch.float32) for rng in rngs]
        ).to(x0)
        if purpose == "train" and self.process.noise_offset:
            eps = eps + self.process.noise_offset * draw_offsets(batch, self.seed, eps)
        now, previous = self.noise_process.noise(t, regions), self.noise_process.noise(t - 1, regions)
        x = noised(x0, now, noise=eps)
        prompts = self._encode_prompts(batch, purpose)
        times = now.timesteps.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 would round 999 to 1000
        output = self.forward_network(x, timestep=times, index=now.index, **prompts).sample
        losses = self.loss(output, x0=x0, x=x, eps=eps, now=now, previous=previous, prediction=self.model.prediction)
        return (self.timestep_sampler.weigh(losses, t) if purpose == "train" else losses), t, hole

    def _draw_holes(self, batch: Batch, rngs: Sequence[torch.Generator], purpose: str) -> Tensor:
        """(B,1,H,W) in [0,1]: those of the batch, or drawn; all ones for a base model."""
        image: Tensor = batch["image"]
        if not self.process.has_holes:
            return image.new_ones(len(image), 1, *image.shape[2:])
        hole: Tensor = batch["hole"] if "hole" in batch else self.masks(rngs, *image.shape[2:]).to(image.device)
        share = self.process.unconditional_share
        if share == 0:
            return hole
        draws = draw_uniform(batch, self.seed, purpose, "unconditional").to(hole.device)
        return torch.where((draws < share)[:, None, None, None], 1.0, hole)

    @torch.no_grad()
    def _encode(self, image: Tensor, hole: Tensor, *, soft: bool) -> tuple[Tensor, NoiseRegions | None]:
        """x0 in pixels or latents, and the regions of its grid; `soft`: the hole may have values between 0 and 1."""
        autoencoder = self.model.autoencoder
        if not self.process.has_holes:
            return autoencoder.encode(image), None
        x0, cells = encode_training(image, hole, autoencoder, grid=self.grid, fill=self.fill)
        return x0, NoiseRegions.from_mask(cells) if soft else NoiseRegions.binary(cells)

    @torch.no_grad()
    def _encode_prompts(self, batch: Batch, purpose: str) -> dict[str, Tensor]:
        """Network arguments for the prompts of the batch; in training some are replaced by the empty prompt."""
        prompts = list(batch.get("text", [""] * len(batch["position"])))
        if purpose == "train" and self.model.takes_text:
            dropped = (draw_uniform(batch, self.seed, "prompt") < self.prompt_dropout).tolist()
            prompts = ["" if drop else prompt for drop, prompt in zip(dropped, prompts, strict=True)]
        return self.model.encode_prompts(prompts)


def draw_uniform(batch: Batch, *key: int | str) -> Tensor:
    """(B,) in [0,1), keyed by `key` and the position of each sample."""
    rngs = [generator(*key, position) for position in batch["position"].tolist()]
    return torch.stack([torch.rand((), generator=rng, device=rng.device, dtype=torch.float32) for rng in rngs])


def draw_offsets(batch: Batch, seed: int, eps: Tensor) -> Tensor:
    """(B,C,1,1) normal numbers, keyed by position, for noise `eps` (B,C,H,W)."""
    rngs = [generator(seed, "noise offset", position) for position in batch["position"].tolist()]
    draws = [torch.randn(eps.shape[1], generator=rng, device=rng.device, dtype=torch.float32) for rng in rngs]
    return torch.stack(draws)[:, :, None, None].to(eps)


def bucket_means(values: Tensor, t: Tensor, steps: int) -> dict[str, Tensor]:
    """Means of `values` (B,) over ranges of timesteps t (B,) out of `steps`; empty ranges are left out."""
    bucket, means = t * BUCKETS // steps, {}
    for number in range(BUCKETS):
        inside = bucket == number
        if bool(inside.any()):
            first, last = number * steps // BUCKETS, (number + 1) * steps // BUCKETS - 1
            means[f"t{first}-{last}"] = values[inside].mean()
    return means
