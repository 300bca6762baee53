"""DAPS: Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (Zhang et al. 2024, arXiv 2407.01521).

At each level, with sigma = s / a, K Euler steps of the ODE lead from x_t to a clean x0. x0 is then drawn from the product of
N(x0, sigma^2) and the likelihood N(y; x0, tau^2 / 2) of known pixels. Finally x_u = a_u x0 + s_u n starts afresh.

In the model's space the product is exact: known pixels are N(x0 + g (y - x0), g tau^2 / 2), g = 2 sigma^2 / (2 sigma^2 + tau^2).
Decoded pixels need the paper's M Langevin steps from z = x0, with the decoder's Jacobian J:
z <- z + h [(x0 - z) / sigma^2 + 2 J^T known (y - Dec(z)) / tau^2] + sqrt(2 h) n.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, per_image
from rad.diffusion.step import Denoised, noised, reverse_step
from rad.methods.guidance import Space, data_gradient, squared_norm
from rad.models.vae import IDENTITY, Autoencoder
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State

Hole = Literal["mean", "draw"]
MCMC = Literal["exact", "langevin"]


@dataclass(frozen=True)
class DAPS(SamplingMethod):
    """DAPS-1k: 200 levels of 5 NFE. eta has no effect, because x_u depends on x_t only through x0.

    hole "mean" keeps the hole at x0; the official code nearly does so, since its few Langevin steps hardly move it. "draw" is
    the paper's product, x0 + sigma n, which varies far too much. As in the official code the likelihood lacks a factor 1/2: the
    deviation of y is tau / sqrt(2). With mcmc "langevin" and hole "mean" the hole gets no noise, and follows only the known
    values that the decoder mixes into it.

    Differences from the paper: levels are the sampler's (200 in [0.1, 100] by EDM's rule, rho = 7). The ODE visits
    t (1 - k / K)^2, near that rule below t = 500 of a linear schedule, and ends at the clean level (sigma = 0.01). Langevin
    steps are limited to a stable length; the official one is fixed.
    """

    paper = "Zhang et al. 2024, arXiv 2407.01521"
    preset_steps = 200
    preset_eta = 0.0
    uses_eta = False

    calls: int = setting(5, "K, Euler steps of the ODE at each level; fewer at the last levels", low=1)
    tau: float = setting(0.01, "sqrt(2) times the noise in known pixels, in units of [-1,1]; 0: they are y", low=0)
    hole: Hole = setting("mean", 'content of the hole between ODE and noise: "mean" x0, "draw" x0 + sigma n')
    space: Space = setting("latent", "where to compare known values: latent, or decoded pixels, which needs langevin")
    mcmc: MCMC = setting("exact", "how to draw from the product: exact, or langevin by M steps")
    iterations: int = setting(20, "M, Langevin steps at each level; 20 in the DInG paper", low=0)
    rate: float = setting(9e-6, "h, length of a Langevin step, if stable; the DInG paper's for a box", low=0)
    decay: float = setting(
        0.43, "fraction of the rate that is left after the last level; the DInG paper's", low=0, high=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mcmc == "langevin" and self.tau == 0:
            raise ValueError('tau is 0; with mcmc "langevin" it must be above 0')

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(sum(len(self.ode_timesteps(t)) for t in timesteps[:-1]))

    def check_autoencoder(self, autoencoder: Autoencoder) -> None:
        if self.mcmc == "exact" and self.space == "pixels" and autoencoder is not IDENTITY:
            raise ValueError('daps: mcmc is "exact", which a decoder rules out: use mcmc "langevin", or space "latent"')

    def on_start(self, state: State) -> Tensor:
        self.check_autoencoder(state.task.autoencoder)
        return state.x

    def ode_timesteps(self, t: float) -> list[int]:
        """Timesteps at which the ODE from t calls the network."""
        return sorted({math.floor(t * (1 - k / self.calls) ** 2 + 0.5) for k in range(self.calls)}, reverse=True)

    def on_denoised(self, state: State, denoised: Denoised) -> Denoised:
        x, estimate, now = state.x, denoised, state.now
        for t in self.ode_timesteps(state.timestep)[1:]:
            level = state.level(t)
            x = reverse_step(x, estimate, now, level, eta=0)
            estimate, now = state.denoiser.denoise(x, level), level
        x0 = reverse_step(x, estimate, now, state.level(CLEAN), eta=0)
        return Denoised(self.inner(state, x0))

    def inner(self, state: State, x0: Tensor) -> Tensor:
        """Draw of the clean image (B,C,H,W), given y and the end x0 (B,C,H,W) of the ODE."""
        if self.mcmc == "langevin":
            return self.langevin(state, x0)
        sigma = state.now.spread((state.now.sigma / state.now.alpha).to(x0.dtype))
        fresh = state.randn()
        gain = 2 * sigma.square() / (2 * sigma.square() + self.tau**2)
        known = torch.lerp(x0, state.task.known, gain) + (gain / 2).sqrt() * self.tau * fresh
        hole = x0 if self.hole == "mean" else x0 + sigma * fresh
        return torch.lerp(known, hole, state.task.hole)

    def langevin(self, state: State, x0: Tensor) -> Tensor:
        """`inner` by M Langevin steps from x0, each at most half as long as the stable length along J^T r."""
        variance = state.now.spread((state.now.sigma / state.now.alpha).square().to(x0.dtype))
        rate = self.rate * (1 - (1 - self.decay) * state.step / state.steps)
        noisy, z = 1 - state.task.hole if self.hole == "mean" else 1.0, x0
        for _ in range(self.iterations):
            change, difference = data_gradient(state.task, z, self.space)
            gain = per_image(squared_norm(change) / squared_norm(difference).clamp(min=torch.finfo(z.dtype).tiny))
            size = (0.5 / (1 / variance + 2 * gain / self.tau**2)).clamp(max=rate)
            drift = (x0 - z) / variance + 2 * change / self.tau**2
            z = z + size * drift + noisy * (2 * size).sqrt() * state.randn()
        return z

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if state.is_clean(state.next):
            return denoised.x0
        return noised(denoised.x0, state.next, noise=state.randn())
