"""PnP-Flow: Plug-and-Play Image Restoration with Flow Matching (Martin et al., ICLR 2025, arXiv 2410.02423).

Improves one clean image x, without a reverse path. At each level, downwards, x takes a gradient step on the known pixels. N draws
of noise are added and denoised, and the estimates averaged. A gradient step follows the last level:

    z = x + rate_t known (y - x),    x = (1/N) sum_j D(a_t z + s_t n_j),    rate_t = rate kappa_t^fade, kappa = s / (a + s)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel, per_image
from rad.diffusion.step import noised
from rad.methods.guidance import Space, data_gradient, flow_time, polyak_step, squared_norm
from rad.sampling.method import CustomSampler, setting
from rad.sampling.state import Cost, RunContext
from rad.sampling.task import Task


@dataclass(frozen=True)
class PnPFlow(CustomSampler):
    """A point estimate: more averaging gives less variation. With rate = 1 known pixels are y at each level.

    The official code averages over as many draws as its batch has images; its rates are 0.1, and 0.8 to 1.5 by task. In decoded
    pixels `rate` is a fraction of the step that would remove the residual of a linear decoder; no step is longer than the
    gradient.
    """

    paper = "Martin et al. 2025, arXiv 2410.02423"
    preset_steps = 50
    uses_eta = False

    rate: float = setting(1.0, "gradient step, as a fraction of the residual; above 1 it overshoots", low=0, high=2)
    fade: float = setting(0.0, "power of kappa in the gradient step; 0: equal at all levels, 0.5 and 1 fade", low=0)
    draws: int = setting(5, "N, draws of noise at each level, 1 NFE each", low=1)
    space: Space = setting("latent", 'where to compare known values: in the model\'s "latent", or decoded "pixels"')

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(self.draws * (len(timesteps) - 1))

    def run(self, run: RunContext) -> Tensor:
        levels = run.timesteps[:-1]
        x = (1 - run.task.hole) * run.task.known
        for t in levels:
            level = run.level(t)
            z, x = self.nearer(run.task, x, level), torch.zeros_like(x)
            for _ in range(self.draws):
                x = x + run.denoiser.denoise(noised(z, level, noise=run.randn()), level).x0 / self.draws
        return self.nearer(run.task, x, run.level(run.timesteps[-1]))

    def nearer(self, task: Task, x: Tensor, level: NoiseLevel) -> Tensor:
        """x (B,C,H,W) after the gradient step of `level`."""
        change, difference = data_gradient(task, x, self.space)
        rate = self.rate * level.spread(flow_time(level).pow(self.fade).to(x.dtype))
        return x + rate * per_image(polyak_step(change, squared_norm(difference)).clamp(max=1)) * change
