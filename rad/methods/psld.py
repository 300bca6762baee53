"""PSLD. Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai, Solving Linear Inverse Problems Provably via Posterior Sampling with
Latent Diffusion Models, NeurIPS 2023, arXiv 2307.00619.

DPS for latents: besides the misfit of the known pixels a term glues the estimate to the latents that survive decoding, putting
the known pixels in, and encoding. With the decoder d = Dec(x0),

    x_u <- x_u - grad_x_t ( omega || known (y - d) || + gamma || x0 - Enc(known y + hole d) || )

through network, decoder and encoder. Hook: after_step.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import Space, norm, residual, squared_norm, vp_scale
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State
from rad.sampling.task import Task


@dataclass(frozen=True)
class PSLD(SamplingMethod):
    """Where space is "latent", or for a model of pixels, both terms are known (y - x0), and only omega + gamma counts.

    A norm has a gradient of unit length however small it is, so the step does not fade as the misfit does; norm "l2sq" takes its
    square, which does, and wants other weights. Unlike in the official code norms are those of each image, not of the batch.
    Steps, eta and weights are those of its script for inpainting. Known latents are pulled, never replaced.
    """

    paper = "Rout et al. 2023, arXiv 2307.00619"
    preset_steps = 1000
    preset_eta = 0.0
    needs_grad = True

    omega: float = setting(0.1, "weight of the misfit of known pixels; official script", low=0)
    gamma: float = setting(0.1, "weight of the gluing term; official script", low=0)
    norm: Literal["l2", "l2sq"] = setting("l2", "what is made of a difference: its norm, or the square of that")
    space: Space = setting("pixels", "where known values are compared: latent (no decoder, no encoder) or pixels")

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        gradient = state.denoiser.gradient(self.misfit(state.task, denoised.x0), state.x)
        return x_next - vp_scale(state.now, x_next) * vp_scale(state.next, x_next) * gradient

    def misfit(self, task: Task, x0: Tensor) -> Tensor:
        """(B,) of estimates x0 (B,C,H,W)."""
        length = norm if self.norm == "l2" else squared_norm
        if self.space == "latent":
            return (self.omega + self.gamma) * length(residual(task, x0))
        decoded = task.autoencoder.decode(x0)
        missing = (1 - task.image_hole) * (task.image - decoded)
        glued = task.autoencoder.encode(decoded + missing)
        return self.omega * length(missing) + self.gamma * length(x0 - glued)
