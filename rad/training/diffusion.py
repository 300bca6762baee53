"""The LightningModule of diffusion models: base models (one noise level per image) and RAD (one per pixel or latent cell).

Each random draw of a step is keyed by (seed, position of the sample in the run), and drawn on the CPU. Losses do not depend on
how a batch is split, and a resumed run equals an uninterrupted one. Latent models train on the inputs of sampling: holes drawn
in pixels are mapped to the latent grid, and filled before encoding, which hides their content from known cells.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from rad.data.draws import Draws, Purpose, draw_uniform
from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import Losses
from rad.diffusion.step import noised
from rad.masks import MaskGenerator
from rad.masks.perlin import Perlin
from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.guided_diffusion import QkvOrder
from rad.models.hub.download import resolve
from rad.models.latent_mask import Grid, Prefill, cached_latents, encode_training
from rad.models.load import load_model
from rad.models.loaded_model import LoadedModel, RegionAwareNetwork
from rad.models.lora import LoRA, inject
from rad.models.vae import IDENTITY, Cache
from rad.modes import float32_modes
from rad.networks.dropout import find_keys
from rad.resources import located
from rad.sampling.task import Task
from rad.training.execution import Execution, MatmulPrecisionOfRun
from rad.training.module import Batch, Frozen, TrainingModule
from rad.training.official import as_published, low_rank
from rad.training.schedules import Schedule
from rad.training.settings import Scratch, TrainingLoss, TrainingProcess

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
        adapter: folder of an adapter to train further, or USER/NAME[@REVISION] on the hub. It has its own rank and layers;
            `lora` is then null.
        masks: generator of training holes; a batch with its own "hole" takes precedence.
        grid: rule that maps holes to the latent grid.
        fill: content of the hole while the encoder runs: "smooth", "mean" or "none" (the original, which leaks).
        prompt_dropout: fraction of samples with the empty prompt, 0 to 1, for guidance; for models with text.
        execution: memory, speed and parallelism.
        optimizer: optimiser of the trained weights, such as torch.optim.AdamW with its arguments.
        schedule: learning rate over the run.
        lr_scheduler: a torch scheduler in place of `schedule`; it steps after each optimiser step.
        official: train an adapter as the official code does, see `rad.training.official`: sets time origin, attention order,
            boundary of the loss and clipping. False: the settings above.
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
        official: bool = False,
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
        if official:
            process, loss = as_published(process, loss)
            qkv_order = "naive"
        self.official = official
        self.base, self.revision, self.head_channels, self.scratch = base, revision, head_channels, scratch
        self.qkv_order: QkvOrder = qkv_order
        self.lora, self.adapter, self.image_size = lora, adapter, image_size
        self.process, self.loss, self.execution = process, loss, execution
        self.masks: MaskGenerator = Perlin() if masks is None else masks
        self.grid, self.prompt_dropout = grid, prompt_dropout
        self.fill: Prefill = fill
        self._model: LoadedModel | None = None
        self.cache: Cache | None = None
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
        if self.official and self.whole:
            raise ValueError(
                "model.official trains an adapter: set model.lora or model.adapter, or model.official to false"
            )
        if self.lora is not None and self.adapter is not None:
            raise ValueError(f"model.adapter {self.adapter} has its own rank and layers: set model.lora to null")
        if self.whole and self.execution.base_dtype != "float32":
            raise ValueError(
                f"execution.base_dtype is {self.execution.base_dtype!r}, which is for frozen weights: set model.lora or "
                "model.adapter, or leave it at 'float32'"
            )
        if not 0 <= self.prompt_dropout <= 1:
            raise ValueError(f"model.prompt_dropout is {self.prompt_dropout}; allowed are fractions from 0 to 1")

    def setup(self, stage: str) -> None:
        self.cache = getattr(getattr(self.trainer, "datamodule", None), "cache", None)

    def clipped_weights(self) -> Iterable[nn.Parameter]:
        return low_rank(self.trained) if self.official else super().clipped_weights()

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
            self.execution.finish(self.network, model.network)
            self.dropout_keys = find_keys(self.network)
            self.frozen = Frozen(model.frozen_modules())
        self.compiled_losses = self.execution.compiled(self.compute_losses)
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
            return load_adapter(network, located(resolve(self.adapter)[0]), base_hash=base_hash, trained=True)
        if self.lora is not None:
            return inject(network, self.lora, seed=self.seed)
        return network.requires_grad_(True)

    @property
    def learned_variance(self) -> bool:
        return self.model.learns_variance and self.loss.vlb_weight > 0

    def on_fit_start(self) -> None:
        self.model.require_sides(getattr(getattr(self.trainer, "datamodule", None), "buckets", ()))
        if self.cache is not None and self.model.autoencoder is IDENTITY and not self.model.takes_text:
            rank_zero_warn(f"{self.model.source} has no autoencoder and takes no text: data.cache has no effect")
        captioned = getattr(getattr(self.trainer, "datamodule", None), "captions", None) is not None
        if captioned and not self.model.takes_text:
            rank_zero_warn(f"{self.model.source} takes no text: the captions are unused")
        if self.model.takes_text and not captioned:
            rank_zero_warn(f"{self.model.source} takes text; without data.captions it is trained on the empty prompt")
        if self.execution.compile:  # tables of levels go to the device here, outside of the graph
            t, hole = (torch.zeros(shape, device=self.device) for shape in ((1,), (1, 1, 1, 1)))
            self.noise_process.noise(t.long(), NoiseRegions.binary(hole))

    def configure_callbacks(self) -> list[Callback]:
        precision = self.execution.matmul_precision
        return [] if precision is None else [MatmulPrecisionOfRun(precision)]

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
        self.timestep_sampler.record(batch["position"], t, losses.total)
        curves = {
            "loss": losses.total,
            "simple": losses.simple,
            "vlb": losses.vlb,
            "hole_fraction": hole.mean((1, 2, 3)),
        }
        for name, values in curves.items():
            self.curves.add(f"train/{name}", values)
        for name, inside in timestep_buckets(t, self.noise_process.steps).items():
            self.curves.add(f"train/simple_{name}", losses.simple, where=inside)
        return losses.total.mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.timestep_sampler.finish_step(self.trainer.strategy.all_gather)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, _, _ = self.losses(batch, "val")
        self.log_means({"loss": losses.total, "simple": losses.simple, "vlb": losses.vlb})

    def losses(self, batch: Batch, purpose: Purpose) -> tuple[Losses, Tensor, Tensor]:
        """Losses, timesteps t (B,) and holes (B,1,H,W); all draws are keyed by (seed, purpose, position)."""
        image: Tensor = batch["image"]
        draws = batch.get("draws") or self._draw(batch, purpose)
        t = self.timestep_sampler.draw(draws["times"], training=purpose == "train")
        hole = self._choose_holes(batch, draws)
        # Our data module draws no other holes than 0 and 1; others are checked, which waits for the device.
        x0, regions = self._encode(
            image, hole, soft="hole" in batch and "draws" not in batch, whole=self._cached_latents(batch)
        )
        prompts = self._encode_prompts(batch, purpose)
        if self.dropout_keys is not None and self.training:
            self.dropout_keys.set(self.seed, batch["position"].tolist(), device=x0.device)
        losses = self.compiled_losses(x0, draws["noise"].to(x0), t, regions, prompts)
        return (self.timestep_sampler.weigh(losses, t) if purpose == "train" else losses), t, hole

    def compute_losses(
        self, x0: Tensor, eps: Tensor, t: Tensor, regions: NoiseRegions | None, prompts: Mapping[str, Tensor]
    ) -> Losses:
        """Losses of x0 and noise eps (B,C,h,w) at t (B,): noising, network and loss; without draws, so one graph."""
        now, previous = self.noise_process.noise(t, regions), self.noise_process.noise(t - 1, regions)
        x = noised(x0, now, noise=eps)
        if self.execution.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        times = now.timesteps.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 would round 999 to 1000
        output = self.network(x, timestep=times, index=now.index, **prompts).sample
        return self.loss(output, x0=x0, x=x, eps=eps, now=now, previous=previous, prediction=self.model.prediction)

    def draws(self, purpose: Purpose, *, with_holes: bool) -> Draws:
        """The draws of samples, for the workers of a loader; with holes where the batch has none."""
        return Draws(
            self.seed,
            purpose,
            channels=self.model.autoencoder.channels,
            factor=self.model.autoencoder.factor,
            masks=self.masks if with_holes and self.process.has_holes else None,
            unconditional=self.process.unconditional_share > 0,
            noise_offset=self.process.noise_offset if purpose == "train" else 0.0,
        )

    def _draw(self, batch: Batch, purpose: Purpose) -> dict[str, Tensor]:
        """The draws of a batch that has none, on the device of its images."""
        image: Tensor = batch["image"]
        draws = self.draws(purpose, with_holes="hole" not in batch)
        samples = draws.batch(batch["position"].tolist(), (image.shape[2], image.shape[3]))
        return {name: values.to(image.device) for name, values in samples.items()}

    def _choose_holes(self, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
        """(B,1,H,W) in [0,1]: those of the batch, or of its draws; all ones for a base model."""
        image: Tensor = batch["image"]
        if not self.process.has_holes:
            return image.new_ones(len(image), 1, *image.shape[2:])
        hole: Tensor = batch["hole"] if "hole" in batch else draws["hole"]
        share = self.process.unconditional_share
        return hole if share == 0 else torch.where((draws["unconditional"] < share)[:, None, None, None], 1.0, hole)

    @torch.no_grad()
    def _encode(
        self, image: Tensor, hole: Tensor, *, soft: bool, whole: Tensor | None = None
    ) -> tuple[Tensor, NoiseRegions | None]:
        """x0 in pixels or latents, and the regions of its grid.

        Args:
            soft: the hole may have values between 0 and 1.
            whole: latents of the whole images, where they are cached.
        """
        autoencoder = self.model.autoencoder
        if not self.process.has_holes:
            return autoencoder.encode(image) if whole is None else whole, None
        x0, cells = encode_training(image, hole, autoencoder, grid=self.grid, fill=self.fill, whole=whole)
        return x0, NoiseRegions.from_mask(cells) if soft else NoiseRegions.binary(cells)

    def _cached_latents(self, batch: Batch) -> Tensor | None:
        if self.cache is None or "pixels_hash" not in batch:
            return None
        return cached_latents(batch["image"], batch["pixels_hash"], self.model.autoencoder, self.cache)

    @torch.no_grad()
    def _encode_prompts(self, batch: Batch, purpose: str) -> dict[str, Tensor]:
        """Network arguments for the prompts of the batch; in training some are replaced by the empty prompt."""
        prompts = list(batch.get("text", [""] * len(batch["position"])))
        if purpose == "train" and self.model.takes_text:
            dropped = (draw_uniform(batch["position"].tolist(), self.seed, "prompt") < self.prompt_dropout).tolist()
            prompts = ["" if drop else prompt for drop, prompt in zip(dropped, prompts, strict=True)]
        return self.model.encode_prompts(prompts, cache=self.cache)


def timestep_buckets(t: Tensor, steps: int) -> dict[str, Tensor]:
    """For each range of timesteps out of `steps`, by name, which of t (B,) lie in it: (B,) boolean."""
    bucket = t * BUCKETS // steps
    edges = [-(-number * steps // BUCKETS) for number in range(BUCKETS + 1)]  # rounded up
    return {f"t{edges[number]}-{edges[number + 1] - 1}": bucket == number for number in range(BUCKETS)}
