"""FlowDPS: Flow-Driven Posterior Sampling for Inverse Problems (Kim, Kim, Ye 2025, arXiv 2503.08136).

DPS for flows, without the network's Jacobian. Steps of length `rate` down the gradient of the norm of known (y - z) move the
estimate x0 to z. With kappa = s / (a + s), the sigma of a flow, a step t -> u is

    x_u = a_u ((1 - kappa_t) x0 + kappa_t z) + s_u (sqrt(kappa_u) e + sqrt(1 - kappa_u) n),    e = (x - a_t x0) / s_t
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.diffusion.step import Denoised
from rad.methods.flowchef import FlowChef
from rad.methods.guidance import flow_time, predicted_noise
from rad.sampling.method import setting
from rad.sampling.state import State


@dataclass(frozen=True)
class FlowDPS(FlowChef):
    """The weight kappa_t of z fades: before the final compositing known pixels equal y only approximately.

    Differences from the official code, and `rate`: as in `FlowChef`.
    """

    paper = "Kim, Kim, Ye 2025, arXiv 2503.08136"
    uses_eta = False

    rate: float = setting(10.0, "length of a gradient step, in the norm of all values of an image", low=0)
    descents: int = setting(3, "gradient steps at each level", low=0)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x0, nxt, dtype = denoised.x0, state.next, x_next.dtype
        blend = torch.lerp(x0, self.consistent(state, x0), state.now.spread(flow_time(state.now).to(dtype)))
        if state.next_timestep == CLEAN:
            return blend
        kappa, e = flow_time(nxt), predicted_noise(state.x, x0, state.now)
        noise = nxt.spread(kappa.sqrt().to(dtype)) * e + nxt.spread((1 - kappa).sqrt().to(dtype)) * state.randn()
        return nxt.alpha_map(x0) * blend + nxt.sigma_map(x0) * noise
