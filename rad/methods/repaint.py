"""RePaint. Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, RePaint: Inpainting using Denoising Diffusion
Probabilistic Models, CVPR 2022, arXiv 2201.09865.

Replacement that goes back and forth: every block of j levels is denoised, noised again and denoised, r times in all,
so that the hole can settle with its surroundings. For each pair of levels of the plan,

    down, t -> u:   x <- hole x + known (a_t y + s_t n);   x_u = DDPM step of x
    up,   u -> t:   x_t = (a_t / a_u) x_u + sqrt(s_t^2 - (a_t / a_u)^2 s_u^2) n

Hooks: before_denoise, after_step; the plan travels in time.
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
    """The bias of replacement falls with r and with the number of levels, and vanishes only as both grow.

    As in the official code known pixels are overwritten before a step (the paper: after it; the same law). Unlike it they
    are at the first level too, and are those of the image at the end. With resamplings = 1 this is Replacement.
    """

    paper = "Lugmayr et al. 2022, arXiv 2201.09865"
    preset_steps = 250

    jump_length: int = setting(10, "j, levels that a jump goes back up; the paper's 10", low=1)
    resamplings: int = setting(10, "r, how often each block of levels is denoised; the paper's 10; 1: no jumps", low=1)

    def plan(self, times: list[float]) -> list[float]:
        return time_travel(times, length=self.jump_length, visits=self.resamplings)

    def before_denoise(self, state: State) -> Tensor:
        return replace_known(state, state.x, state.now)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if state.next_time == CLEAN:
            return replace_known(state, x_next, state.next)
        return x_next
