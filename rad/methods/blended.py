"""Blended Diffusion for Text-driven Editing of Natural Images (Avrahami et al. 2022, arXiv 2111.14818), without text guidance.

Each step ends with the known image, at the new noise level, on known pixels. The noisiest steps are skipped. The chain starts
from a noised image, with f the mean colour of the known pixels:

    x_start = a (known y + hole f) + s n        x_u <- hole x_u + known (a_u y + s_u n)
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import replace_known, skip_levels, warm_start
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class Blended(SamplingMethod):
    """Without text this is replacement with a warm start; with skip = 0 it is replacement, bit for bit.

    Differences from the official code: there f is the source image, which leaks the hole's content. There known pixels have the
    level of the step's start; here, of its end.
    """

    paper = "Avrahami, Lischinski, Fried 2022, arXiv 2111.14818"
    preset_steps = 100

    skip: float = setting(
        0.25, "fraction of the steps to skip, the noisiest, rounded down: 25 of 100", low=0, high=0.99
    )

    def plan(self, timesteps: list[float]) -> list[float]:
        return skip_levels(timesteps, self.skip)

    def on_start(self, state: State) -> Tensor:
        return state.x if self.skip == 0 else warm_start(state)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return replace_known(state, x_next, state.next)
