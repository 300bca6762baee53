"""DAPS. Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, 2024, arXiv 2407.01521.

At each level, with sigma = s / a: K Euler steps of the ODE lead from x_t to a clean x0; x0 is then drawn from the product
of N(x0, sigma^2) and the likelihood N(y; x0, tau^2 / 2) of known pixels; and x_u = a_u x0 + s_u n starts afresh.
For inpainting the product is known pixel by pixel, so the paper's Langevin steps are not needed: with
g = 2 sigma^2 / (2 sigma^2 + tau^2), known pixels are N(x0 + g (y - x0), g tau^2 / 2).
Hooks: on_estimate, after_step.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.process import CLEAN
from rad.sampler import Cost, SamplingCallback, State, setting
from rad.step import Estimate, noised, reverse_step

Hole = Literal["mean", "draw"]


@dataclass(frozen=True)
class DAPS(SamplingCallback):
    """DAPS-1k: 200 levels of 5 network calls.

    hole: "mean" keeps the hole at x0, as the official code nearly does, whose Langevin steps are too few to move it; "draw" is
    the product that the paper declares, x0 + sigma n, which varies much too much. As in the official code the likelihood
    lacks a factor 1/2, so tau / sqrt(2) is the deviation of y. The levels are the sampler's (the paper: 200 in [0.1, 100]
    by EDM's rule, rho = 7). The ODE's are at times t (1 - k / K)^2, which for the usual linear schedule are near that rule
    below t = 500, and it ends at the clean level (the paper: sigma = 0.01). No eta: nothing links x_u to x_t but x0.
    """

    paper = "Zhang et al. 2024, arXiv 2407.01521"
    preset_steps = 200
    preset_eta = 0.0
    uses_eta = False

    calls: int = setting(5, "K, Euler steps of the ODE at each level; fewer at the last levels", low=1)
    tau: float = setting(0.01, "sqrt(2) times the noise in known pixels, in units of [-1,1]; 0: they are y", low=0)
    hole: Hole = setting("mean", 'what the hole becomes between ODE and noise: "mean" x0, "draw" x0 + sigma n')

    def cost(self, times: list[int]) -> Cost:
        return Cost(sum(len(self.times(t)) for t in times[:-1]))

    def times(self, t: int) -> list[int]:
        """The levels at which the ODE from t calls the network."""
        return sorted({math.floor(t * (1 - k / self.calls) ** 2 + 0.5) for k in range(self.calls)}, reverse=True)

    def on_estimate(self, state: State) -> Estimate:
        assert state.estimate is not None
        x, estimate, now = state.x, state.estimate, state.now
        for t in self.times(state.time)[1:]:
            level = state.level(t)
            x = reverse_step(x, estimate, now, level, eta=0)
            estimate, now = state.prior.estimate(x, level), level
        x0 = reverse_step(x, estimate, now, state.level(CLEAN), eta=0)
        return Estimate(self.inner(state, x0))

    def inner(self, state: State, x0: Tensor) -> Tensor:
        """A draw of the clean image given the end x0 of the ODE, and y."""
        sigma = state.now.spread((state.now.levels_s / state.now.levels_a).to(x0.dtype))
        fresh = state.draw()
        gain = 2 * sigma.square() / (2 * sigma.square() + self.tau**2)
        known = torch.lerp(x0, state.task.known, gain) + (gain / 2).sqrt() * self.tau * fresh
        hole = x0 if self.hole == "mean" else x0 + sigma * fresh
        return torch.lerp(known, hole, state.task.hole)

    def after_step(self, state: State, x_next: Tensor) -> Tensor:
        assert state.estimate is not None
        if not bool((state.next.levels_s > 0).any()):
            return state.estimate.x0
        return noised(state.estimate.x0, state.next, noise=state.draw())
