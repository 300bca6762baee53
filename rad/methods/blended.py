"""Blended Diffusion, without its text guidance. Avrahami, Lischinski, Fried, Blended Diffusion for Text-driven Editing
of Natural Images, 2022, arXiv 2111.14818.

After each reverse step the result in the hole is blended with the known image at the new noise level, and the first
steps are left out: the chain starts from a noised image,
    x_u <- hole x_u + known (a_u y + s_u n),    x_start = a (known y + hole f) + s n.
Without the text this is inpainting by replacement with a warm start.
Hooks: plan, on_start, after_step.
"""

from dataclasses import dataclass

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import replace_known, skip_levels, warm_start
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class Blended(SamplingMethod):
    """The start is where a hole could leak: f is the source image in the official code, which edits it.

    Here f is the mean colour of the known pixels of the image, a guess that what is left out cannot correct; skip = 0
    starts from pure noise and is replacement, bit by bit. Known pixels have the level of the step's end, in the
    official code that of its beginning. At the end the hole is x0, what is outside y.
    """

    paper = "Avrahami, Lischinski, Fried 2022, arXiv 2111.14818"
    preset_steps = 100

    skip: float = setting(0.25, "part of the steps left out, the noisiest, rounded down: 25 of 100", low=0, high=0.99)

    def plan(self, times: list[float]) -> list[float]:
        return skip_levels(times, self.skip)

    def on_start(self, state: State) -> Tensor:
        return state.x if self.skip == 0 else warm_start(state)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return replace_known(state, x_next, state.next)
