"""Differential Diffusion: Giving Each Pixel Its Strength (Levin, Fried 2023, arXiv 2306.00950).

Pixels equal the noised known image until their own step, then follow the reverse process. After step i = 1..N, t -> u,

    x_u <- a_u y + s_u n   where   N hole <= N - i

The hole value h is the strength of the change: a pixel takes the last h N steps, rounded up.
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
    """Has no settings: the soft mask controls it. For a binary mask it is replacement, bit for bit.

    The network reads one level for all pixels. Differences from the official code: the hole starts from noise around grey, since
    its original must stay hidden. Pixels with hole = 0 are y at the end. Noise is fresh at each level. A pixel is held until h N
    steps are left (official: h N + 1 if that is whole). The paper names no steps and no eta; the preset's are inferred.
    """

    paper = "Levin, Fried 2023, arXiv 2306.00950"

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        held = state.steps * state.task.hole <= state.steps - (state.step + 1)
        return torch.where(held, known_at(state, state.next), x_next)
