"""Stable Diffusion 3 with a ControlNet that was trained for inpainting (Alimama's SD3-Controlnet-Inpainting).

The ControlNet reads the latents of the masked image, black in the hole, and one more channel, 1 in known cells and 0 in the hole.
It does not read the pooled prompt: diffusers' pipeline sets it to zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.models.loaded_model import Condition, Origin
from rad.models.text_to_image.flow import InpaintingFlowDenoiser, Layout
from rad.models.text_to_image.prompts import Text
from rad.models.text_to_image.sd3 import SD3Model
from rad.models.weights import Config

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3ControlNetModel, StableDiffusion3Pipeline

SHARED = (
    "in_channels",
    "patch_size",
    "joint_attention_dim",
    "pooled_projection_dim",
    "num_attention_heads",
    "attention_head_dim",
)
"""Settings that the ControlNet and the network have in common."""


class SD3InpaintModel(SD3Model):
    """Stable Diffusion 3 with an inpainting ControlNet, which passed `check_controlnet`; `load_model` loads it."""

    for_inpainting = True
    scales = ("control_scale",)

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        origin: Origin,
        *,
        scheduler: FlowMatchEulerDiscreteScheduler,
        controlnet: SD3ControlNetModel,
        size: int | None = None,
    ) -> None:
        self.controlnet = controlnet.eval().requires_grad_(False)
        super().__init__(pipeline, origin, scheduler=scheduler, size=size)

    @property
    def layout(self) -> Layout:
        of_network, config = super().layout, self.controlnet.config
        largest = min(of_network.largest, config["pos_embed_max_size"] * config["patch_size"])
        return Layout(of_network.channels, of_network.cells, of_network.default, largest)

    def frozen_modules(self) -> list[nn.Module]:
        return [*super().frozen_modules(), self.controlnet]

    def context(self, image: Tensor, hole: Tensor) -> Tensor:
        """Latents of the masked image and the known cells, (B,C+1,H/f,W/f); arguments as of `InpaintingDenoiser.for_hole`.

        A cell is known if its first pixel is, as in diffusers.
        """
        latents = self.autoencoder.encode(torch.where(hole > 0, -1.0, image))
        return torch.cat([latents, 1 - F.interpolate(hole, latents.shape[2:], mode="nearest")], 1)

    def controlled(
        self,
        x: Tensor,
        times: Tensor,
        text: Text,
        index: Tensor | None = None,
        *,
        context: Tensor,
        scales: Tensor,
    ) -> Tensor:
        """As `velocity`, with the context of the ControlNet, and its weight (B,) for each row."""
        assert index is None
        assert text.pooled is not None
        dtype, inputs = self.network.dtype, {"hidden_states": x.to(self.network.dtype), "timestep": times[:, 0]}
        weight: Any = scales[:, None, None].to(dtype)  # annotated as a number
        residuals = self.controlnet(
            **inputs,
            encoder_hidden_states=text.tokens,
            pooled_projections=torch.zeros_like(text.pooled),
            controlnet_cond=context.to(dtype),
            conditioning_scale=weight,
            return_dict=False,
        )[0]
        network = self.sampled_network(adapter=False)
        output = network(**inputs, **text.arguments(), block_controlnet_hidden_states=residuals, return_dict=False)
        return output[0].to(x.dtype)

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> InpaintingFlowDenoiser:
        plain = super().denoiser(conditions, adapter=adapter)
        weights = torch.tensor([condition.control_scale for condition in conditions], device=plain.text.tokens.device)
        scales = torch.cat([weights, weights[plain.guided]])
        return InpaintingFlowDenoiser(plain, functools.partial(self.controlled, scales=scales), self.context)


def check_controlnet(controlnet: Config, network: Config, *, name: str, source: str) -> None:
    """Raise ValueError for the settings of a ControlNet that does not inpaint, or does not fit the network of `source`."""
    extra = controlnet["extra_conditioning_channels"]
    if extra != 1:
        raise ValueError(
            f"the ControlNet {name} has {extra} extra channels; one for inpainting has 1, the mask: use "
            "alimama-creative/SD3-Controlnet-Inpainting, or another of its kind"
        )
    for key in SHARED:
        if controlnet[key] != network[key]:
            raise ValueError(
                f"the ControlNet {name} has {key} {controlnet[key]}, and {source} has {network[key]}: use one that was "
                "trained for this model"
            )
