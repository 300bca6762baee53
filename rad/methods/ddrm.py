"""DDRM: Denoising Diffusion Restoration Models, inpainting (Kawar, Elad, Ermon, Song 2022, arXiv 2201.11793).

A variational posterior in the basis of singular vectors; for a mask these are the pixels (value 1 known, 0 hole). With
e = (x - a_t x0) / s_t, the known image y with noise sigma_y, and fresh n, a step t -> u is

    hole:                        x_u = a_u x0 + s_u (eta n + sqrt(1 - eta^2) e)
    known, s_u >= a_u sigma_y:   x_u = a_u (eta_b y + (1 - eta_b) x0) + sqrt(s_u^2 - eta_b^2 a_u^2 sigma_y^2) n
    known, otherwise:            x_u = a_u x0 + sqrt(1 - eta^2) s_u (y - x0) / sigma_y + eta s_u n

The paper's equations are for x / a and sigma = s / a.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import predicted_noise
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class DDRM(SamplingMethod):
    """Very few steps and no gradient; weak in large holes.

    Differences from the official code: known pixels end as y. For noiseless tasks the official cases exclude the clean level
    (0 > 0, 0 < 0), and known pixels end as x0. The official levels skip the noisiest; ours start there.
    """

    paper = "Kawar, Elad, Ermon, Song 2022, arXiv 2201.11793"
    preset_steps = 20
    preset_eta = 0.0  # the loop's own step, which the method replaces, needs no noise
    uses_eta = False

    eta: float = setting(0.85, "fresh noise in a step, no unit: 0 none, 1 all of it", low=0, high=1)
    eta_b: float = setting(1.0, "weight of y against x0 on known pixels, no unit", low=0, high=1)
    sigma_y: float = setting(0.0, "noise in known pixels, in units of [-1,1]; only --raw shows them denoised", low=0)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x, x0, nxt = state.x, denoised.x0, state.next
        a, s = nxt.alpha_map(x), nxt.sigma_map(x)
        from_model, fresh = math.sqrt(1 - self.eta**2), state.randn()
        fill = a * x0 + s * (self.eta * fresh + from_model * predicted_noise(x, x0, state.now))
        noise_of_y = a * self.sigma_y
        enough = s >= noise_of_y
        on_y = torch.where(enough, self.eta_b, from_model * s / torch.where(enough, 1.0, noise_of_y))
        left = (s.square() - (self.eta_b * noise_of_y).square()).clamp(min=0).sqrt()
        known = a * torch.lerp(x0, state.task.known, on_y) + torch.where(enough, left, self.eta * s) * fresh
        return torch.lerp(known, fill, state.task.hole)
