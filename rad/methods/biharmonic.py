"""Biharmonic inpainting: the smoothest fill that continues values and slopes at the border of the hole.

Damelin, Hoang 2018, On Surface Completion and Image Inpainting by Biharmonic Functions; scikit-image's implementation.
A floor without a model. Hook: a loop of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.sampling.method import CustomSampler
from rad.sampling.state import Cost, RunContext


@dataclass(frozen=True)
class Biharmonic(CustomSampler):
    """Any pixel whose hole value is above 0 is unknown to it. Where nothing is known the fill is mid-grey.

    Pixels are filled; for a latent model they are encoded then.
    """

    paper = "Damelin, Hoang 2018"
    preset_steps = 1
    weights = "none"
    uses_eta = False
    uses_spacing = False

    def plan(self, times: list[float]) -> list[float]:
        return [CLEAN]

    def cost(self, times: list[float]) -> Cost:
        return Cost(0)

    def run(self, run: RunContext) -> Tensor:
        from skimage.restoration import inpaint_biharmonic

        task, filled = run.task, []
        for known, hole in zip(task.image.double().cpu(), task.image_hole[:, 0].cpu() > 0, strict=True):
            if bool(hole.all()):
                filled.append(torch.zeros_like(known))
                continue
            smooth = inpaint_biharmonic(known.numpy(), hole.numpy(), channel_axis=0)
            filled.append(torch.from_numpy(smooth).clamp(-1, 1))
        return torch.lerp(task.known, task.autoencoder.encode(torch.stack(filled).to(task.known)), task.hole)
