"""RED-diff. Mardani et al., A Variational Perspective on Solving Inverse Problems with Diffusion Models, 2023, arXiv 2305.04391.

One image mu is optimised, with a data term and the denoiser as a regulariser that is not differentiated. At each level,
downwards, x_t = a mu + s n, e = (x_t - a D(x_t)) / s, and with d numbers in an image mu takes a step of Adam along

    v known (mu - y) / d + w (s / a) (e - n) / d.

Where y is compared with the decoded mu, of d' numbers, the first term is v J^T known (Dec(mu) - y) / d', J that of the decoder.
Over n the mean of (s / a) (e - n) is s^2 / a times the mean negative score at x_t; for Gaussian data, the score at a mu.
Hook: a loop of its own.
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
    """The settings of the paper; `fast()` are those of the official script, which disagree. v = 1: only w / v matters.

    A point estimate: what differs from seed to seed is noise of the optimiser, not of the posterior. Both terms are sums over
    all numbers of the image divided by d, and the levels are the sampler's; the official code strides them from below. As
    (s / a) (e - n) is mu - D(x_t), it is bounded where a is tiny. The hole starts at 0, also of latents, where that is not grey.
    """

    paper = "Mardani et al. 2023, arXiv 2305.04391"
    preset_steps = 1000
    uses_eta = False

    rate: float = setting(0.1, "learning rate of Adam, for values in [-1,1]", low=0)
    weight: float = setting(0.25, "weight w of the regulariser, over that of the data", low=0)
    beta1: float = setting(0.9, "Adam's decay of the mean of the gradient", low=0, high=0.999999)
    beta2: float = setting(0.99, "Adam's decay of the mean of its square", low=0, high=0.999999)
    weighting: Literal["linear", "const"] = setting("linear", "of the regulariser: s / a, or 1 as ding's for flows")
    space: Space = setting("latent", "where known values are compared: latent, or pixels, through the decoder")

    @classmethod
    def fast(cls) -> "REDDiff":
        """For 100 steps."""
        return cls(rate=0.25)

    def cost(self, times: list[float]) -> Cost:
        return Cost(len(times) - 1)

    def run(self, run: RunContext) -> Tensor:
        task, levels = run.task, run.times[:-1]
        mu = (1 - task.hole) * task.known
        mean, square = torch.zeros_like(mu), torch.zeros_like(mu)
        for number, t in enumerate(levels, start=1):
            level, noise = run.level(t), run.draw()
            x = noised(mu, level, noise=noise)
            gradient = self.gradient(task, mu, x, run.denoiser.denoise(x, level).x0, level, noise=noise)
            mean = torch.lerp(gradient, mean, self.beta1)
            square = torch.lerp(gradient.square(), square, self.beta2)
            unbiased = (square / (1 - self.beta2**number)).sqrt() + 1e-8
            mu = mu - self.rate * mean / (1 - self.beta1**number) / unbiased
            run.report(number, len(levels))
        return mu

    def gradient(self, task: Task, mu: Tensor, x: Tensor, x0: Tensor, level: NoiseLevel, *, noise: Tensor) -> Tensor:
        """Of the loss, at x = a mu + s noise with the estimate x0; all (B,C,H,W)."""
        regulariser = predicted_noise(x, x0, level) - noise
        if self.weighting == "linear":
            regulariser = level.spread((level.sigma / level.alpha).to(x.dtype)) * regulariser
        pulled, missing = data_gradient(task, mu, self.space)
        return (self.weight * regulariser - mu[0].numel() / missing[0].numel() * pulled) / mu[0].numel()
