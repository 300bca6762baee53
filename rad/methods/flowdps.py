"""FlowDPS. Kim, Kim, Ye, FlowDPS: Flow-Driven Posterior Sampling for Inverse Problems, 2025, arXiv 2503.08136.

DPS for flows with the network's Jacobian left out. The estimate x0 moves towards the known image, to z, by steps of `rate`
down the gradient of the norm of known (y - z). With kappa = s / (a + s), which of a flow is sigma, a step t -> u is

    x_u = a_u ((1 - kappa_t) x0 + kappa_t z) + s_u (sqrt(kappa_u) e + sqrt(1 - kappa_u) n),    e = (x - a_t x0) / s_t

Hook: after_step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.diffusion.step import Denoised
from rad.methods.guidance import DataStep, Space, data_consistency, flow_time, predicted_noise, require_space
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class FlowDPS(SamplingMethod):
    """A faithful baseline: the weight kappa_t of z fades, so known pixels are y only nearly before they are put back.

    Unlike in the official code the norm is that of each image, not of the batch, and no step goes further than to where
    nothing is lacking. A `rate` is a distance in all the numbers of an image, so larger images want more of it.
    """

    paper = "Kim, Kim, Ye 2025, arXiv 2503.08136"
    preset_steps = 50
    preset_eta = 0.0
    uses_eta = False

    dc: DataStep = setting("gradient", 'how x0 comes to z: "gradient" steps; "project": known pixels are y')
    rate: float = setting(10.0, "length of a gradient step, in norm of all numbers of an image", low=0)
    descents: int = setting(3, "gradient steps at each level", low=0)
    space: Space = setting("latent", 'where the gradient compares: "latent" of the model, or decoded "pixels"')

    def __post_init__(self) -> None:
        super().__post_init__()
        require_space(self.dc, self.space)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x0, nxt, dtype = denoised.x0, state.next, x_next.dtype
        z = data_consistency(state.task, x0, self.dc, self.space, rate=self.rate, count=self.descents)
        blend = torch.lerp(x0, z, state.now.spread(flow_time(state.now).to(dtype)))
        if state.next_time == CLEAN:
            return blend
        kappa, e = flow_time(nxt), predicted_noise(state.x, x0, state.now)
        noise = nxt.spread(kappa.sqrt().to(dtype)) * e + nxt.spread((1 - kappa).sqrt().to(dtype)) * state.draw()
        return nxt.alpha_map(x0) * blend + nxt.sigma_map(x0) * noise
