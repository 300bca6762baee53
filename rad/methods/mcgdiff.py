"""MCGDiff: Monte Carlo guided Diffusion for Bayesian Linear Inverse Problems (Cardoso et al., ICLR 2024, arXiv 2308.07983).

A particle filter: N particles go down the levels together. At each level, particles that fit the noised known pixels better
have more descendants. The last step draws one particle by its weight. With mean m and variance v of the reverse step t -> u,
and on known pixels g_u = N(a_u y, w_u), w_u = s_u^2 + kappa a_u^2,

    weight of a particle:   N(known m; a_u y, v + w_u) / g_t(known x_t)
    after resampling:       x_u ~ N(m, v) g_u: known pixels are K a_u y + (1 - K) m + sqrt(K w_u) n, K = v / (v + w_u)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.step import Denoised, reverse_step, step_levels
from rad.sampling.method import CustomSampler, setting
from rad.sampling.state import Cost, RunContext
from rad.sampling.task import Task


@dataclass(frozen=True)
class MCGDiff(CustomSampler):
    """A slow reference: exact as N grows, for the reverse process with these steps and the network's x0 as mean.

    With many known pixels one particle takes all the weight, and the result approaches N = 1, a form of replacement. Particles
    are not samples: a run returns one.

    Differences from the official code: resampling is systematic. The last step has the same weights as the others (official:
    the inverse of g_0). Known pixels are y at the end.
    """

    paper = "Cardoso et al. 2024, arXiv 2308.07983"
    preset_steps = 100

    particles: int = setting(64, "N, for each image; NFE is N times the steps", low=1)
    kappa: float = setting(1e-4, "variance of known pixels, in the image's unit [-1,1] squared", low=1e-12)

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(self.particles * (len(timesteps) - 1))

    def run(self, run: RunContext) -> Tensor:
        task = run.task
        now, images = run.level(run.timesteps[0]), torch.arange(len(task.known), device=task.known.device)
        # x_T ~ N(0, a^2 + s^2) g_T
        mean = torch.zeros_like(task.known).expand(self.particles, *task.known.shape)
        x = self._moved(run, mean, _like(mean, now, now.alpha**2 + now.sigma**2), now)
        for u in run.timesteps[1:]:
            nxt = run.level(u)
            variance = _like(x, now, run.eta**2 * step_levels(now, nxt).posterior)
            # One particle at a time, to limit memory.
            mean = torch.stack([_mean(run, particle, now, nxt) for particle in x])
            log_weight = self._log_fit(task, mean, nxt, variance) - self._log_fit(task, x, now, 0 * variance)
            chosen = systematic(log_weight, uniform(run.randn()), 1 if u == CLEAN else self.particles)
            mean = mean[chosen, images]
            x, now = mean if u == CLEAN else self._moved(run, mean, variance, nxt), nxt
        return torch.lerp(task.known, x[0], task.hole)

    def _width(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """w = s^2 + kappa a^2 as a map."""
        return _like(x, level, level.sigma**2 + self.kappa * level.alpha**2)

    def _log_fit(self, task: Task, x: Tensor, level: NoiseLevel, variance: Tensor) -> Tensor:
        """(N,B) log N(known x; known a y, variance + w), up to a constant."""
        misfit = (x - level.alpha_map(x) * task.known).square() / (variance + self._width(x, level))
        return -0.5 * ((1 - task.hole) * misfit).flatten(2).sum(2)

    def _moved(self, run: RunContext, mean: Tensor, variance: Tensor, level: NoiseLevel) -> Tensor:
        """(N,B,C,H,W) drawn from N(mean, variance) g."""
        width, y = self._width(mean, level), level.alpha_map(mean) * run.task.known
        gain = variance / (variance + width)
        fresh = torch.stack([run.randn() for _ in mean])
        known = torch.lerp(mean, y.expand_as(mean), gain.expand_as(mean)) + (gain * width).sqrt() * fresh
        return torch.lerp(known, mean + variance.sqrt() * fresh, run.task.hole.expand_as(mean))


def _like(x: Tensor, level: NoiseLevel, values: Tensor) -> Tensor:
    return level.spread(values.to(x.dtype))


def _mean(run: RunContext, x: Tensor, now: NoiseLevel, nxt: NoiseLevel) -> Tensor:
    estimate = Denoised(run.denoiser.denoise(x, now).x0)
    return reverse_step(x, estimate, now, nxt, eta=run.eta, noise=torch.zeros_like(x))


def uniform(normal: Tensor) -> Tensor:
    """(B,) uniform in [0,1], from the first value of each standard normal image."""
    return torch.special.ndtr(normal.flatten(1)[:, 0].double())


def systematic(log_weight: Tensor, start: Tensor, count: int) -> Tensor:
    """(count,B) indices into log_weight (N,B) at points (start + i) / count of the cumulative weights; start (B,)."""
    cumulative = log_weight.double().softmax(0).cumsum(0).T.contiguous()
    points = (start[:, None] + torch.arange(count, device=start.device)) / count
    return torch.searchsorted(cumulative, points, right=True).clamp(max=len(log_weight) - 1).T
