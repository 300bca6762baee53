"""DInG: Efficient Zero-Shot Inpainting with Decoupled Diffusion Guidance (Moufad et al. 2025, arXiv 2512.18365).

The model's step t -> u is N(mu, v) with mu = a_u x0 + sqrt(s_u^2 - v) e and e = (x - a_t x0) / s_t. Known pixels
y = (x_u - s_u e(x_u)) / a_u + sigma_y n would need a gradient through the network. With e at another draw z ~ N(mu, v) instead,
w = e(z, u), the product is Gaussian for each pixel. With gamma = v / (v + a_u^2 sigma_y^2),

    hole   x_u = mu + sqrt(v) n
    known  x_u = mu + gamma (a_u y + s_u w - mu) + sqrt(v (1 - gamma)) n

sqrt(v) by `schedule`, with kappa = s / (a + s):

    "sigma2"    s_u kappa_u (sigma^2 of a flow)          "sigma1.5"  s_u sqrt(kappa_u)
    "vp"        s_u (1 - a_u) in variance-preserving units
    "ddpm"      DDPM's deviation                         "ddim"      0.01 of DDPM's

proxy "delayed" takes w = e, without the second call.
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
    """No gradient. Not exact, but its mean converges to the posterior's with more levels; replacement's does not.

    With "sigma2" and many levels, v falls below the noise of y at the last levels. Then gamma, the weight of known pixels, goes
    to 0; gamma_min limits this. Soft masks use (1 - hole) gamma. "delayed" overshoots the mean at few levels.
    """

    paper = "Moufad et al. 2025, arXiv 2512.18365"
    preset_steps = 28
    preset_eta = 0.0
    uses_eta = False

    proxy: Literal["resample", "delayed"] = setting(
        "resample", "where to read the noise w of known pixels: at a second draw (2 calls a step), or at x (1)"
    )
    schedule: Schedule = setting(
        "sigma2", "deviation sqrt(v) of a step, formulas in ding.py; vp and sigma2 fade fastest"
    )
    sigma_y: float = setting(0.01, "assumed noise of y, in the model's units", low=0)
    gamma_min: float = setting(
        0.0, "least gamma, no unit; 0: as the paper; 1: known pixels are a y + s w", low=0, high=1
    )
    stop_early: bool = setting(True, "read x0 one level before the last, as the official code")

    def plan(self, timesteps: list[float]) -> list[float]:
        return [*timesteps[:-2], CLEAN] if self.stop_early and len(timesteps) > 2 else timesteps

    def cost(self, timesteps: list[float]) -> Cost:
        seconds = sum(nxt != CLEAN for _, nxt in pairwise(timesteps)) if self.proxy == "resample" else 0
        return Cost(super().cost(timesteps).nfe + seconds)

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
        """Weight of known pixels for the step's variance v, both (B,K) float64; 0 for v = 0, 1 for sigma_y = 0."""
        noisy = v + (nxt.alpha * self.sigma_y).square()
        return (v / noisy.clamp(min=torch.finfo(v.dtype).tiny)).clamp(min=self.gamma_min)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if state.next_timestep == CLEAN:
            return x_next
        x0, nxt, dtype = denoised.x0, state.next, x_next.dtype
        v = self.variance(state.now, nxt)
        a, s, deviation = nxt.alpha_map(x_next), nxt.sigma_map(x_next), nxt.spread(v.sqrt().to(dtype))
        w = predicted_noise(state.x, x0, state.now)
        mu = a * x0 + nxt.spread((nxt.sigma.square() - v).clamp(min=0).sqrt().to(dtype)) * w
        if self.proxy == "resample":
            z = mu + deviation * state.randn()
            w = predicted_noise(z, state.denoiser.denoise(z, nxt).x0, nxt)
        gamma = (1 - state.task.hole) * nxt.spread(self.gamma(v, nxt).to(dtype))
        mean = mu + gamma * (a * state.task.known + s * w - mu)
        return mean + deviation * (1 - gamma).sqrt() * state.randn()
