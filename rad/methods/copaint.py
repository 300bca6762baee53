"""CoPaint. Zhang et al., Towards Coherent Image Inpainting Using Denoising Diffusion Implicit Models, 2023, arXiv 2304.03322.

Before each DDIM step x_t moves, by G steps of gradient descent from o = x_t, to where the estimate agrees with the known
pixels: F(x) = |known (y - D(x))|^2 + lam_t |x - o|^2, x <- x - r_t grad F, where r_t shrinks by 0.8 until F does not rise.
r_t = r a_t / a_0 grow^i, lam_t = lam grow'^i for the i-th of the levels; DDIM (eta 0) then takes the step.
CoPaint-TT travels in time as RePaint does: from every L-th level up by L levels and down again.
Hook: before_denoise; the plan.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel, per_image
from rad.diffusion.spacings import time_travel
from rad.methods.guidance import residual, squared_norm, vp_scale
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State

FACTORS = (*(0.8**shrunk for shrunk in range(21)), 0.0)
"""Of the learning rate, as tried one after the other; at last the image stays where it is."""


@dataclass(frozen=True)
class CoPaint(SamplingMethod):
    """The settings of CelebA-HQ; `tt()` and `fast()` are the paper's variants. MAP-like: it varies too little.

    Decided otherwise than in the official code: F and the line search are of each image, not of the batch; the search ends;
    an accepted trial is the next estimate, not evaluated again; the last step goes to the clean level, not to time 0; no
    additional descent before a travel back, which the way down repeats anyhow. In ImageNet's preset prior = 0.01 and
    prior_growth = 1.
    """

    paper = "Zhang et al. 2023, arXiv 2304.03322"
    preset_steps = 250
    preset_eta = 0.0
    uses_spacing = False  # its rates grow with evenly spaced levels
    needs_grad = True

    descents: int = setting(2, "gradient steps G at each level", low=0)
    rate: float = setting(0.02, "learning rate r at the first level, for values in [-1,1]", low=0)
    rate_growth: float = setting(1.012, "factor of the learning rate for each level on the way down", low=0)
    prior: float = setting(1e-4, "weight lam of staying at the x_t of the step", low=0)
    prior_growth: float = setting(1.01, "factor of that weight for each level on the way down", low=0)
    visits: int = setting(1, "R, how often each block of levels is gone through; 2 is CoPaint-TT", low=1)
    jump: int = setting(10, "L, levels that a travel back goes up", low=1)

    @classmethod
    def tt(cls) -> "CoPaint":
        """CoPaint-TT, 250 levels."""
        return cls(visits=2)

    @classmethod
    def fast(cls) -> "CoPaint":
        """CoPaint-Fast, for 100 levels; over all of them the rate grows as much as in 250."""
        return cls(descents=1, rate_growth=1.03)

    def plan(self, times: list[float]) -> list[float]:
        return time_travel(times, length=self.jump, visits=self.visits)

    def cost(self, times: list[float]) -> Cost:
        """Where every first trial is accepted; a line search adds its own, as many as the slowest image of the batch."""
        steps = super().cost(times).nfe
        return Cost(steps * (1 + self.descents), steps * self.descents)

    def differentiates(self, state: State) -> bool:
        return False

    def before_denoise(self, state: State) -> Tensor:
        x = start = state.x.detach()
        scale = vp_scale(state.now, start)
        signal = _signal(state.now, start) / _signal(state.level(0), start)
        rate = self.rate * self.rate_growth**state.index * signal * scale.square()
        weight = self.prior * self.prior_growth**state.index

        def evaluate(x: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor]:
            """x, as the tensor that the denoiser was given, and F of it, (B,)."""
            with torch.set_grad_enabled(differentiable):
                x = x.detach().requires_grad_(differentiable)
                mismatch = squared_norm(
                    residual(state.task, state.denoiser.denoise(x, state.now, keep=not differentiable).x0)
                )
                return x, mismatch + weight * squared_norm((x - start) / scale)

        for descent in range(self.descents):
            if descent == 0:
                x, loss = evaluate(x, differentiable=True)
            before, value = x.detach(), loss.detach()
            with torch.enable_grad():
                gradient = state.denoiser.gradient(loss, x)
            move = rate * gradient
            accepted, trial = torch.zeros_like(value, dtype=torch.bool), before
            for factor in FACTORS:
                # Images that have accepted keep their trial, so that the last one holds the result of all.
                moved = before - factor * move if factor else before  # a move that is not finite is not taken
                trial = torch.where(per_image(accepted), trial, moved)
                x, loss = evaluate(trial, differentiable=descent < self.descents - 1)
                accepted = accepted | (loss <= value)
                if bool(accepted.all()):
                    break
        return x


def _signal(level: NoiseLevel, like: Tensor) -> Tensor:
    """a as a map, in variance-preserving units."""
    return level.alpha_map(like) / vp_scale(level, like)
