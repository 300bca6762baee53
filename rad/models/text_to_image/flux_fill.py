"""Flux.1 Fill: Flux, trained for inpainting. Its tokens hold the noisy latents, the masked image's latents, and the mask.

The mask keeps its resolution: the 8x8 pixels of a latent cell are 64 channels, 1 = fill. The masked image is mid-grey in the
hole. With 16 latent channels and 2x2 cells in a token, the network reads 4 (16 + 16 + 64) = 384 channels and predicts 64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import InpaintingFlowDenoiser, Layout
from rad.models.text_to_image.flux import CELLS, FluxModel


class FluxFillModel(FluxModel):
    """Flux.1 Fill; `load_model` loads it."""

    for_inpainting = True
    guidance = 30.0

    @property
    def layout(self) -> Layout:
        config = self.transformer.config
        outputs = config["out_channels"] or config["in_channels"]
        return Layout(outputs // CELLS**2, CELLS, default=128, largest=512)

    def check_channels(self) -> None:
        """Raise ValueError if the network does not read latents, masked latents and a mask."""
        autoencoder, inputs = self.autoencoder, self.transformer.config["in_channels"]
        expected = CELLS**2 * (2 * autoencoder.channels + autoencoder.factor**2)
        if inputs != expected:
            raise ValueError(
                f"the network of {self.source} takes {inputs} channels; Flux Fill takes {expected} with this autoencoder: "
                "give the folder of a Flux Fill model"
            )

    def context(self, image: Tensor, hole: Tensor) -> Tensor:
        """Latents of the masked image and the mask, (B,C+f*f,H/f,W/f); arguments as of `InpaintingDenoiser.for_hole`."""
        side = self.autoencoder.factor
        cells = rearrange(hole, "b 1 (h p) (w q) -> b (p q) h w", p=side, q=side)
        return torch.cat([self.autoencoder.encode(image), cells], 1)

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> InpaintingFlowDenoiser:
        plain = super().denoiser(conditions, adapter=adapter)
        return InpaintingFlowDenoiser(plain, plain.velocity, self.context)
