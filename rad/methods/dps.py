"""DPS. Chung, Kim, McCann, Klasky, Ye, Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR 2023,
arXiv 2209.14687.

A DDPM step, and a step down the gradient of the misfit of the known pixels, taken through the network:

    x_u <- x_u - zeta grad_x_t || known (y - x0) ||

Hook: after_step.
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import norm, residual, vp_scale
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class DPS(SamplingMethod):
    """Known pixels are pulled, never replaced: before they are put back at the end they are y only nearly.

    zeta has the unit of x times sqrt(number of values): a norm grows with the image, so a smaller image wants a smaller zeta.
    Unlike the official code the norm is that of each image, not of the batch.
    """

    paper = "Chung et al. 2023, arXiv 2209.14687"
    preset_steps = 1000
    needs_grad = True

    zeta: float = setting(
        0.5,
        "step on the gradient of the norm; the official one at 256x256; less for smaller images",
        low=0,
    )

    def misfit(self, state: State, known_residual: Tensor) -> Tensor:
        """(B,) what the known pixels lack, (B,C,H,W), as one number; x moves by minus its gradient."""
        return self.zeta * norm(known_residual)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        misfit = self.misfit(state, residual(state.task, denoised.x0))
        gradient = state.denoiser.gradient(misfit, state.x)
        return x_next - vp_scale(state.now, x_next) * vp_scale(state.next, x_next) * gradient
