"""RePaint (Lugmayr et al. 2022, arXiv 2201.09865) by the scheduler of diffusers, on the same weights as ours.

`RePaintScheduler` reads every network output as noise ("epsilon") and has no setting for v-prediction, so the output is
converted first. Its mask is 1 on known pixels.
"""

from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.others.network import Estimator, epsilon


class RePaint:
    """RePaint with eta 1, as the paper's DDPM steps.

    Args:
        steps: noise levels; the paper has 250.
        jump_length, resamplings: j and r of the paper, 10 and 10.
    """

    def __init__(self, estimator: Estimator, *, steps: int = 250, jump_length: int = 10, resamplings: int = 10) -> None:
        from diffusers import RePaintScheduler

        betas = 1 - estimator.alphas_cumprod / torch.cat([torch.ones(1).double(), estimator.alphas_cumprod[:-1]])
        self.estimator = estimator
        self.scheduler = RePaintScheduler(len(betas), trained_betas=betas.float().numpy(), eta=1.0)
        self.scheduler.set_timesteps(steps, jump_length, resamplings)

    @property
    def calls(self) -> int:
        """Network calls of an image."""
        times = self.scheduler.timesteps.tolist()
        return 1 + sum(after < before for before, after in pairwise(times))

    def __call__(self, image: Tensor, hole: Tensor, generator: torch.Generator) -> Tensor:
        """The filled image (1,3,H,W) in [0,1]; hole (1,1,H,W), 1 = fill."""
        known, keep = 2 * image - 1, 1 - hole
        x = torch.randn(image.shape, generator=generator)
        before = len(self.estimator.alphas_cumprod)
        for t in self.scheduler.timesteps.tolist():
            if t < before:
                noise = epsilon(self.estimator, x, t)
                x = self.scheduler.step(noise, t, x, known, keep, generator=generator).prev_sample
            else:
                x = self.scheduler.undo_step(x, before, generator)
            before = t
        return (x + 1) / 2
