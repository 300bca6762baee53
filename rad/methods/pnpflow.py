"""PnP-Flow. Martin, Gagneux, Hagemann, Steidl, PnP-Flow: Plug-and-Play Image Restoration with Flow Matching, ICLR 2025,
arXiv 2410.02423.

One clean image x, no path: at each level, downwards, a gradient step on what is known, noise, and the denoiser, whose
estimates for N draws of noise are averaged,

    z = x + rate_t known (y - x),    x = (1/N) sum_j D(a_t z + s_t n_j),    rate_t = rate kappa_t^fade, kappa = s / (a + s)

and at the end a last gradient step. Hook: a loop of its own.
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
    """A point estimate: it varies the less the more is averaged. With rate = 1 known pixels are y at each level.

    The official code for several images averages over as many draws as its batch has images, and its rates are 0.1, and 0.8 to
    1.5 by task. In decoded pixels `rate` is a part of the way to where nothing would be lacking, were the decoder linear.
    """

    paper = "Martin et al. 2025, arXiv 2410.02423"
    preset_steps = 50
    uses_eta = False

    rate: float = setting(1.0, "gradient step, as part of what is lacking; above 1 it overshoots", low=0, high=2)
    fade: float = setting(0.0, "power of kappa in the gradient step; 0: the same at all levels, 0.5 and 1 fade", low=0)
    draws: int = setting(5, "N, draws of noise at each level, a network call each", low=1)
    space: Space = setting("latent", 'where the gradient compares: "latent" of the model, or decoded "pixels"')

    def cost(self, times: list[float]) -> Cost:
        return Cost(self.draws * (len(times) - 1))

    def run(self, run: RunContext) -> Tensor:
        levels = run.times[:-1]
        x = (1 - run.task.hole) * run.task.known
        for number, t in enumerate(levels, start=1):
            level = run.level(t)
            z, x = self.nearer(run.task, x, level), torch.zeros_like(x)
            for _ in range(self.draws):
                x = x + run.denoiser.denoise(noised(z, level, noise=run.draw()), level).x0 / self.draws
            run.report(number, len(levels))
        return self.nearer(run.task, x, run.level(run.times[-1]))

    def nearer(self, task: Task, x: Tensor, level: NoiseLevel) -> Tensor:
        """x (B,C,H,W) after the gradient step of `level`."""
        change, missing = data_gradient(task, x, self.space)
        rate = self.rate * level.spread(flow_time(level).pow(self.fade).to(x.dtype))
        return x + rate * per_image(polyak_step(change, squared_norm(missing)).clamp(max=1)) * change
