"""PiGDM: Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., ICLR 2023, OpenReview 9_gsMA8MRKQ).

Inpainting follows the experiments of RED-diff (Mardani et al. 2023, arXiv 2305.04391). With p(x0 | x_t) approximated by
N(x0, r_t^2), r_t^2 = s^2 / (a^2 + s^2), known pixels act through a vector-Jacobian product:

    r = known (y - x0) / (1 + sigma_y^2 / r_t^2),   g = (d x0 / d x_t)^T r

    reddiff:  x_u <- x_u + a_u r + a_u a_t hole g       (known pixels projected, the gradient only in the hole)
    paper:    x_u <- x_u + a_t g
    score:    x0 <- x0 + g / a_t  before the step       (Bayes' rule for the score and the step's noise)
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import residual, vp_scale
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class PiGDM(SamplingMethod):
    """There is no official code, and published weights differ; "reddiff" is nearest to the posterior of Gaussian data.

    Equations are for variance-preserving levels, and are converted for others. Differences from RED-diff's code: sigma_y is
    used, eta is 1 as in its scripts (0 in its configuration), and levels start at the last one.
    """

    paper = "Song et al. 2023, OpenReview 9_gsMA8MRKQ; arXiv 2305.04391"
    needs_grad = True

    weighting: Literal["reddiff", "paper", "score"] = setting(
        "reddiff", "weight of g: as RED-diff's code, as the paper, or by Bayes' rule"
    )
    strength: float = setting(1.0, "factor on g, no unit; at 0 reddiff still projects known pixels", low=0)
    sigma_y: float = setting(0.0, "noise in known pixels, in units of [-1,1]; only --raw shows them denoised", low=0)

    def on_denoised(self, state: State, denoised: Denoised) -> Denoised:
        if self.weighting != "score":
            return denoised
        g = self._guidance(state, denoised, self._residual(state, denoised))
        a = state.now.alpha_map(g)
        return replace(denoised, x0=denoised.x0 + vp_scale(state.now, g).square() / a * g)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if self.weighting == "score":
            return x_next
        r = self._residual(state, denoised)
        g = self._guidance(state, denoised, r)
        a, a_next = (level.alpha_map(g) for level in (state.now, state.next))
        if self.weighting == "paper":
            return x_next + vp_scale(state.next, g) * a * g
        return x_next + a_next * (r + a * state.task.hole * g)

    def _residual(self, state: State, denoised: Denoised) -> Tensor:
        a2, s2 = state.now.alpha.square(), state.now.sigma.square()
        r2 = s2 / (a2 + s2)
        shrunk = state.now.spread(r2 / (r2 + self.sigma_y**2))
        r = residual(state.task, denoised.x0.detach())
        return shrunk.to(r.dtype) * r

    def _guidance(self, state: State, denoised: Denoised, r: Tensor) -> Tensor:
        inner = (r * denoised.x0).flatten(1).sum(1)
        return self.strength * state.denoiser.gradient(inner, state.x)
