"""Differential Diffusion. Levin, Fried, Differential Diffusion: Giving Each Pixel Its Strength, 2023, arXiv 2306.00950.

Each pixel is held at the noised known image until its own time, and follows the reverse process from then on. After
step i = 1..N, which ends at level u,
    x_u <- a_u y + s_u n  where  N hole <= N - i,
so a pixel with hole = h goes through the last h N steps itself (rounded up): h is the strength of the change.
Hook: after_step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import known_at
from rad.sampling.method import SamplingMethod
from rad.sampling.state import State


@dataclass(frozen=True)
class Differential(SamplingMethod):
    """No settings: the method lies in the soft mask. For one of 0 and 1 it is replacement, bit by bit.

    The network is told one level for all pixels, held or not. Unlike in the official code pixels that are to be filled
    start from noise around grey, for it would show their original; and pixels that are held to the end are y there.
    Noise is fresh at each level, and a pixel is held until h N steps are left (official: h N + 1 where that is whole). Steps
    and eta are not the paper's, which takes those of the model that it is used with.
    """

    paper = "Levin, Fried 2023, arXiv 2306.00950"

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        held = state.steps * state.task.hole <= state.steps - (state.step + 1)
        return torch.where(held, known_at(state, state.next), x_next)
