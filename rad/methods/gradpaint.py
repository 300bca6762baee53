"""GradPaint: Gradient-Guided Inpainting with Diffusion Models (Grechka, Couairon, Cord 2023, arXiv 2309.09614).

In the first 45% of the steps the state takes a gradient step of fixed length on a harmonisation loss of the estimate:

    L = mean over known pixels of (D(x_t) - y)^2 + w mean over the hole's border of (c_p - c_q)^2
    x_t <- x_t - kappa s_t sqrt(d) g / |g|,   g = grad L,   d values per image

c is D(x_t) in the hole and y around it; p and q are neighbours on the two sides of the border. The network is then evaluated
again, and known pixels are replaced after the step: x_u <- hole x_u + known (a_u y + s_u n).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.levels import per_image
from rad.diffusion.step import Denoised
from rad.methods.guidance import replace_known, squared_norm
from rad.models.vae import IDENTITY
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State
from rad.sampling.task import Task


@dataclass(frozen=True)
class GradPaint(SamplingMethod):
    """A reconstruction without official code; its constants are unknown. Call results "GradPaint-style".

    From the paper: both losses, the normalised gradient step on x_t, 45%, and replacement afterwards. Inferred: the means over
    known values and over pairs of 4-neighbours; the step's length s_t sqrt(d), an equal part of the noise at any level and size;
    250 steps; the new estimate at the moved x_t. For latents the paper found only the first loss useful. Both losses are then on
    latents, without a decoder.

    kappa in 0.005, 0.02, 0.05, 0.1 and the weight in 0, 0.1, 1 were chosen on 16 held-out photographs of 32x32 (base-nature32,
    60 steps, values in [0,1]). Against replacement the mean squared error in the hole falls from 0.0489 to 0.0446. The mean
    squared difference across the border falls from 0.0165 to 0.0136; the photographs have 0.0076.
    """

    paper = "Grechka, Couairon, Cord 2023, arXiv 2309.09614"
    reconstructed = True
    preset_steps = 250
    needs_grad = True

    kappa: float = setting(0.02, "root mean square move of a pixel in a step, in units of the noise s; inferred", low=0)
    alignment: float = setting(1.0, "weight of the loss across the hole's border; inferred", low=0)
    latent_alignment: float = setting(0.0, "the same for latent models, whose cells can differ; inferred", low=0)
    stop: float = setting(0.45, "fraction of the steps, the first, that descend the loss; the paper", low=0, high=1)

    def cost(self, timesteps: list[float]) -> Cost:
        plain = super().cost(timesteps).nfe
        active = math.ceil(self.stop * plain)
        return Cost(plain + active, active)

    def differentiates(self, state: State) -> bool:
        return False

    def before_denoise(self, state: State) -> Tensor:
        if state.step >= self.stop * state.steps:
            return state.x
        with torch.enable_grad():
            x = state.x.detach().requires_grad_()
            gradient = state.denoiser.gradient(self.loss(state.task, state.denoiser.denoise(x, state.now).x0), x)
        # Not `norm`: gradients of means are so small that its 1e-12 would count.
        direction = gradient / per_image(squared_norm(gradient).sqrt().clamp(min=torch.finfo(x.dtype).tiny))
        s = state.now.sigma_map(x)
        return state.x - self.kappa * s * math.sqrt(x[0].numel()) * direction

    def loss(self, task: Task, x0: Tensor) -> Tensor:
        """(B,) for estimates x0 (B,C,H,W); 0 without known pixels."""
        known, channels = 1 - task.hole, x0.shape[1]
        error = (known * (task.known - x0).square()).flatten(1).sum(1)
        mismatch = error / (channels * known.flatten(1).sum(1)).clamp(min=1e-12)
        composed = torch.lerp(task.known, x0, task.hole)
        differences, weights = x0.new_zeros(len(x0)), x0.new_zeros(len(x0))
        for axis in (2, 3):
            weight = task.hole.diff(dim=axis).abs()  # binary holes: 1 across the border, else 0
            differences = differences + (weight * composed.diff(dim=axis).square()).flatten(1).sum(1)
            weights = weights + channels * weight.flatten(1).sum(1)
        alignment = self.alignment if task.autoencoder is IDENTITY else self.latent_alignment
        return mismatch + alignment * differences / weights.clamp(min=1e-12)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return replace_known(state, x_next, state.next)
