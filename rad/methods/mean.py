"""Mean fill: each hole pixel becomes the mean colour of the known pixels. A baseline without a network."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.methods.guidance import known_mean
from rad.sampling.method import CustomSampler
from rad.sampling.state import Cost, RunContext


@dataclass(frozen=True)
class Mean(CustomSampler):
    """Without known pixels the fill is mid-grey. Latent models encode the result."""

    paper = "(baseline)"
    preset_steps = 1
    weights = "none"
    uses_eta = False
    uses_spacing = False

    def plan(self, timesteps: list[float]) -> list[float]:
        return [CLEAN]

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(0)

    def run(self, run: RunContext) -> Tensor:
        task, hole = run.task, run.task.image_hole
        mean = known_mean(replace(task, known=task.image, hole=hole))
        return torch.lerp(task.known, task.autoencoder.encode(torch.where(hole > 0, mean, task.image)), task.hole)
