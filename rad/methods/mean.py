"""Mean fill: every hole pixel becomes the mean colour of the known ones. A floor: what a method must at least beat.

No network. Hook: a loop of its own.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.methods.guidance import known_mean
from rad.sampling.method import CustomSampler
from rad.sampling.state import Cost, RunContext


@dataclass(frozen=True)
class Mean(CustomSampler):
    """Where nothing is known the fill is mid-grey. Pixels are filled; for a latent model they are encoded then."""

    paper = "(floor)"
    preset_steps = 1
    weights = "none"
    uses_eta = False
    uses_spacing = False

    def plan(self, times: list[float]) -> list[float]:
        return [CLEAN]

    def cost(self, times: list[float]) -> Cost:
        return Cost(0)

    def run(self, run: RunContext) -> Tensor:
        task, hole = run.task, run.task.image_hole
        mean = known_mean(replace(task, known=task.image, hole=hole))
        return torch.lerp(task.known, task.autoencoder.encode(torch.where(hole > 0, mean, task.image)), task.hole)
