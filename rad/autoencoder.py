"""The autoencoder of a latent model as a codec: diffusers' AutoencoderKL (Stable Diffusion) or VQModel (latent diffusion).

Latents in the units of the denoiser are z = (mean - shift) scaling.
"""

from typing import Any

import torch
from torch import Tensor


class Autoencoder:
    """A `rad.codec.Codec`.

    Args:
        module: `AutoencoderKL` or `VQModel`. It always runs in float32, for half precision overflows in it.
    """

    def __init__(self, module: Any) -> None:
        self.module = module.float().eval().requires_grad_(False)
        self.factor: int = 2 ** (len(module.config["block_out_channels"]) - 1)
        self.channels: int = module.config["latent_channels"]
        self.scaling: float = module.config["scaling_factor"]
        self.shift: float = module.config.get("shift_factor") or 0.0

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,c,H/factor,W/factor): the mean of the posterior; of a VQModel before it is quantised."""
        with torch.autocast(pixels.device.type, enabled=False):
            encoded = self.module.encode(pixels.float())
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents - self.shift) * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """The way back; pixels may leave [-1,1]. Differentiable."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.module.decode(latents.float() / self.scaling + self.shift).sample
