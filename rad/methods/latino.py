"""LATINO: Latent Consistency Inverse Solver (Spagnoletti et al., ICCV 2025, arXiv 2503.12615).

One Langevin step for each network call, without gradients. The network G denoises a noisy latent in one call, as consistency
models do. Between two calls the estimate is decoded, moved towards the known pixels y, and encoded:

    p = clip(Dec(G(x))),   x0 = Enc(clip(z)),   z = argmin_z |z - p|^2 + (delta v / sigma_y^2) |known (y - z)|^2
    x_u = a_u x0 + s_u n,  v = s^2 / (a^2 + s^2),  fresh n

The minimum is z = y + w (p - y) on known pixels, with w = sigma_y^2 / (sigma_y^2 + delta v), and z = p in the hole.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import noise_to
from rad.models.latent_mask import prefill
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State


@dataclass(frozen=True)
class LATINO(SamplingMethod):
    """For models distilled to few steps (DMD2, LCM), with guidance 1. Estimates of other models are blurred at high noise.

    Defaults are the official inpainting script's, with 8 levels from 999 to 124. Differences from the official code: the hole of
    the start is filled by an image pyramid, not by repeated averages of 19x19 pixels; the last estimate is x0, not LCM's blend
    with x, which differs by less than 1e-6 at these levels. Prompt optimisation (LATINO-PRO) is not included.
    """

    paper = "Spagnoletti et al. 2025, arXiv 2503.12615"
    preset_steps = 8
    preset_spacing = "trailing"
    uses_eta = False

    delta: float = setting(1.0, "step size in the first half of the steps, no unit; official inpainting script", low=0)
    late_delta: float = setting(0.5, "step size in the second half; official inpainting script", low=0)
    sigma_y: float = setting(0.02, "deviation of the noise in known pixels, in units of [-1,1]; official", low=0)

    def on_start(self, state: State) -> Tensor:
        task = state.task
        filled = task.autoencoder.encode(prefill(task.image, task.image_hole, "smooth").clamp(-1, 1))
        return state.x + state.now.alpha_map(state.x) * (filled - task.known)

    def on_denoised(self, state: State, denoised: Denoised) -> Denoised:
        task, now = state.task, state.now
        pixels = task.autoencoder.decode(denoised.x0).clamp(-1, 1)
        delta = self.delta if 2 * state.step < state.steps else self.late_delta
        pull = delta * now.sigma.square() / (now.alpha.square() + now.sigma.square())
        gain = pull / (self.sigma_y**2 + pull).clamp(min=torch.finfo(pull.dtype).tiny)  # 1 - w
        near = torch.lerp(pixels, task.image, now.spread(gain.to(pixels.dtype)))
        return replace(denoised, x0=task.autoencoder.encode(torch.lerp(near, pixels, task.image_hole).clamp(-1, 1)))

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return noise_to(state, denoised.x0, state.next)
