"""DDNM and DDNM+: Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model (Wang et al. 2023, arXiv 2212.00490).

Before each step t -> u the known image y replaces known pixels of the estimate: z = hole x0 + known y. With
e = (x - a_t x0) / s_t, from the estimate before that, and fresh n,

    form "ddnm":       x_u = a_u z + s_u (eta n + sqrt(1 - eta^2) e)      (eta = 1: all noise is fresh; not DDPM)
    form "posterior":  x_u ~ q(x_u | x_t, z), the step of DDPM

DDNM+ is for y with noise sigma_y. A step weights z by c and adds noise of deviation d: a_u and s_u, or those of q. On known
pixels z = x0 + l (y - x0), and the noise of y is a part of the step's noise:

    d >= c sigma_y:  l = 1,                                      noise sqrt(d^2 - c^2 sigma_y^2) n
    otherwise:       l = sqrt(1 - eta^2) d / (c sigma_y),        noise eta d n                    (posterior: eta = 0)

Time travel goes up by `travel_length` levels with the forward process and down again.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.spacings import time_travel
from rad.diffusion.step import Denoised, posterior_mean, reverse_step, step_levels
from rad.methods.guidance import predicted_noise
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State

Form = Literal["ddnm", "posterior"]
KnownNoise = Literal["model", "fresh"]


@dataclass(frozen=True)
class DDNM(SamplingMethod):
    """Few steps and no gradient; biased, less with more steps.

    Differences from the official code: its "simplified" path adds too little noise (s_u twice); this is its path by singular
    values. There known pixels take noise from the model only for an exactly clean y: "model", nearer to the posterior.
    "fresh" is continuous in sigma_y. Travel starts from x, not from an estimate before its correction. Levels: the sampler's.
    """

    paper = "Wang, Yu, Zhang 2023, arXiv 2212.00490"
    preset_steps = 100
    preset_eta = 0.0  # the loop's own step, which the method replaces, needs no noise
    uses_eta = False

    eta: float = setting(0.85, "fresh noise in a step of form ddnm, no unit: 0 none, 1 all of it", low=0, high=1)
    sigma_y: float = setting(
        0.0, "noise in known pixels, in units of [-1,1], DDNM+; only --raw shows them denoised", low=0
    )
    travel_length: int = setting(1, "levels of a time travel; 10 in the paper's large-scale setting", low=1)
    travel_repeat: int = setting(1, "passes through each stretch; 1: no travel; 3 in that setting", low=1)
    form: Form = setting("ddnm", "step: ddnm (with eta) or posterior (DDPM's)")
    known_noise: KnownNoise = setting("model", "noise of known pixels if sigma_y is 0: model (as in the hole) or fresh")

    def plan(self, timesteps: list[float]) -> list[float]:
        return time_travel(timesteps, length=self.travel_length, visits=self.travel_repeat)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        y, x, x0, now, nxt = state.task.known, state.x, denoised.x0, state.now, state.next
        fresh = state.randn()
        if self.form == "posterior":
            levels = step_levels(now, nxt)
            weight, deviation = nxt.alpha * levels.b / now.sigma.square(), levels.posterior.sqrt()
            trust, left = (nxt.spread(part.to(x.dtype)) for part in self._trust(weight, deviation, eta=0))
            fill = reverse_step(x, denoised, now, nxt, eta=1, noise=fresh)
            known = posterior_mean(x, torch.lerp(x0, y, trust), now, nxt) + left * fresh
        else:
            a, s = nxt.alpha_map(x), nxt.sigma_map(x)
            parts = self._trust(nxt.alpha, nxt.sigma, eta=self.eta)
            trust, left = (nxt.spread(part.to(x.dtype)) for part in parts)
            mixed = self.eta * fresh + math.sqrt(1 - self.eta**2) * predicted_noise(x, x0, now)
            fill = a * x0 + s * mixed
            as_model = self.known_noise == "model" and self.sigma_y == 0
            known = a * torch.lerp(x0, y, trust) + left * (mixed if as_model else fresh)
        return torch.lerp(known, fill, state.task.hole)

    def _trust(self, weight: Tensor, deviation: Tensor, *, eta: float) -> tuple[Tensor, Tensor]:
        """l, and the deviation of the noise on known pixels, for c and d of the levels, (B,K)."""
        noise_of_y = weight * self.sigma_y
        enough = deviation >= noise_of_y
        part = math.sqrt(1 - eta**2) * deviation / torch.where(enough, 1.0, noise_of_y)
        left = (deviation.square() - noise_of_y.square()).clamp(min=0).sqrt()
        return torch.where(enough, 1.0, part), torch.where(enough, left, eta * deviation)
