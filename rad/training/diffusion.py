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

from rad.data.draws import Draws, Purpose
from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import NoiseRegions, time_input
from rad.diffusion.losses import Losses
from rad.diffusion.step import noised
from rad.masks import MaskGenerator
from rad.masks.perlin import Perlin
from rad.models.adapter import AdapterInfo, inherited_sampling, load_adapter
from rad.models.guided_diffusion import QkvOrder
from rad.models.hub.download import resolve
from rad.models.latent_mask import Grid, Prefill
from rad.models.load import load_model
from rad.models.loaded_model import LoadedModel, RegionAwareNetwork
from rad.models.lora import LoRA, inject, merge, twin
from rad.models.settings.preferred import NOTHING, Preferred
from rad.models.vae import IDENTITY, Cache
from rad.modes import float32_modes
from rad.networks.dropout import find_keys
from rad.resources import located
from rad.sampling.task import Task
from rad.training.batches import choose_holes, draw_batch, encode_images, encode_prompts
from rad.training.distillation import Critic, Distillation, DistillationLosses, Views
from rad.training.execution import Execution, MatmulPrecisionOfRun
from rad.training.logs.curves import Curves
from rad.training.module import Batch, Frozen, TrainingModule
from rad.training.official import as_published, low_rank
from rad.training.schedules import Schedule
from rad.training.settings import Scratch, TrainingLoss, TrainingProcess, require_consistent, require_distillable

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
        distillation: train a sampler of few calls with a critic, from a trained `base`; null: none.
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
        distillation: Distillation | None = None,
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
        if distillation is not None:
            require_distillable(scratch, process, execution, official=official, has_scheduler=lr_scheduler is not None)
        self.distillation = distillation
        self.critic: Critic | None = None
        self.masks: MaskGenerator = Perlin() if masks is None else masks
        self.grid, self.prompt_dropout = grid, prompt_dropout
        self.fill: Prefill = fill
        self._model: LoadedModel | None = None
        self.cache: Cache | None = None
        require_consistent(
            base=base,
            adapter=adapter,
            scratch=scratch,
            lora=lora,
            process=process,
            base_dtype=execution.base_dtype,
            official=official,
            prompt_dropout=prompt_dropout,
        )

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
            if self.process.surroundings:
                model.use_surroundings()
            self.loss.require_fit(model.prediction)
            model.require_trainable(self.process.kind, whole=self.whole)
            self.noise_process = self.process.build(model.base_process)
            self.sampling_process = self.process.build_sampling(model.base_process)
            self.timestep_sampler = self.process.timestep_sampler(self.noise_process)
            self.saved_states["timesteps"] = self.timestep_sampler
            self.preferred = _inherited(self)
            if self.distillation is not None:
                self.critic = Critic(self._before(model), seed=self.seed)
                self.preferred = self.distillation.sampling(self.preferred)
            network = self.execution.prepare(model)
            self.network = _with_adapter(network, self.lora, self.adapter, base_hash=model.hash, seed=self.seed).train()
            self.execution.finish(self.network, model.network)
            self.dropout_keys = find_keys(self.network)
            if self.distillation is not None and self.dropout_keys is not None:
                raise ValueError("model.distillation has no dropout of the adapter: set lora.dropout to 0")
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

    def _before(self, model: LoadedModel) -> nn.Module:
        """The network before this training, for the critic of `distillation`: with the adapter that is trained further."""
        if self.adapter is None:
            return model.network
        network = twin(model.region_aware_network())
        return merge(load_adapter(network, located(resolve(self.adapter)[0]), base_hash=model.hash))

    @property
    def learned_variance(self) -> bool:
        return self.model.learns_variance and self.loss.vlb_weight > 0

    def on_fit_start(self) -> None:
        if self.trainer.precision == "64-true" and self.model.autoencoder is not IDENTITY:
            raise ValueError(
                f"trainer.precision is 64-true, and the autoencoder of {self.model.source} computes in 32 bits: set 32-true or "
                "bf16-mixed"
            )
        if self.distillation is not None and self.trainer.precision not in ("32-true", "bf16-mixed", "16-mixed"):
            raise ValueError(
                f"trainer.precision is {self.trainer.precision}, and the critic of model.distillation computes in 32 bits: set "
                "32-true or bf16-mixed"
            )
        data = getattr(self.trainer, "datamodule", None)
        self.model.require_sides(getattr(data, "buckets", ()))
        _warn_unused(self.model, captioned=getattr(data, "captions", None) is not None, cached=self.cache is not None)
        if self.execution.compile:  # tables of levels go to the device here, outside of the graph
            t, hole = (torch.zeros(shape, device=self.device) for shape in ((1,), (1, 1, 1, 1)))
            self.noise_process.noise(t.long(), NoiseRegions.binary(hole))

    def configure_callbacks(self) -> list[Callback]:
        precision = self.execution.matmul_precision
        return [*super().configure_callbacks(), *([] if precision is None else [MatmulPrecisionOfRun(precision)])]

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
            unconditional=self.process.unconditional_share > 0 and self.distillation is None,
            kind=self.model.kind,
            sampling=self.preferred,
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
        if isinstance(losses, DistillationLosses):
            for name, (values, over) in losses.curves.items():
                self.curves.add(f"train/{name}", values, over=over)
        else:
            _add_curves(self.curves, losses, t, hole, steps=self.noise_process.steps)
        return losses.total.mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.timestep_sampler.finish_step(self.trainer.strategy.all_gather)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, _, _ = self.losses(batch, "val")
        self.log_means({"loss": losses.total, "simple": losses.simple, "vlb": losses.vlb})

    def losses(self, batch: Batch, purpose: Purpose) -> tuple[Losses, Tensor, Tensor]:
        """Losses, timesteps t (B,) and holes (B,1,H,W); all draws are keyed by (seed, purpose, position)."""
        draws = batch.get("draws") or draw_batch(batch, self.draws(purpose, with_holes="hole" not in batch))
        t = self.timestep_sampler.draw(draws["times"], training=purpose == "train")
        hole = choose_holes(batch, draws, self.process)
        x0, regions = encode_images(
            batch, hole, self.model.autoencoder, process=self.process, grid=self.grid, fill=self.fill, cache=self.cache
        )
        dropout = self.prompt_dropout if purpose == "train" else 0.0
        prompts = encode_prompts(batch, self.model, seed=self.seed, dropout=dropout, cache=self.cache)
        if self.dropout_keys is not None and self.training:
            self.dropout_keys.set(self.seed, batch["position"].tolist(), device=x0.device)
        if self.distillation is not None and purpose == "train":
            assert regions is not None
            return self._distilled(batch, x0, draws["noise"].to(x0), t, regions), t, hole
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
        output = self.network(x, timestep=time_input(now.timesteps, x), index=now.index, **prompts).sample
        return self.loss(output, x0=x0, x=x, eps=eps, now=now, previous=previous, prediction=self.model.prediction)

    def _distilled(self, batch: Batch, x0: Tensor, eps: Tensor, t: Tensor, regions: NoiseRegions) -> DistillationLosses:
        """Losses of `distillation`; `eps`: noise of the sampler's first level."""
        assert self.distillation is not None
        assert self.critic is not None
        return self.distillation.losses(
            self.critic,
            x0,
            eps,
            t,
            regions,
            Views.draw(batch["position"].tolist(), self.seed, x0),
            process=self.sampling_process,
            denoiser=self.denoiser([""] * len(x0)),
            denoising=lambda x0, eps, t, regions: self.compute_losses(x0, eps, t, regions, {}).total,
        )

    def weight_groups(self) -> list[dict[str, object]]:
        """As the parent; the critic of `distillation` has its own learning rate."""
        if self.distillation is None:
            return super().weight_groups()
        network, critic = (
            [weight for name, weight in self.trained.items() if name.startswith("critic.") == of_critic]
            for of_critic in (False, True)
        )
        rate = self.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
        return [{"params": network}, {"params": critic, "lr": self.distillation.critic_rate * rate}]

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


