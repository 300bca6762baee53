"""CoPaint: Towards Coherent Image Inpainting Using Denoising Diffusion Implicit Models (Zhang et al. 2023, arXiv 2304.03322).

Before each DDIM step, G gradient steps from o = x_t move x_t to where the estimate agrees with the known pixels:

    F(x) = |known (y - D(x))|^2 + lam_t |x - o|^2,    x <- x - r_t grad F

r_t shrinks by 0.8 until F does not rise. At level i, r_t = r a_t / a_0 grow^i and lam_t = lam grow'^i. CoPaint-TT travels in
time as RePaint does: from each L-th level up by L levels and down again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel, per_image
from rad.diffusion.spacings import time_travel
from rad.methods.guidance import residual, squared_norm, vp_scale
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State

FACTORS = (*(0.8**exponent for exponent in range(21)), 0.0)
"""Factors of the learning rate, in the order of the line search; at the last, the image does not move."""


@dataclass(frozen=True)
class CoPaint(SamplingMethod):
    """Defaults are the official CelebA-HQ ones; ImageNet has prior = 0.01, prior_growth = 1. MAP-like: too little variation.

    Differences from the official code: F and the line search are per image, not per batch, and the search ends. An accepted trial
    is the next estimate, without a new call. The last step goes to the clean level, not to t = 0. No extra descent precedes a
    travel back, because the way down repeats it.
    """

    paper = "Zhang et al. 2023, arXiv 2304.03322"
    uses_strength = False  # its rates count from the noisiest level
    preset_steps = 250
    preset_eta = 0.0
    uses_spacing = False  # its rates grow with evenly spaced levels
    needs_grad = True

    descents: int = setting(2, "gradient steps G at each level", low=0)
    rate: float = setting(0.02, "learning rate r at the first level, for values in [-1,1]", low=0)
    rate_growth: float = setting(1.012, "factor of the learning rate from level to level", low=0)
    prior: float = setting(1e-4, "weight lam of staying at the step's x_t", low=0)
    prior_growth: float = setting(1.01, "factor of that weight from level to level", low=0)
    visits: int = setting(1, "R, passes through each block of levels; 2 is CoPaint-TT", low=1)
    jump: int = setting(10, "L, levels that a travel back goes up", low=1)

    @classmethod
    def tt(cls) -> "CoPaint":
        """CoPaint-TT, for 250 levels."""
        return cls(visits=2)

    @classmethod
    def fast(cls) -> "CoPaint":
        """CoPaint-Fast, for 100 levels; the rate grows by as much in all as over 250."""
        return cls(descents=1, rate_growth=1.03)

    def plan(self, timesteps: list[float]) -> list[float]:
        return time_travel(timesteps, length=self.jump, visits=self.visits)

    def cost(self, timesteps: list[float]) -> Cost:
        """Excludes rejected trials; a line search adds as many calls as the slowest image of the batch needs."""
        steps = super().cost(timesteps).nfe
        return Cost(steps * (1 + self.descents), steps * self.descents)

    def differentiates(self, state: State) -> bool:
        return False

    def before_denoise(self, state: State) -> Tensor:
        x = start = state.x.detach()
        scale = vp_scale(state.now, start)
        signal = _signal(state.now, start) / _signal(state.level(0), start)
        rate = self.rate * self.rate_growth**state.index * signal * scale.square()
        weight = self.prior * self.prior_growth**state.index

        def evaluate(x: Tensor, *, differentiable: bool, trial: bool = False) -> tuple[Tensor, Tensor]:
            """x, as the tensor that the denoiser gets, and F of it, (B,)."""
            with torch.set_grad_enabled(differentiable):
                x = x.detach().requires_grad_(differentiable)
                x0 = state.denoiser.denoise(x, state.now, keep=not differentiable, trial=trial).x0
                return x, squared_norm(residual(state.task, x0)) + weight * squared_norm((x - start) / scale)

        for descent in range(self.descents):
            if descent == 0:
                x, loss = evaluate(x, differentiable=True)
            before, value = x.detach(), loss.detach()
            with torch.enable_grad():
                gradient = state.denoiser.gradient(loss, x)
            move = rate * gradient
            accepted, trial = torch.zeros_like(value, dtype=torch.bool), before
            for factor in FACTORS:
                # Accepted images keep their trial, so the last trial holds the result of all images.
                moved = before - factor * move if factor else before  # factor 0 must not multiply an infinite move
                trial = torch.where(per_image(accepted), trial, moved)
                x, loss = evaluate(trial, differentiable=descent < self.descents - 1, trial=True)
                accepted = accepted | (loss <= value)
                if bool(accepted.all()):
                    break
        return x


def _signal(level: NoiseLevel, like: Tensor) -> Tensor:
    """a as a map, in variance-preserving units."""
    return level.alpha_map(like) / vp_scale(level, like)
