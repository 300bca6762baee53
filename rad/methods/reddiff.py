"""RED-diff: A Variational Perspective on Solving Inverse Problems with Diffusion Models (Mardani et al. 2023, arXiv 2305.04391).

Optimises one image mu, with a data term and the denoiser as a regulariser, without a gradient through it. At each level,
downwards, x_t = a mu + s n, e = (x_t - a D(x_t)) / s, and mu takes a step of Adam along

    v known (mu - y) / d + w (s / a) (e - n) / d,    d values per image.

In decoded pixels, d' values, the first term is v J^T known (Dec(mu) - y) / d', with the decoder's Jacobian J. The mean of
(s / a) (e - n) over n is s^2 / a times the mean negative score at x_t.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.step import noised
from rad.methods.guidance import Space, data_gradient, predicted_noise
from rad.sampling.method import CustomSampler, setting
from rad.sampling.state import Cost, RunContext
from rad.sampling.task import Task


@dataclass(frozen=True)
class REDDiff(CustomSampler):
    """Defaults follow the paper; `fast()` follows the official script, which differs. v = 1, since only w / v matters.

    A point estimate: seeds differ by the optimiser's noise, not by the posterior. Differences from the official code: both terms
    are sums over the image divided by d, and levels are the sampler's (official: strides from below). As (s / a) (e - n) is
    mu - D(x_t), it stays bounded for tiny a. The hole starts at 0, also for latents, where 0 is not grey.
    """

    paper = "Mardani et al. 2023, arXiv 2305.04391"
    preset_steps = 1000
    uses_eta = False

    rate: float = setting(0.1, "learning rate of Adam, for values in [-1,1]", low=0)
    weight: float = setting(0.25, "weight w of the regulariser, relative to the data term", low=0)
    beta1: float = setting(0.9, "Adam's decay of the gradient's mean", low=0, high=0.999999)
    beta2: float = setting(0.99, "Adam's decay of the squared gradient's mean", low=0, high=0.999999)
    weighting: Literal["linear", "const"] = setting(
        "linear", "of the regulariser: s / a, or 1 as in the DInG paper for flows"
    )
    space: Space = setting("latent", "where to compare known values: latent, or pixels, through the decoder")

    @classmethod
    def fast(cls) -> "REDDiff":
        """For 100 steps."""
        return cls(rate=0.25)

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(len(timesteps) - 1)

    def run(self, run: RunContext) -> Tensor:
        task, levels = run.task, run.timesteps[:-1]
        mu = (1 - task.hole) * task.known
        adam = torch.optim.Adam([mu], lr=self.rate, betas=(self.beta1, self.beta2))
        for t in levels:
            level, noise = run.level(t), run.randn()
            x = noised(mu, level, noise=noise)
            mu.grad = self.gradient(task, mu, x, run.denoiser.denoise(x, level).x0, level, noise=noise)
            adam.step()
        return mu

    def gradient(self, task: Task, mu: Tensor, x: Tensor, x0: Tensor, level: NoiseLevel, *, noise: Tensor) -> Tensor:
        """Gradient of the loss at x = a mu + s noise with the estimate x0; all (B,C,H,W)."""
        regulariser = predicted_noise(x, x0, level) - noise
        if self.weighting == "linear":
            regulariser = level.spread((level.sigma / level.alpha).to(x.dtype)) * regulariser
        change, difference = data_gradient(task, mu, self.space)
        return (self.weight * regulariser - mu[0].numel() / difference[0].numel() * change) / mu[0].numel()
