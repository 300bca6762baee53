"""FlowChef: Steering Rectified Flow Models in the Vector Field for Controlled Image Generation (Patel et al. 2024,
arXiv 2412.00100).

Guides a flow without a gradient through the network. Gradient steps of length `rate` on the norm of known (y - z) move the
estimate x0 to z. The ordinary step t -> u of the flow moves by the same amount:

    x_u = a_u x0 + s_u e + (z - x0)

This holds in units with a + s = 1; for other levels the shift gets the factor a_u + s_u.
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import DataStep, Space, data_consistency, require_space
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class FlowChef(SamplingMethod):
    """Only the start is random (eta = 0, the paper's). With the factor a_u on the shift this would be DDNM.

    Differences from the official code: the norm is of each image, not of the batch, and no step goes beyond a residual of 0.
    `rate` is a distance in all values of an image: larger images need a larger one.
    """

    paper = "Patel et al. 2024, arXiv 2412.00100"
    preset_steps = 50
    preset_eta = 0.0

    dc: DataStep = setting("gradient", 'how x0 moves to z: by "gradient" steps, or "project": known pixels are y')
    rate: float = setting(0.9, "length of a gradient step, in the norm of all values of an image", low=0)
    descents: int = setting(10, "gradient steps at each level", low=0)
    space: Space = setting("latent", 'where to compare known values: in the model\'s "latent", or decoded "pixels"')

    def __post_init__(self) -> None:
        super().__post_init__()
        require_space(self.dc, self.space)

    def consistent(self, state: State, x0: Tensor) -> Tensor:
        """z for the estimate x0, (B,C,H,W)."""
        return data_consistency(state.task, x0, self.dc, self.space, rate=self.rate, count=self.descents)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x0, nxt = denoised.x0, state.next
        return x_next + nxt.spread((nxt.alpha + nxt.sigma).to(x0.dtype)) * (self.consistent(state, x0) - x0)
