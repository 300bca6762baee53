"""FLAIR: Solving Inverse Problems with FLAIR (Erbach et al. 2025, arXiv 2506.02680).

Optimises one latent mu for a flow x_t = (1 - t) mu + t n, without a gradient through the network. At each t, downwards, with the
network's velocity v = e - x0 at x_t:

    n  <- alpha e + sqrt(1 - alpha^2) n',  alpha = 1 - t, fresh n'         (trajectory adjustment; e of the previous level)
    mu <- mu - lam (v - (n - mu))                                          (flow matching term)
    mu <- mu + 2 rate lam J^T known (y - Dec(mu)),  until the data fit     (hard data consistency)

lam = regularizer r(t), with r from the model's measured error at t (calibration). As x_t = (1 - t) x0 + t e, the flow matching
term equals (mu - x0) / t. For other levels, t is s / (a + s).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, NoiseLevel, per_image
from rad.diffusion.processes import Invertible
from rad.diffusion.step import noised
from rad.methods.guidance import Space, data_gradient, flow_time, polyak_step, predicted_noise, squared_norm
from rad.sampling.method import CustomSampler, setting
from rad.sampling.state import Cost, RunContext
from rad.sampling.task import Task

SD3 = (
    (0.0, 0.2, 0.5, 0.65, 0.75, 0.85, 0.9, 0.94, 0.96, 0.98, 0.99, 1.0),
    (0.0, 0.3, 0.85, 1.07, 1.14, 1.11, 0.99, 0.84, 0.72, 0.56, 0.38, 0.21),
)
"""t and r(t) = 1 / error(t) - 1 / error(0), in units of the mean 1 / error: the authors' measurement of SD3, within 0.03."""


@dataclass(frozen=True)
class FLAIR(CustomSampler):
    """A point estimate, for flow models. Defaults are the official inpainting configuration's, for SD3 with guidance 2.

    Levels are even in t between 1 and `lowest`, without the ends. The calibration belongs to SD3; for another model it is
    inferred. Differences from the official code: the calibration is linear between 12 points, not the nearest of 100; an image
    stops its data steps alone; no data step goes beyond a residual of 0.
    """

    paper = "Erbach et al. 2025, arXiv 2506.02680"
    preset_steps = 50
    uses_eta = False
    uses_spacing = False  # it has its own

    regularizer: float = setting(0.5, "factor of lam; official", low=0)
    calibration: Literal["sd3", "constant"] = setting("sd3", "r(t): from SD3's measured error, or 1 at every level")
    trajectory: float = setting(1.0, "factor on alpha = 1 - t, no unit; 0: fresh noise at each level", low=0, high=1)
    lowest: float = setting(0.18, "end of the levels, t = s / (a + s); official", low=0, high=0.99)
    rate: float = setting(0.1, "learning rate of a data step; official for inpainting", low=0)
    iterations: int = setting(15, "most data steps at each level; official", low=0)
    tolerance: float = setting(0.01, "root mean square misfit that ends the data steps, for values in [-1,1]", low=0)
    space: Space = setting("pixels", "where to compare known values: latent, or pixels, through the decoder")

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(len(timesteps) - 1)

    def run(self, run: RunContext) -> Tensor:
        task = run.task
        mu, e = task.autoencoder.encode(task.image), run.randn()
        for level in self.levels(run):
            t = flow_time(level)
            alpha = level.spread((self.trajectory * (1 - t)).to(mu.dtype))
            x = noised(mu, level, noise=alpha * e + (1 - alpha.square()).sqrt() * run.randn())
            x0 = run.denoiser.denoise(x, level).x0
            e, lam = predicted_noise(x, x0, level), self.strength(t)
            mu = torch.lerp(mu, x0, level.spread((lam / t).to(mu.dtype)))
            mu = self.consistent(task, mu, 2 * self.rate * lam[:, 0].to(mu.dtype))
        return mu

    def levels(self, run: RunContext) -> list[NoiseLevel]:
        """As many levels as the sampler has, the nearest to t = 1 - (1 - lowest) i / (n + 1), i = 1 to n."""
        count, process = len(run.timesteps) - 1, run.process
        assert isinstance(process, Invertible)
        t = torch.linspace(1, self.lowest, count + 2, dtype=torch.float64, device="cpu")[1:-1]
        return [
            run.level(time) for time in process.time_of(torch.logit(1 - t)).round().long().clamp(min=CLEAN + 1).tolist()
        ]

    def strength(self, t: Tensor) -> Tensor:
        """lam at t (B,K), of the same shape."""
        if self.calibration == "constant":
            return torch.full_like(t, self.regularizer)
        times, values = (torch.tensor(row, dtype=t.dtype, device=t.device) for row in SD3)
        above = torch.searchsorted(times, t.contiguous()).clamp(1, len(times) - 1)
        share = (t - times[above - 1]) / (times[above] - times[above - 1])
        return self.regularizer * torch.lerp(values[above - 1], values[above], share)

    def consistent(self, task: Task, mu: Tensor, rate: Tensor) -> Tensor:
        """mu (B,C,H,W) after the data steps, with `rate` (B,) per unit of J^T r."""
        hole = task.hole if self.space == "latent" else task.image_hole
        known = (1 - hole).flatten(1).sum(1)
        for _ in range(self.iterations):
            change, difference = data_gradient(task, mu, self.space)
            square = squared_norm(difference)
            moving = square >= self.tolerance**2 * difference.shape[1] * known
            if not bool(moving.any()):
                break
            mu = mu + per_image(torch.minimum(rate, polyak_step(change, square)) * moving) * change
        return mu
