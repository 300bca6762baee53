"""DPS: Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., ICLR 2023, arXiv 2209.14687).

Each DDPM step is followed by a step down the gradient of the known pixels' misfit, through the network:

    x_u <- x_u - zeta grad_x_t || known (y - x0) ||
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import data_shift, norm, residual
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class DPS(SamplingMethod):
    """Known pixels are guided, never replaced: before the final compositing they equal y only approximately.

    zeta has the unit of x times sqrt(number of values): a smaller image needs a smaller zeta. Difference from the official code:
    the norm is of each image, not of the batch.
    """

    paper = "Chung et al. 2023, arXiv 2209.14687"
    preset_steps = 1000
    needs_grad = True

    zeta: float = setting(
        0.5, "step on the gradient of the norm; the official one at 256x256; less for smaller images", low=0
    )

    def misfit(self, state: State, known_residual: Tensor) -> Tensor:
        """(B,) loss of the known pixels' residual (B,C,H,W); x moves down its gradient."""
        return self.zeta * norm(known_residual)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return x_next - data_shift(state, self.misfit(state, residual(state.task, denoised.x0)))
