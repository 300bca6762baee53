"""MCG: Improving Diffusion Models for Inverse Problems using Manifold Constraints (Chung et al. 2022, arXiv 2206.00941).

Replacement, and in the hole a step down the gradient of the known pixels' misfit, through the network:

    x_u <- hole (x_u - alpha grad_x_t || known (y - x0) ||) + known (a_u y + s_u n)
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import data_shift, norm, replace_known, residual
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class MCG(SamplingMethod):
    """The norm is not squared, as in the official code: the step does not fade with the residual.

    Differences from that code: known pixels have the level of the step's end, not of its start. The norm is per image, not per
    batch. With alpha = 0 this is Replacement.
    """

    paper = "Chung et al. 2022, arXiv 2206.00941"
    preset_steps = 1000
    needs_grad = True

    alpha: float = setting(
        1.0, "step on the gradient of the norm; the official one at 256x256; less for smaller images", low=0
    )

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        shift = data_shift(state, norm(residual(state.task, denoised.x0)), rate=self.alpha)
        return replace_known(state, x_next - shift, state.next)