def _with_adapter(
    network: RegionAwareNetwork, lora: LoRA | None, adapter: str | None, *, base_hash: str, seed: int
) -> nn.Module:
    """The network with its adapter, or as a whole; only trained weights require a gradient."""
    if adapter is not None:
        return load_adapter(network, located(resolve(adapter)[0]), base_hash=base_hash, trained=True)
    if lora is not None:
        return inject(network, lora, seed=seed)
    return network.requires_grad_(True)


def _inherited(module: Diffusion) -> Preferred:
    """Preferred settings of the adapter that is trained further, otherwise those of the base in a local folder."""
    start = module.base if module.adapter is None else resolve(module.adapter)[0]
    if start is None:
        return NOTHING
    return inherited_sampling(located(start), process=module.process.kind, size=(module.image_size, module.image_size))


def _warn_unused(model: LoadedModel, *, captioned: bool, cached: bool) -> None:
    """Warn about captions or a cache that the model does not use, and about missing captions."""
    if cached and model.autoencoder is IDENTITY and not model.takes_text:
        rank_zero_warn(f"{model.source} has no autoencoder and takes no text: data.cache has no effect")
    if captioned and not model.takes_text:
        rank_zero_warn(f"{model.source} takes no text: the captions are unused")
    if model.takes_text and not captioned:
        rank_zero_warn(f"{model.source} takes text; without data.captions it is trained on the empty prompt")


def _add_curves(curves: Curves, losses: Losses, t: Tensor, hole: Tensor, *, steps: int) -> None:
    """Add the values of a batch to the training curves; the squared errors also by ranges of timesteps."""
    curves.add("train/loss", losses.total)
    curves.add("train/simple", losses.simple)
    curves.add("train/vlb", losses.vlb)
    curves.add("train/hole_fraction", hole.mean((1, 2, 3)))
    for name, inside in timestep_buckets(t, steps).items():
        curves.add(f"train/simple_{name}", losses.simple, where=inside)


def timestep_buckets(t: Tensor, steps: int) -> dict[str, Tensor]:
    """For each range of timesteps out of `steps`, by name, which of t (B,) lie in it: (B,) boolean."""
    bucket = t * BUCKETS // steps
    edges = [-(-number * steps // BUCKETS) for number in range(BUCKETS + 1)]  # rounded up
    return {f"t{edges[number]}-{edges[number + 1] - 1}": bucket == number for number in range(BUCKETS)}
