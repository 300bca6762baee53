"""DDNM, DDNM+. Wang, Yu, Zhang, Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, 2023,
arXiv 2212.00490.

What the estimate says of the known pixels is replaced by the known image y before each step t -> u:
z = hole x0 + known y, e = (x - a_t x0) / s_t from the estimate before that, n fresh,
    form "ddnm":       x_u = a_u z + s_u (eta n + sqrt(1 - eta^2) e)      (eta = 1: all noise is fresh; not DDPM)
    form "posterior":  x_u ~ q(x_u | x_t, z), the step of DDPM
DDNM+, for y with noise sigma_y: a step that puts z into x_u with weight c and adds noise of deviation d (a_u and s_u,
or those of q) has on known pixels z = x0 + l (y - x0), so that the noise of y is a part of the step's:
    d >= c sigma_y:  l = 1,                                      noise sqrt(d^2 - c^2 sigma_y^2) n
    otherwise:       l = sqrt(1 - eta^2) d / (c sigma_y),        noise eta d n                    (posterior: eta = 0)
Time travel goes back up by `travel_length` levels with the forward process and down again.
Hooks: plan, after_step.
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
    """Few steps and no gradient; biased, less so with more steps.

    The official "simplified" path adds too little noise (s_u twice); this is its path by singular values. There known
    pixels take part of their noise from the model if y is clean, and none of it however little noise y has: "fresh" is
    the continuous choice, "model" the official one, and nearer to the posterior. Travel is by the forward process from
    x, not from an estimate before its correction, and the levels are the sampler's, from the noisiest on.
    """

    paper = "Wang, Yu, Zhang 2023, arXiv 2212.00490"
    preset_steps = 100
    preset_eta = 0.0  # nothing is drawn for the loop's own step, which is not used
    uses_eta = False

    eta: float = setting(0.85, "fresh noise in a step of form ddnm, no unit: 0 none, 1 all of it", low=0, high=1)
    sigma_y: float = setting(
        0.0, "noise in known pixels, in units of [-1,1], DDNM+; denoised ones are in --raw only", low=0
    )
    travel_length: int = setting(1, "levels of a time travel; 10 in the paper's large-scale setting", low=1)
    travel_repeat: int = setting(1, "how often each stretch is gone through, 1 is no travel; 3 in the same", low=1)
    form: Form = setting("ddnm", "step: ddnm (with eta) or posterior (DDPM's)")
    known_noise: KnownNoise = setting("model", "noise of known pixels if sigma_y is 0: model (as in the hole) or fresh")

    def plan(self, times: list[float]) -> list[float]:
        return time_travel(times, length=self.travel_length, visits=self.travel_repeat)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        known, x, x0, now, nxt = state.task.known, state.x, denoised.x0, state.now, state.next
        fresh = state.draw()
        if self.form == "posterior":
            levels = step_levels(now, nxt)
            weight, deviation = nxt.alpha * levels.b / now.sigma.square(), levels.posterior.sqrt()
            trust, left = (nxt.spread(part.to(x.dtype)) for part in self._trust(weight, deviation, eta=0))
            fill = reverse_step(x, denoised, now, nxt, eta=1, noise=fresh)
            kept = posterior_mean(x, torch.lerp(x0, known, trust), now, nxt) + left * fresh
        else:
            a, s = nxt.alpha_map(x), nxt.sigma_map(x)
            parts = self._trust(nxt.alpha, nxt.sigma, eta=self.eta)
            trust, left = (nxt.spread(part.to(x.dtype)) for part in parts)
            mixed = self.eta * fresh + math.sqrt(1 - self.eta**2) * predicted_noise(x, x0, now)
            fill = a * x0 + s * mixed
            as_model = self.known_noise == "model" and self.sigma_y == 0
            kept = a * torch.lerp(x0, known, trust) + left * (mixed if as_model else fresh)
        return torch.lerp(kept, fill, state.task.hole)

    def _trust(self, weight: Tensor, deviation: Tensor, *, eta: float) -> tuple[Tensor, Tensor]:
        """l and the deviation of the noise that is left to add on known pixels, for the levels (B,K) of c and d."""
        of_y = weight * self.sigma_y
        enough = deviation >= of_y
        part = math.sqrt(1 - eta**2) * deviation / torch.where(enough, 1.0, of_y)
        left = (deviation.square() - of_y.square()).clamp(min=0).sqrt()
        return torch.where(enough, 1.0, part), torch.where(enough, left, eta * deviation)
