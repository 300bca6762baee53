"""Replacement ("imputation"). Song et al., Score-Based Generative Modeling through SDEs, 2021, arXiv 2011.13456, appendix I.2.

After each reverse step the known pixels are overwritten by the known image at the new noise level:
x_u <- hole x_u + known (a_u y + s_u n). GradPaint calls it combine-image.
With the corrector, Langevin steps at the level precede the estimate (algorithm 4): with score g = -e/s,
x <- x + h g + sqrt(2 h) n, h = 2 (r |n| / |g|)^2, known pixels overwritten after each.
Hooks: before_denoise, after_step.
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
    """Biased at any number of steps: the hole sees known pixels only through its own noise. A long corrector removes that.

    250 steps are customary; the paper takes 1000 and 2000. Unlike in the official code known pixels start noisy, and have the
    level of the step's end, not of its beginning.
    """

    paper = "Song et al. 2021, arXiv 2011.13456"
    preset_steps = 250

    corrections: int = setting(0, "Langevin steps at each level, algorithm 4; the paper has 1 in its PC sampler", low=0)
    ratio: float = setting(0.16, "signal-to-noise ratio r of a Langevin step, no unit; 0.16 CIFAR, 0.075 LSUN", low=0)

    def cost(self, times: list[float]) -> Cost:
        plain = super().cost(times)
        return Cost(plain.nfe * (1 + self.corrections))

    def before_denoise(self, state: State) -> Tensor:
        x = state.x
        s = state.now.sigma_map(x)
        for _ in range(self.corrections):
            score = -predicted_noise(x, state.denoiser.denoise(x, state.now).x0, state.now) / s
            fresh = state.draw()
            size = per_image(2 * (self.ratio * norm(fresh) / norm(score)).square())
            x = replace_known(state, x + size * score + (2 * size).sqrt() * fresh, state.now)
        return x

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return replace_known(state, x_next, state.next)
