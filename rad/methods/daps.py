"""DAPS. Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, 2024, arXiv 2407.01521.

At each level, with sigma = s / a: K Euler steps of the ODE lead from x_t to a clean x0; x0 is then drawn from the product
of N(x0, sigma^2) and the likelihood N(y; x0, tau^2 / 2) of known pixels; and x_u = a_u x0 + s_u n starts afresh.
For inpainting the product is known pixel by pixel, so the paper's Langevin steps are not needed: with
g = 2 sigma^2 / (2 sigma^2 + tau^2), known pixels are N(x0 + g (y - x0), g tau^2 / 2). Where y is compared with a decoded x0 they
are: M steps z <- z + h [(x0 - z) / sigma^2 + 2 J^T known (y - Dec(z)) / tau^2] + sqrt(2 h) n from z = x0, J that of the decoder.
Hooks: on_start, on_denoised, after_step.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, per_image
from rad.diffusion.step import Denoised, noised, reverse_step
from rad.methods.guidance import Space, data_gradient, squared_norm
from rad.models.vae import IDENTITY
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State

Hole = Literal["mean", "draw"]
MCMC = Literal["exact", "langevin"]


@dataclass(frozen=True)
class DAPS(SamplingMethod):
    """DAPS-1k: 200 levels of 5 network calls.

    hole: "mean" keeps the hole at x0, as the official code nearly does, whose Langevin steps are too few to move it; "draw" is
    the product that the paper declares, x0 + sigma n, which varies much too much. As in the official code the likelihood
    lacks a factor 1/2, so tau / sqrt(2) is the deviation of y. The levels are the sampler's (the paper: 200 in [0.1, 100]
    by EDM's rule, rho = 7). The ODE's are at times t (1 - k / K)^2, which for the usual linear schedule are near that rule
    below t = 500, and it ends at the clean level (the paper: sigma = 0.01). No eta: nothing links x_u to x_t but x0.
    mcmc "langevin" draws from the same product by M steps; with hole "mean" no noise goes into the hole, which then follows only
    the known values that the decoder mixes with it. The official code's steps have a set length, whatever the decoder does.
    """

    paper = "Zhang et al. 2024, arXiv 2407.01521"
    preset_steps = 200
    preset_eta = 0.0
    uses_eta = False

    calls: int = setting(5, "K, Euler steps of the ODE at each level; fewer at the last levels", low=1)
    tau: float = setting(0.01, "sqrt(2) times the noise in known pixels, in units of [-1,1]; 0: they are y", low=0)
    hole: Hole = setting("mean", 'what the hole becomes between ODE and noise: "mean" x0, "draw" x0 + sigma n')
    space: Space = setting("latent", "where known values are compared: latent, or decoded pixels, which needs langevin")
    mcmc: MCMC = setting("exact", "how the product is drawn: exact, or langevin by M steps")
    iterations: int = setting(20, "M, Langevin steps at each level; ding's 20", low=0)
    rate: float = setting(9e-6, "h, length of a Langevin step, unless that is unstable; ding's for a box", low=0)
    decay: float = setting(0.43, "part of the rate that is left after the last level; ding's 0.43", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mcmc == "langevin" and self.tau == 0:
            raise ValueError('tau is 0; with mcmc "langevin" it must be above 0')

    def cost(self, times: list[float]) -> Cost:
        return Cost(sum(len(self.times(t)) for t in times[:-1]))

    def on_start(self, state: State) -> Tensor:
        if self.mcmc == "exact" and self.space == "pixels" and state.task.autoencoder is not IDENTITY:
            raise ValueError('daps: mcmc is "exact", which a decoder rules out: use mcmc "langevin", or space "latent"')
        return state.x

    def times(self, t: float) -> list[int]:
        """The levels at which the ODE from t calls the network."""
        return sorted({math.floor(t * (1 - k / self.calls) ** 2 + 0.5) for k in range(self.calls)}, reverse=True)

    def on_denoised(self, state: State, denoised: Denoised) -> Denoised:
        x, estimate, now = state.x, denoised, state.now
        for t in self.times(state.time)[1:]:
            level = state.level(t)
            x = reverse_step(x, estimate, now, level, eta=0)
            estimate, now = state.denoiser.denoise(x, level), level
        x0 = reverse_step(x, estimate, now, state.level(CLEAN), eta=0)
        return Denoised(self.inner(state, x0))

    def inner(self, state: State, x0: Tensor) -> Tensor:
        """A draw of the clean image given the end x0 of the ODE, and y."""
        if self.mcmc == "langevin":
            return self.langevin(state, x0)
        sigma = state.now.spread((state.now.sigma / state.now.alpha).to(x0.dtype))
        fresh = state.draw()
        gain = 2 * sigma.square() / (2 * sigma.square() + self.tau**2)
        known = torch.lerp(x0, state.task.known, gain) + (gain / 2).sqrt() * self.tau * fresh
        hole = x0 if self.hole == "mean" else x0 + sigma * fresh
        return torch.lerp(known, hole, state.task.hole)

    def langevin(self, state: State, x0: Tensor) -> Tensor:
        """The same by M steps of Langevin dynamics from x0, never longer than half of what is stable for what is seen of J."""
        variance = state.now.spread((state.now.sigma / state.now.alpha).square().to(x0.dtype))
        rate = self.rate * (1 - (1 - self.decay) * state.step / state.steps)
        noisy, z = 1 - state.task.hole if self.hole == "mean" else 1.0, x0
        for _ in range(self.iterations):
            pulled, missing = data_gradient(state.task, z, self.space)
            gain = per_image(squared_norm(pulled) / squared_norm(missing).clamp(min=torch.finfo(z.dtype).tiny))
            size = (0.5 / (1 / variance + 2 * gain / self.tau**2)).clamp(max=rate)
            moved = (x0 - z) / variance + 2 * pulled / self.tau**2
            z = z + size * moved + noisy * (2 * size).sqrt() * state.draw()
        return z

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if not bool((state.next.sigma > 0).any()):
            return denoised.x0
        return noised(denoised.x0, state.next, noise=state.draw())
