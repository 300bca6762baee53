"""DiffPIR. Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, 2023, arXiv 2305.08995.

Half-quadratic splitting: a step t -> u denoises, solves the data step in closed form, and adds noise again. With
sigma_t = s_t / a_t, rho = lambda sigma_n^2 / sigma_t^2, known image y, n fresh,
    z = argmin known (z - y)^2 + rho (z - x0)^2:  x0 in the hole, (y + rho x0) / (1 + rho) on known pixels
    e = (x - a_t z) / s_t                                                       (from the corrected z)
    x_u = a_u z + sqrt(1 - zeta) (DDIM's noise, from e, with the sampler's eta) + sqrt(zeta) s_u n
Levels are dense where there is little noise: t_i = T - 1 - floor(T sqrt(i / (N - 1))), the last one 0.
Hooks: plan, on_denoised, after_step.
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
    """With zeta = 1 all noise is fresh and eta has no effect; with sigma_n = 0 the data step is y itself.

    The official code makes no step at the last level: the estimate there is lost, and its samples keep noise of that
    level. Here it is a step like the others to the clean end, where known pixels are y. With more steps than T / 2 its
    levels repeat; here every level is lower than the one before. Soft masks mix x0 with what a known pixel would be.
    """

    paper = "Zhu et al. 2023, arXiv 2305.08995"
    preset_steps = 20
    preset_eta = 0.0
    uses_spacing = False  # it has its own

    lam: float = setting(1.0, "lambda, weight of the prior in the data step, no unit", low=0)
    sigma_n: float = setting(0.001, "deviation of the noise in the known pixels, in units of [-1,1]", low=0)
    zeta: float = setting(1.0, "fresh part of the variance of the noise that is added, no unit", low=0, high=1)

    def plan(self, times: list[float]) -> list[float]:
        total, count = round(times[0]) + 1, len(times) - 1
        if count == 1:
            return times
        # floor(T sqrt(i / (N - 1))) in whole numbers.
        quadratic = [total - 1 - math.isqrt(total * total * i // (count - 1)) for i in range(count)]
        return [*(max(t, count - 1 - i) for i, t in enumerate(quadratic)), CLEAN]

    def on_denoised(self, state: State, denoised: Denoised) -> Denoised:
        x0, now = denoised.x0, state.now
        sigma_n = 0.0 if state.next_time == CLEAN else self.sigma_n
        rho = now.spread((self.lam * sigma_n**2 * (now.alpha / now.sigma).square()).to(x0.dtype))
        return Denoised(torch.lerp((state.task.known + rho * x0) / (1 + rho), x0, state.task.hole))

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        mean = state.next.alpha_map(x_next) * denoised.x0
        fresh = state.next.sigma_map(x_next) * state.draw()
        return mean + math.sqrt(1 - self.zeta) * (x_next - mean) + math.sqrt(self.zeta) * fresh
