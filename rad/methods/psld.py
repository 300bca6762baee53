"""PSLD: Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models (Rout et al.,
NeurIPS 2023, arXiv 2307.00619).

DPS for latents. A second term draws the estimate to latents that survive decoding, replacing known pixels, and encoding. With
the decoded d = Dec(x0), the gradient of each step runs through network, decoder and encoder:

    x_u <- x_u - grad_x_t ( omega || known (y - d) || + gamma || x0 - Enc(known y + hole d) || )
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import Space, data_shift, norm, residual, squared_norm
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State
from rad.sampling.task import Task


@dataclass(frozen=True)
class PSLD(SamplingMethod):
    """Defaults are the official inpainting script's. Known latents are guided, never replaced.

    In space "latent", and for pixel models, both terms are known (y - x0), and only omega + gamma counts. A norm's gradient has
    length 1 at any misfit: the step does not fade. norm "l2sq" fades, and needs other weights. Difference from the official code:
    norms are of each image, not of the batch.
    """

    paper = "Rout et al. 2023, arXiv 2307.00619"
    preset_steps = 1000
    preset_eta = 0.0
    needs_grad = True

    omega: float = setting(0.1, "weight of the known pixels' misfit; official script", low=0)
    gamma: float = setting(0.1, "weight of the gluing term; official script", low=0)
    norm: Literal["l2", "l2sq"] = setting("l2", "loss of a difference: its norm, or the norm squared")
    space: Space = setting("pixels", "where to compare known values: latent (no decoder, no encoder) or pixels")

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return x_next - data_shift(state, self.misfit(state.task, denoised.x0))

    def misfit(self, task: Task, x0: Tensor) -> Tensor:
        """(B,) loss of estimates x0 (B,C,H,W)."""
        length = norm if self.norm == "l2" else squared_norm
        if self.space == "latent":
            return (self.omega + self.gamma) * length(residual(task, x0))
        decoded = task.autoencoder.decode(x0)
        difference = (1 - task.image_hole) * (task.image - decoded)
        glued = task.autoencoder.encode(decoded + difference)
        return self.omega * length(difference) + self.gamma * length(x0 - glued)
