"""Replacement ("imputation"), Score-Based Generative Modeling through SDEs (Song et al. 2021, arXiv 2011.13456, appendix I.2).

Each step ends with the known image, at the new noise level, on known pixels (GradPaint: combine-image):

    x_u <- hole x_u + known (a_u y + s_u n)

Corrector (algorithm 4): Langevin steps at the level precede the estimate. With the score g = -e / s,
x <- x + h g + sqrt(2 h) n, h = 2 (r |n| / |g|)^2; known pixels are replaced after each.
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.levels import per_image
from rad.diffusion.step import Denoised
from rad.methods.guidance import norm, predicted_noise, replace_known
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State


@dataclass(frozen=True)
class Replacement(SamplingMethod):
    """Biased at any number of steps, because the hole sees known pixels only through their noise. A long corrector removes this.

    The preset is the customary 250 steps; the paper takes 1000 and 2000. Differences from the official code: known pixels start
    noisy, and have the level of the step's end, not of its start.
    """

    paper = "Song et al. 2021, arXiv 2011.13456"
    preset_steps = 250

    corrections: int = setting(0, "Langevin steps at each level, algorithm 4; the paper's PC sampler has 1", low=0)
    ratio: float = setting(0.16, "signal-to-noise ratio r of a Langevin step, no unit; 0.16 CIFAR, 0.075 LSUN", low=0)

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(super().cost(timesteps).nfe * (1 + self.corrections))

    def before_denoise(self, state: State) -> Tensor:
        x = state.x
        s = state.now.sigma_map(x)
        for _ in range(self.corrections):
            score = -predicted_noise(x, state.denoiser.denoise(x, state.now).x0, state.now) / s
            fresh = state.randn()
            size = per_image(2 * (self.ratio * norm(fresh) / norm(score)).square())
            x = replace_known(state, x + size * score + (2 * size).sqrt() * fresh, state.now)
        return x

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return replace_known(state, x_next, state.next)
