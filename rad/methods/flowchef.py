"""FlowChef. Patel et al., Steering Rectified Flow Models in the Vector Field for Controlled Image Generation, 2024,
arXiv 2412.00100.

A flow is steered without a gradient through the network: the estimate x0 moves towards the known image, to z, by steps of
`rate` down the gradient of the norm of known (y - z), and the ordinary step t -> u of the flow is moved by as much,

    x_u = a_u x0 + s_u e + (z - x0)

For other levels this is the same in units where a + s = 1: the shift has the factor a_u + s_u.
Hook: after_step.
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import DataStep, Space, data_consistency, require_space
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class FlowChef(SamplingMethod):
    """Noise is drawn at the start alone (eta = 0, the paper's). With a_u as the factor of the shift this would be DDNM.

    Unlike in the official code the norm is that of each image, not of the batch, and no step goes further than to where
    nothing is lacking. A `rate` is a distance in all the numbers of an image, so larger images want more of it.
    """

    paper = "Patel et al. 2024, arXiv 2412.00100"
    preset_steps = 50
    preset_eta = 0.0

    dc: DataStep = setting("gradient", 'how x0 comes to z: "gradient" steps; "project": known pixels are y')
    rate: float = setting(0.9, "length of a gradient step, in norm of all numbers of an image", low=0)
    descents: int = setting(10, "gradient steps at each level", low=0)
    space: Space = setting("latent", 'where the gradient compares: "latent" of the model, or decoded "pixels"')

    def __post_init__(self) -> None:
        super().__post_init__()
        require_space(self.dc, self.space)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x0, nxt = denoised.x0, state.next
        z = data_consistency(state.task, x0, self.dc, self.space, rate=self.rate, count=self.descents)
        return x_next + nxt.spread((nxt.alpha + nxt.sigma).to(x0.dtype)) * (z - x0)
