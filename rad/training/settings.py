"""Settings of `Diffusion` in groups, with behaviour and checks: noise process, loss, a network from scratch."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.losses import GAMMAS, Losses, LossRegion, TimestepWeight, VlbBoundary, hybrid_loss
from rad.diffusion.processes import Flow, PerPixel, Process, TimeOrigin, get_betas, region_aware
from rad.diffusion.step import Prediction
from rad.models.load import new_model
from rad.models.loaded_model import LoadedModel
from rad.models.lora import LoRA
from rad.networks.surroundings import surroundings
from rad.training.execution import Execution
from rad.training.schedules import require_choice
from rad.training.timesteps import UNIFORM, TimestepDensity, TimestepSampler

ProcessKind = Literal["region_aware", "tdpaint", "uniform"]
TrainedPrediction = Literal["epsilon", "v_prediction"]


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
        density: density of the timesteps within each phase.
        noise_offset: c >= 0. Adds c n to the training noise, with a normal number n for each image and channel (Guttenberg 2023,
            "Diffusion with Offset Noise", c = 0.1). The network then learns to change an image's mean colour. Clean pixels
            stay clean. Validation has no offset.
        surroundings: the network's output is relative to the known pixels around each hole, see `rad.networks.surroundings`. For
            all weights of pixel models with v-prediction. A base that was trained so stays so.
    """

    kind: ProcessKind = "region_aware"
    time_origin: TimeOrigin = "adm"
    phase2: float = 0.5
    unconditional_share: float = 0.0
    density: TimestepDensity = UNIFORM
    noise_offset: float = 0.0
    surroundings: bool = False

    def __post_init__(self) -> None:
        require_choice("process.kind", self.kind, ProcessKind)
        require_choice("process.time_origin", self.time_origin, TimeOrigin)
        for name in ("phase2", "unconditional_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"process.{name} is {getattr(self, name)}; allowed are fractions from 0 to 1")
        if not 0 <= self.noise_offset < math.inf:
            raise ValueError(f"process.noise_offset is {self.noise_offset}; allowed are values of at least 0")
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

    def timestep_sampler(self, process: Process) -> TimestepSampler:
        """Sampler of the `density` over the levels of `process`."""
        phases = 2 if self.kind == "region_aware" else 1
        uniform = partial(self.timesteps, process=process)
        return TimestepSampler(self.density, uniform, levels=process.sampled_steps, phases=phases, phase2=self.phase2)

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
        timestep_weight: weight of the squared error by noise level: "none", "min_snr", "truncated_snr", "p2", "debiased", "edm",
            or "surroundings", which is "edm" with the deviation of the known pixels around each pixel.
        gamma: parameter of "min_snr" and "p2", above 0; null: the paper's, 5 and 1.
    """

    vlb_weight: float = 1e-3
    vlb_boundary: VlbBoundary = "nll"
    region: LossRegion = "all"
    weight_limit: float = 1.0
    timestep_weight: TimestepWeight = "none"
    gamma: float | None = None

    def __post_init__(self) -> None:
        require_choice("loss.vlb_boundary", self.vlb_boundary, VlbBoundary)
        require_choice("loss.region", self.region, LossRegion)
        require_choice("loss.timestep_weight", self.timestep_weight, TimestepWeight)
        if not (0 <= self.vlb_weight < math.inf and 1 <= self.weight_limit < math.inf):
            raise ValueError(
                f"loss.vlb_weight is {self.vlb_weight} and loss.weight_limit {self.weight_limit}; allowed are >= 0 and >= 1"
            )
        if self.timestep_weight != "none" and self.weight_limit != 1:
            raise ValueError(
                f"loss.timestep_weight is {self.timestep_weight!r} and loss.weight_limit {self.weight_limit}: remove one of them"
            )
        if self.gamma is not None and self.timestep_weight not in GAMMAS:
            raise ValueError(
                f"loss.gamma is {self.gamma}, and loss.timestep_weight {self.timestep_weight!r} has none: remove it, or use "
                f"{' or '.join(GAMMAS)}"
            )
        if self.gamma is not None and not 0 < self.gamma < math.inf:
            raise ValueError(f"loss.gamma is {self.gamma}; allowed are values above 0, or null for the paper's")

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
        deviation = None
        if self.timestep_weight == "surroundings":
            deviation = surroundings(x, (now.sigma_map(x) == 0).expand(-1, 1, *x.shape[2:]))[1]
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
            gamma=self.gamma,
            deviation=deviation,
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
        require_choice("scratch.prediction", self.prediction, TrainedPrediction)
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


def require_consistent(
    *,
    base: str | None,
    adapter: str | None,
    scratch: Scratch | None,
    lora: LoRA | None,
    process: TrainingProcess,
    base_dtype: str,
    official: bool,
    prompt_dropout: float,
) -> None:
    """Raise ValueError for settings of `Diffusion` that contradict each other."""
    whole = lora is None and adapter is None
    for name, value in (("base", base), ("adapter", adapter)):
        if value is not None and not value.strip():
            raise ValueError(f"model.{name} is {value!r}, which names no folder: give one, or null for none")
    if not whole and not process.has_holes:
        raise ValueError(
            f"process.kind {process.kind!r} trains a base model, all of it: remove model.lora and model.adapter, or use "
            "'region_aware'"
        )
    if not whole and scratch is not None:
        raise ValueError(
            "model.lora and model.adapter are for a trained model.base: model.scratch is trained as a whole"
        )
    if official and whole:
        raise ValueError(
            "model.official trains an adapter: set model.lora or model.adapter, or model.official to false"
        )
    if lora is not None and adapter is not None:
        raise ValueError(f"model.adapter {adapter} has its own rank and layers: set model.lora to null")
    if whole and base_dtype != "float32":
        raise ValueError(
            f"execution.base_dtype is {base_dtype!r}, which is for frozen weights: set model.lora or "
            "model.adapter, or leave it at 'float32'"
        )
    if not 0 <= prompt_dropout <= 1:
        raise ValueError(f"model.prompt_dropout is {prompt_dropout}; allowed are fractions from 0 to 1")


def require_distillable(
    scratch: Scratch | None, process: TrainingProcess, execution: Execution, *, official: bool, has_scheduler: bool
) -> None:
    """Raise ValueError for settings of `Diffusion` that model.distillation does not support."""
    if scratch is not None or process.kind != "region_aware" or process.phase2 > 0 or official:
        raise ValueError(
            "model.distillation starts from a trained model.base, with process.kind 'region_aware' and process.phase2 0.0, and "
            "without model.official: change these, or set it to null"
        )
    if process.density != UNIFORM or process.noise_offset > 0:
        raise ValueError(
            "model.distillation trains the levels and the noise of its sampler: remove process.density and process.noise_offset"
        )
    if execution.shard_optimizer or has_scheduler:
        raise ValueError(
            "model.distillation has two learning rates: set execution.shard_optimizer to false, and model.schedule in place of "
            "model.lr_scheduler"
        )
    if execution.compile:
        raise ValueError("execution.compile has no effect on model.distillation: set it to false")
