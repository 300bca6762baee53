"""Settings of `Diffusion` in groups, with their behaviour: noise process, loss, a network from scratch, execution, schedule."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from rad.data.draws import draw_timesteps as draw_timesteps  # for `TrainingProcess.timesteps`
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.losses import Losses, LossRegion, TimestepWeight, VlbBoundary, hybrid_loss
from rad.diffusion.processes import Flow, PerPixel, Process, TimeOrigin, get_betas, region_aware
from rad.diffusion.step import Prediction
from rad.models.load import new_model
from rad.models.loaded_model import LoadedModel, RegionAwareNetwork
from rad.networks.unet import EmbeddingKind

ProcessKind = Literal["region_aware", "tdpaint", "uniform"]
TrainedPrediction = Literal["epsilon", "v_prediction"]
BaseDtype = Literal["float32", "bfloat16"]
MatmulPrecision = Literal["highest", "high", "medium"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
ScheduleName = Literal["constant", "linear", "cosine", "warmup_stable_decay"]


@dataclass(frozen=True)
class TrainingProcess:
    """Noise process of the training, and the samples drawn from it.

    Args:
        kind: "region_aware" (RAD), "tdpaint" (TD-Paint), or "uniform" (a base model: one noise level per image). TD-Paint's paper
            uses loss.region "moving" and loss.vlb_weight 1.
        time_origin: timesteps that the network reads, see `rad.diffusion.processes.RegionAware`.
        phase2: fraction of samples from RAD's second phase, 0 to 1. Sampling never visits that phase. Official: 0.5.
        unconditional_share: fraction of samples whose hole is the whole image, 0 to 1. If all weights are trained, they then
            also serve as the base model of the zero-shot methods.
    """

    kind: ProcessKind = "region_aware"
    time_origin: TimeOrigin = "adm"
    phase2: float = 0.5
    unconditional_share: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("process.kind", self.kind, ProcessKind)
        _require_choice("process.time_origin", self.time_origin, TimeOrigin)
        for name in ("phase2", "unconditional_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"process.{name} is {getattr(self, name)}; allowed are fractions from 0 to 1")
        if self.unconditional_share > 0 and not self.has_holes:
            raise ValueError("process.unconditional_share needs holes, and process.kind 'uniform' has none: remove it")
        if self.unconditional_share > 0 and self.time_origin == "official":
            raise ValueError(
                "process.time_origin 'official' counts timesteps from 1, and a base model from 0: "
                "use time_origin 'adm', or remove unconditional_share"
            )

    @property
    def has_holes(self) -> bool:
        """Whether noise levels depend on a hole; if not, a base model is trained."""
        return self.kind != "uniform"

    @property
    def method(self) -> str:
        """Name of the method that samples from the trained model; for a base model the simplest that fills holes."""
        return {"region_aware": "rad", "tdpaint": "tdpaint", "uniform": "replacement"}[self.kind]

    def build(self, base_process: Process) -> Process:
        """Training process for a model with `base_process`. Raises ValueError if they do not fit."""
        if isinstance(base_process, Flow) and self.time_origin != "adm":
            raise ValueError(
                f"process.time_origin is {self.time_origin!r}, but a flow's timestep is its sigma: remove it"
            )
        if self.kind == "tdpaint":
            return PerPixel(get_betas(base_process), time_origin=self.time_origin, known=0)
        return self.build_sampling(base_process)

    def build_sampling(self, base_process: Process) -> Process:
        """Sampling process for a model with `base_process`. Raises ValueError if they do not fit."""
        if self.kind == "tdpaint":
            return PerPixel(get_betas(base_process), time_origin=self.time_origin)
        return region_aware(base_process, time_origin=self.time_origin) if self.has_holes else base_process

    def timesteps(self, draws: Tensor, process: Process) -> Tensor:
        """t (B,) int64, uniform over the levels of `process`; for RAD a fraction `phase2` lies in the second phase.

        Args:
            draws: (B,2) float64 in [0,1), see `draw_timesteps`; t is on their device.
        """
        levels = process.sampled_steps
        t = (draws[:, 0] * levels).long().clamp(max=levels - 1)
        if self.kind == "region_aware":
            t = t + levels * (draws[:, 1] < self.phase2)
        return t


@dataclass(frozen=True)
class TrainingLoss:
    """Loss of the training, see `rad.diffusion.losses.hybrid_loss`.

    Args:
        vlb_weight: weight of the variational term, at least 0. Official RAD: 1e-3; iDDPM: 1. Latent models have no such term.
        vlb_boundary: "nll", or "zero" as in the official code.
        region: pixels that the squared error averages over: "all" (official), "noisy" or "moving".
        weight_limit: upper limit of the squared error's weight at high noise, at least 1. Official: 1, no weight.
        timestep_weight: weight of the squared error by noise level: "none", "min_snr", "truncated_snr" or "p2".
    """

    vlb_weight: float = 1e-3
    vlb_boundary: VlbBoundary = "nll"
    region: LossRegion = "all"
    weight_limit: float = 1.0
    timestep_weight: TimestepWeight = "none"

    def __post_init__(self) -> None:
        _require_choice("loss.vlb_boundary", self.vlb_boundary, VlbBoundary)
        _require_choice("loss.region", self.region, LossRegion)
        _require_choice("loss.timestep_weight", self.timestep_weight, TimestepWeight)
        if not (0 <= self.vlb_weight < math.inf and 1 <= self.weight_limit < math.inf):
            raise ValueError(
                f"loss.vlb_weight is {self.vlb_weight} and loss.weight_limit {self.weight_limit}; allowed are >= 0 and >= 1"
            )
        if self.timestep_weight != "none" and self.weight_limit != 1:
            raise ValueError(
                f"loss.timestep_weight is {self.timestep_weight!r} and loss.weight_limit {self.weight_limit}: remove one of them"
            )

    def require_fit(self, prediction: Prediction) -> None:
        """Raise ValueError if this loss is not defined for networks with this prediction."""
        if self.weight_limit != 1 and prediction != "epsilon":
            raise ValueError(
                f"loss.weight_limit is {self.weight_limit}; it is for networks that predict 'epsilon', and this one predicts "
                f"{prediction!r}: remove it"
            )

    def __call__(
        self,
        output: Tensor,
        *,
        x0: Tensor,
        x: Tensor,
        eps: Tensor,
        now: NoiseLevel,
        previous: NoiseLevel,
        prediction: Prediction,
    ) -> Losses:
        """Losses of each image; arguments as of `hybrid_loss`."""
        return hybrid_loss(
            output,
            x0=x0,
            x=x,
            eps=eps,
            now=now,
            previous=previous,
            prediction=prediction,
            vlb_weight=self.vlb_weight,
            vlb_boundary=self.vlb_boundary,
            loss_region=self.region,
            weight_limit=self.weight_limit,
            timestep_weight=self.timestep_weight,
        )


@dataclass(frozen=True)
class Scratch:
    """A network to train from scratch.

    Args:
        unet: fields of diffusers' UNet2DModel, or of UNet2DConditionModel with `text_encoder`.
        prediction: output of the network: "epsilon", or "v_prediction" (v = a e - s x0, Salimans & Ho 2022, arXiv 2202.00512).
            The latter's estimate of x0 stays accurate at high noise.
        autoencoder: folder of a diffusers AutoencoderKL, whose latents are the data; null: pixels.
        text_encoder: folder with text_encoder/ (CLIP) and tokenizer/, both frozen; needs `autoencoder`.
    """

    unet: dict[str, Any]
    prediction: TrainedPrediction = "epsilon"
    autoencoder: str | None = None
    text_encoder: str | None = None

    def __post_init__(self) -> None:
        _require_choice("scratch.prediction", self.prediction, TrainedPrediction)
        if self.text_encoder is not None and self.autoencoder is None:
            raise ValueError("scratch.text_encoder is for models on latents: give scratch.autoencoder, too")

    def build(self, *, image_size: int, seed: int) -> LoadedModel:
        """The new network. Raises as `rad.models.new_model`."""
        return new_model(
            self.unet,
            autoencoder=self.autoencoder,
            text_encoder=self.text_encoder,
            prediction=self.prediction,
            image_size=image_size,
            seed=seed,
        )


@dataclass(frozen=True)
class Execution:
    """How the network runs; results stay the same up to rounding.

    Args:
        embedding: per-pixel time embedding: "factorised", or "dense" (the reference, slower).
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        channels_last: memory format of the network, with its adapter, and of its input.
        base_dtype: of the frozen convolutions and linear layers of a base model. "bfloat16" halves their memory, and the network
            then computes in bfloat16; norms and trained weights stay in float32. It needs an adapter.
        compile: run noising, network and loss through torch.compile. true is "default"; the others are its modes.
        dynamic: whether torch.compile keeps sizes symbolic; null: it decides at the second size.
        matmul_precision: of float32 matrix products during the training, see torch.set_float32_matmul_precision. "high" is TF32.
            null: as PyTorch is set.
        shard_optimizer: each process keeps the optimiser state of a part of the weights (ZeRO stage 1). For large models that
            are trained as a whole; AdamW's 8 bytes a weight are divided by the number of processes.
    """

    embedding: EmbeddingKind = "factorised"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    base_dtype: BaseDtype = "float32"
    compile: bool | CompileMode = False
    dynamic: bool | None = None
    matmul_precision: MatmulPrecision | None = None
    shard_optimizer: bool = False

    def __post_init__(self) -> None:
        _require_choice("execution.embedding", self.embedding, EmbeddingKind)
        _require_choice("execution.base_dtype", self.base_dtype, BaseDtype)
        if self.matmul_precision is not None:
            _require_choice("execution.matmul_precision", self.matmul_precision, MatmulPrecision)
        if not isinstance(self.compile, bool):
            _require_choice("execution.compile", self.compile, CompileMode)
        if self.dynamic is not None and self.compile is False:
            raise ValueError(
                f"execution.dynamic is {self.dynamic} and has no effect without execution.compile: remove it"
            )

    def prepare(self, model: LoadedModel) -> RegionAwareNetwork:
        """Patch the network of `model` for per-pixel timesteps, and set it up for training."""
        network = model.region_aware_network(embedding=self.embedding)
        for layer in network.modules():  # the draws of a pretrained model's dropout would not be keyed
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        if self.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        return network

    def finish(self, trained: nn.Module, network: nn.Module) -> None:
        """Set the memory format and the dtype of `network`, after its adapter has been added; `trained` holds both."""
        if self.channels_last:
            nn.utils.convert_conv2d_weight_memory_format(trained, torch.channels_last)
        if self.base_dtype == "float32":
            return
        for layer in trained.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                for weight in layer.parameters(recurse=False):
                    if not weight.requires_grad:
                        weight.data = weight.data.to(torch.bfloat16)
        network.forward = _in_bfloat16(network.forward)

    def compiled(self, function: Callable[..., Losses]) -> Callable[..., Losses]:
        """`function` through torch.compile, as these settings say."""
        if self.compile is False:
            return function
        mode = "default" if self.compile is True else self.compile
        return torch.compile(function, mode=mode, dynamic=self.dynamic)


class MatmulPrecisionOfRun(Callback):
    """Sets torch.set_float32_matmul_precision while the Trainer runs, and then the precision of before."""

    def __init__(self, precision: MatmulPrecision) -> None:
        self.precision: MatmulPrecision = precision
        self._before: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._before is None:
            self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        before, self._before = self._before, None
        if before is not None:
            torch.set_float32_matmul_precision(before)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


def _in_bfloat16(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` in autocast to bfloat16, on the device of its first argument, a tensor."""

    @functools.wraps(forward)
    def inner(*args: Any, **kwargs: Any) -> Any:
        first: Tensor = args[0] if args else next(iter(kwargs.values()))
        with torch.autocast(first.device.type, torch.bfloat16):
            return forward(*args, **kwargs)

    return inner


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a run of T = trainer.max_steps optimiser steps, as a factor of the optimiser's rate.

    A linear warm-up of W steps, step / W from 0, is followed by one of

        constant              1
        linear                1 - p                     p = (step - W) / (T - W)
        cosine                (1 + cos(pi p)) / 2
        warmup_stable_decay   1, then (1 + cos(pi q)) / 2 over the last `decay_share` of T, q from 0 to 1

    Args:
        name: "constant", "linear", "cosine" (of diffusers.optimization.get_scheduler), or "warmup_stable_decay".
        warmup_steps: W, at least 0.
        decay_share: fraction of T in which "warmup_stable_decay" falls to zero, above 0 to 1.
    """

    name: ScheduleName = "constant"
    warmup_steps: int = 0
    decay_share: float = 0.1

    def __post_init__(self) -> None:
        _require_choice("schedule.name", self.name, ScheduleName)
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}; allowed are >= 0")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"schedule.decay_share is {self.decay_share}; allowed are fractions above 0, up to 1")

    def build(self, optimizer: Optimizer, total: int) -> LRScheduler:
        """The scheduler of a run of `total` optimiser steps, stepped after each of them."""
        from diffusers.optimization import get_scheduler

        if self.name != "constant" and total <= 0:
            raise ValueError(
                f"schedule.name is {self.name!r}, which needs the length of the run: set trainer.max_steps"
            )
        if self.name == "warmup_stable_decay":
            return LambdaLR(optimizer, lambda step: self._stable_decay(step, total))
        name = "constant_with_warmup" if self.name == "constant" else self.name
        return get_scheduler(name, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=total)

    def _stable_decay(self, step: int, total: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        start = max(self.warmup_steps, round(total * (1 - self.decay_share)))
        progress = min(1.0, max(0, step - start) / max(1, total - start))
        return 0.5 * (1 + math.cos(math.pi * progress))


def _require_choice(name: str, value: str, kind: object) -> None:
    """Raise ValueError unless `value` is one of the Literal `kind`; jsonargparse does so for YAML, this for Python."""
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(get_args(kind))}")
