"""Biharmonic inpainting: the smoothest fill that continues values and slopes across the hole's border. Uses no network.

On Surface Completion and Image Inpainting by Biharmonic Functions (Damelin, Hoang 2018), in scikit-image's implementation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.methods.mean import Mean
from rad.sampling.state import RunContext


@dataclass(frozen=True)
class Biharmonic(Mean):
    """Fills pixels with a hole value above 0; without known pixels the fill is mid-grey. Latent models encode the result."""

    paper = "Damelin, Hoang 2018"

    def run(self, run: RunContext) -> Tensor:
        from skimage.restoration import inpaint_biharmonic

        task, images = run.task, []
        for known, hole in zip(task.image.double().cpu(), task.image_hole[:, 0].cpu() > 0, strict=True):
            if bool(hole.all()):
                images.append(torch.zeros_like(known))
                continue
            smooth = inpaint_biharmonic(known.numpy(), hole.numpy(), channel_axis=0)
            images.append(torch.from_numpy(smooth).clamp(-1, 1))
        return torch.lerp(task.known, task.autoencoder.encode(torch.stack(images).to(task.known)), task.hole)
