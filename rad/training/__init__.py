"""Training: LightningModules and the callbacks that the configurations name.

Example:
    trainer = Trainer(max_steps=1000, callbacks=[EMA(), Checkpoint()], use_distributed_sampler=False)
    trainer.fit(Diffusion(base="checkpoints/base-nature32", lora=LoRA(rank=16)), ImageDataModule("photos/", size=32))
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.training.autoencoder import AutoencoderTraining
    from rad.training.checkpoint import Checkpoint
    from rad.training.diffusion import Diffusion
    from rad.training.distillation import Distillation
    from rad.training.ema import EMA
    from rad.training.execution import Execution
    from rad.training.guards import FiniteGuard, StopOnSignal
    from rad.training.inpainting import InpaintingMetrics
    from rad.training.panel import Panel, Throughput
    from rad.training.posthoc.power_ema import PowerEMA
    from rad.training.resume import WholeCheckpointIO
    from rad.training.schedules import Schedule
    from rad.training.settings import Scratch, TrainingLoss, TrainingProcess
    from rad.training.timesteps import TimestepDensity

__all__ = [
    "EMA",
    "AutoencoderTraining",
    "Checkpoint",
    "Diffusion",
    "Distillation",
    "Execution",
    "FiniteGuard",
    "InpaintingMetrics",
    "Panel",
    "PowerEMA",
    "Schedule",
    "Scratch",
    "StopOnSignal",
    "Throughput",
    "TimestepDensity",
    "TrainingLoss",
    "TrainingProcess",
    "WholeCheckpointIO",
]

__getattr__ = lazy_names(
    __name__,
    {
        "autoencoder": "AutoencoderTraining",
        "checkpoint": "Checkpoint",
        "diffusion": "Diffusion",
        "distillation": "Distillation",
        "ema": "EMA",
        "guards": "FiniteGuard StopOnSignal",
        "inpainting": "InpaintingMetrics",
        "panel": "Panel Throughput",
        "posthoc.power_ema": "PowerEMA",
        "resume": "WholeCheckpointIO",
        "schedules": "Schedule",
        "execution": "Execution",
        "settings": "Scratch TrainingLoss TrainingProcess",
        "timesteps": "TimestepDensity",
    },
)
