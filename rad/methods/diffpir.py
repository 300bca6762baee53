"""DiffPIR: Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al. 2023, arXiv 2305.08995).

Half-quadratic splitting: a step t -> u denoises, solves the data step in closed form, and adds noise again. With
sigma_t = s_t / a_t, rho = lambda sigma_n^2 / sigma_t^2, the known image y, and fresh n,

    z = argmin known (z - y)^2 + rho (z - x0)^2:  x0 in the hole, (y + rho x0) / (1 + rho) on known pixels
    e = (x - a_t z) / s_t
    x_u = a_u z + sqrt(1 - zeta) (DDIM's noise, from e, with the sampler's eta) + sqrt(zeta) s_u n

Levels are dense where there is little noise: t_i = T - 1 - floor(T sqrt(i / (N - 1))), the last one 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.diffusion.step import Denoised
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class DiffPIR(SamplingMethod):
    """With zeta = 1 all noise is fresh and eta has no effect; with sigma_n = 0 known pixels of z are y.

    Differences from the official code: the last step goes to the clean level, where known pixels are y. Official samples keep
    the last level's noise. Above T / 2 steps official levels repeat; ours always fall. Soft masks mix x0 with a known pixel's z.
    """

    paper = "Zhu et al. 2023, arXiv 2305.08995"
    preset_steps = 20
    preset_eta = 0.0
    uses_spacing = False  # it has its own

    lam: float = setting(1.0, "lambda, weight of the prior in the data step, no unit", low=0)
    sigma_n: float = setting(0.001, "deviation of the noise in known pixels, in units of [-1,1]", low=0)
    zeta: float = setting(1.0, "fresh fraction of the added noise's variance, no unit", low=0, high=1)

    def plan(self, timesteps: list[float]) -> list[float]:
        total, count = round(timesteps[0]) + 1, len(timesteps) - 1
        if count == 1:
            return timesteps
        # floor(T sqrt(i / (N - 1))) in whole numbers.
        quadratic = [total - 1 - math.isqrt(total * total * i // (count - 1)) for i in range(count)]
        return [*(max(t, count - 1 - i) for i, t in enumerate(quadratic)), CLEAN]

    def on_denoised(self, state: State, denoised: Denoised) -> Denoised:
        x0, now = denoised.x0, state.now
        sigma_n = 0.0 if state.next_timestep == CLEAN else self.sigma_n
        rho = now.spread((self.lam * sigma_n**2 * (now.alpha / now.sigma).square()).to(x0.dtype))
        return Denoised(torch.lerp((state.task.known + rho * x0) / (1 + rho), x0, state.task.hole))

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        mean = state.next.alpha_map(x_next) * denoised.x0
        fresh = state.next.sigma_map(x_next) * state.randn()
        return mean + math.sqrt(1 - self.zeta) * (x_next - mean) + math.sqrt(self.zeta) * fresh
