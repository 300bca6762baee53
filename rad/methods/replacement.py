"""Replacement ("imputation"). Song et al., Score-Based Generative Modeling through SDEs, 2021, arXiv 2011.13456, appendix I.2.

After each reverse step the known pixels are overwritten by the known image at the new noise level:
x_u <- hole x_u + known (a_u y + s_u n). Hook: after_step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.sampler import SamplingCallback, State
from rad.step import noised


@dataclass(frozen=True)
class Replacement(SamplingCallback):
    """No settings. Known to be biased: the hole sees the known pixels only through its own noise (no resampling)."""

    def after_step(self, state: State, x_next: Tensor) -> Tensor:
        known = state.task.known
        if state.next_time >= 0:
            known = noised(known, state.next, noise=state.draw())
        return torch.lerp(known, x_next, state.task.hole)
