"""DDRM, inpainting. Kawar, Elad, Ermon, Song, Denoising Diffusion Restoration Models, 2022, arXiv 2201.11793.

A variational posterior in the basis of singular vectors, which for a mask are the pixels (value 1 known, 0 hole).
With e = (x - a_t x0) / s_t, known image y with noise sigma_y, n fresh, a step t -> u is
    hole:                        x_u = a_u x0 + s_u (eta n + sqrt(1 - eta^2) e)
    known, s_u >= a_u sigma_y:   x_u = a_u (eta_b y + (1 - eta_b) x0) + sqrt(s_u^2 - eta_b^2 a_u^2 sigma_y^2) n
    known, otherwise:            x_u = a_u x0 + sqrt(1 - eta^2) s_u (y - x0) / sigma_y + eta s_u n
(the paper's equations are for x / a and sigma = s / a).
Hook: after_step.
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

    In the official code neither of the two cases holds at the clean end of a noiseless task (0 > 0, 0 < 0), and known
    pixels end as x0; here they end as y. Its levels leave out the noisiest, ours start there.
    """

    paper = "Kawar, Elad, Ermon, Song 2022, arXiv 2201.11793"
    preset_steps = 20
    preset_eta = 0.0  # nothing is drawn for the loop's own step, which is not used
    uses_eta = False

    eta: float = setting(0.85, "fresh noise in a step, no unit: 0 none, 1 all of it", low=0, high=1)
    eta_b: float = setting(1.0, "weight of y against x0 on known pixels, no unit", low=0, high=1)
    sigma_y: float = setting(0.0, "noise in known pixels, in units of [-1,1]; denoised ones are in --raw only", low=0)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x, x0, nxt = state.x, denoised.x0, state.next
        a, s = nxt.alpha_map(x), nxt.sigma_map(x)
        from_model, fresh = math.sqrt(1 - self.eta**2), state.draw()
        fill = a * x0 + s * (self.eta * fresh + from_model * predicted_noise(x, x0, state.now))
        of_y = a * self.sigma_y
        enough = s >= of_y
        on_y = torch.where(enough, self.eta_b, from_model * s / torch.where(enough, 1.0, of_y))
        left = (s.square() - (self.eta_b * of_y).square()).clamp(min=0).sqrt()
        kept = a * torch.lerp(x0, state.task.known, on_y) + torch.where(enough, left, self.eta * s) * fresh
        return torch.lerp(kept, fill, state.task.hole)
