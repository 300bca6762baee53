"""DInG. Moufad et al., Efficient Zero-Shot Inpainting with Decoupled Diffusion Guidance, 2025, arXiv 2512.18365.

A step t -> u has a Gaussian N(mu, v) under the model, mu = a_u x0 + sqrt(s_u^2 - v) e with e = (x - a_t x0) / s_t. The
known pixels y = (x_u - s_u e(x_u)) / a_u + sigma_y n would need a gradient through the network; with e taken at another draw
z ~ N(mu, v) instead, w = e(z, u), the product of both is Gaussian for each pixel: with gamma = v / (v + a_u^2 sigma_y^2),

    hole   x_u = mu + sqrt(v) n
    known  x_u = mu + gamma (a_u y + s_u w - mu) + sqrt(v (1 - gamma)) n

sqrt(v) is s_u kappa_u (sigma^2 of a flow) or s_u sqrt(kappa_u), kappa = s / (a + s); s_u (1 - a_u) in variance-preserving
units; or DDPM's deviation, or 0.01 of it. "delayed" takes w = e, without the second call.
Hooks: plan, after_step.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.step import Denoised, step_levels
from rad.methods.guidance import flow_time, predicted_noise
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State

Schedule = Literal["sigma2", "sigma1.5", "ddpm", "ddim", "vp"]


@dataclass(frozen=True)
class DInG(SamplingMethod):
    """No gradient at all. Not exact, but its mean comes to the posterior's as the levels become more; replacement's does not.

    With sigma2 and many levels v falls below the noise of y, and gamma, how much known pixels count, to nothing at the last
    ones; gamma_min is against that. Soft masks take (1 - hole) gamma. "delayed" overshoots the mean at few levels.
    """

    paper = "Moufad et al. 2025, arXiv 2512.18365"
    preset_steps = 28
    preset_eta = 0.0
    uses_eta = False

    proxy: Literal["resample", "delayed"] = setting(
        "resample", "where the noise w of known pixels is read: at a second draw (2 calls a step), or at x itself (1)"
    )
    schedule: Schedule = setting("sigma2", "deviation sqrt(v) of a step, as above; vp and sigma2 fade fastest")
    sigma_y: float = setting(0.01, "noise that y is taken to have, in the model's units", low=0)
    gamma_min: float = setting(
        0.0, "least gamma, no unit; 0: as the paper; 1: known pixels are a y + s w", low=0, high=1
    )
    stop_early: bool = setting(True, "read x0 one level before the last, as the official code")

    def plan(self, times: list[float]) -> list[float]:
        return [*times[:-2], CLEAN] if self.stop_early and len(times) > 2 else times

    def cost(self, times: list[float]) -> Cost:
        seconds = sum(nxt != CLEAN for _, nxt in pairwise(times)) if self.proxy == "resample" else 0
        return Cost(super().cost(times).nfe + seconds)

    def variance(self, now: NoiseLevel, nxt: NoiseLevel) -> Tensor:
        """v of the step, (B,K) float64, at most s_u^2."""
        s = nxt.sigma
        if self.schedule == "sigma2":
            return (s * flow_time(nxt)).square()
        if self.schedule == "sigma1.5":
            return s.square() * flow_time(nxt)
        if self.schedule == "vp":
            a = nxt.alpha
            return (s * (1 - a / (a.square() + s.square()).sqrt())).square()
        return step_levels(now, nxt).posterior * (1.0 if self.schedule == "ddpm" else 1e-4)

    def gamma(self, v: Tensor, nxt: NoiseLevel) -> Tensor:
        """How much known pixels count, (B,K) float64, for the variance v of the step; in 0 (v = 0) to 1 (sigma_y = 0)."""
        noisy = v + (nxt.alpha * self.sigma_y).square()
        return (v / noisy.clamp(min=torch.finfo(v.dtype).tiny)).clamp(min=self.gamma_min)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if state.next_time == CLEAN:
            return x_next
        x0, nxt, dtype = denoised.x0, state.next, x_next.dtype
        v = self.variance(state.now, nxt)

        def spread(levels: Tensor) -> Tensor:
            return nxt.spread(levels.to(dtype))

        a, s, deviation = nxt.alpha_map(x_next), nxt.sigma_map(x_next), spread(v.sqrt())
        w = predicted_noise(state.x, x0, state.now)
        mu = a * x0 + spread((nxt.sigma.square() - v).clamp(min=0).sqrt()) * w
        if self.proxy == "resample":
            z = mu + deviation * state.draw()
            w = predicted_noise(z, state.denoiser.denoise(z, nxt).x0, nxt)
        gamma = (1 - state.task.hole) * spread(self.gamma(v, nxt))
        mean = mu + gamma * (a * state.task.known + s * w - mu)
        return mean + deviation * (1 - gamma).sqrt() * state.draw()
