"""RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., CVPR 2022, arXiv 2201.09865).

Replacement with time travel: each block of j levels is denoised r times, and noised again in between. The hole thus adapts to
its surroundings. For each pair of levels of the plan,

    down, t -> u:   x <- hole x + known (a_t y + s_t n);   x_u = DDPM step of x
    up,   u -> t:   x_t = (a_t / a_u) x_u + sqrt(s_t^2 - (a_t / a_u)^2 s_u^2) n
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.diffusion.spacings import time_travel
from rad.diffusion.step import Denoised
from rad.methods.guidance import replace_known
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class RePaint(SamplingMethod):
    """The bias of replacement falls with r and the number of levels, and vanishes only as both grow.

    Known pixels are replaced before a step, as in the official code (paper: after it; the same law). Differences from that
    code: they are replaced at the first level too, and are y at the end. With resamplings = 1 this is Replacement.
    """

    paper = "Lugmayr et al. 2022, arXiv 2201.09865"
    preset_steps = 250

    jump_length: int = setting(10, "j, levels of a jump back up; the paper's 10", low=1)
    resamplings: int = setting(10, "r, passes through each block of levels; the paper's 10; 1: no jumps", low=1)

    def plan(self, timesteps: list[float]) -> list[float]:
        return time_travel(timesteps, length=self.jump_length, visits=self.resamplings)

    def before_denoise(self, state: State) -> Tensor:
        return replace_known(state, state.x, state.now)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if state.next_timestep == CLEAN:
            return replace_known(state, x_next, state.next)
        return x_next
