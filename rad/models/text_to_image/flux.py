"""Flux: tokens of 2x2 latent cells; the guidance is an input of the network (dev), or there is none (schnell).

Flux.1 Fill also reads the masked image and the mask.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from einops import rearrange
from torch import Tensor

from rad.diffusion.processes import Flow
from rad.models.adapter import Kind
from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import (
    CELLS,
    FlowDenoiser,
    FlowModel,
    InpaintingFlowDenoiser,
    Layout,
    from_tokens,
    table_of_levels,
    to_tokens,
    token_places,
)
from rad.models.text_to_image.prompts import Text, encode_flux

if TYPE_CHECKING:
    from rad.networks.unet import EmbeddingKind


class FluxModel(FlowModel):
    """Flux; `load_model` loads it."""

    kind: Kind = "flux"
    guidance = 3.5
    encode = staticmethod(encode_flux)
    sigmas = staticmethod(table_of_levels)

    @property
    def layout(self) -> Layout:
        return Layout(self.transformer.config["in_channels"] // CELLS**2, CELLS, default=128, largest=512)

    def velocity(
        self,
        x: Tensor,
        times: Tensor,
        text: Text,
        index: Tensor | None = None,
        context: Tensor | None = None,
        *,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The tokens are those of diffusers' pipeline: 2x2 cells of all channels, row by row.

        guidance: (B,); context: (B,c,H,W), further channels of the network's input.
        """
        assert index is None
        assert isinstance(self.base_process, Flow)
        rows, columns = x.shape[2] // CELLS, x.shape[3] // CELLS
        dtype = text.tokens.dtype
        inputs = x if context is None else torch.cat([x, context], 1)
        output = self.sampled_network(adapter=False)(
            hidden_states=to_tokens(inputs).to(self.transformer.dtype),
            timestep=times[:, 0] / self.base_process.scale,
            guidance=guidance,
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            txt_ids=torch.zeros(text.tokens.shape[1], 3, device=x.device, dtype=dtype),
            img_ids=token_places(rows, columns, axes=3, device=x.device).to(dtype),
            return_dict=False,
        )[0]
        return from_tokens(output, rows).to(x.dtype)

    def check(self, conditions: Sequence[Condition]) -> None:
        super().check(conditions)
        for condition in conditions:
            if condition.negative:
                raise ValueError(f"{self.source} takes no negative prompt: leave it out, or use Stable Diffusion")
            if condition.guidance is not None and not self.transformer.config["guidance_embeds"]:
                raise ValueError(f"{self.source} takes no guidance: leave it out")

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        text, velocity = self._texts([condition.prompt for condition in conditions]), self.velocity
        if self.transformer.config["guidance_embeds"]:
            values = [self._scale(condition) for condition in conditions]
            scales = torch.tensor(values, dtype=torch.float32, device=text.tokens.device)
            velocity = functools.partial(velocity, guidance=scales)
        return self._unguided(velocity, text)

    def _patched(self, embedding: EmbeddingKind) -> NoReturn:
        self._no_adapters("Flux")


class FluxFillModel(FluxModel):
    """Flux.1 Fill, trained for inpainting; `load_model` loads it.

    Its tokens hold the noisy latents, the masked image's latents, and the mask. The mask keeps its resolution: the 8x8 pixels of
    a cell are 64 channels, 1 = fill. With 16 latent channels the network reads 4 (16 + 16 + 64) = 384 channels and predicts 64.
    """

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
