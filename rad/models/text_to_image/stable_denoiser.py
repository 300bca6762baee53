"""The denoiser of Stable Diffusion 1, 2 and XL, with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598):

    e = e(negative) + g (e(prompt) - e(negative))

Both branches run as one doubled batch, which counts as one network call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.diffusion.denoiser import Semantics
from rad.diffusion.levels import NoiseLevel, per_image, time_input
from rad.diffusion.step import Denoised, denoised
from rad.models.text_to_image.prompts import Text
from rad.networks.attention import Focus, grids, shrunk

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    from rad.models.text_to_image.stable_diffusion import StableDiffusionModel


@dataclass(frozen=True)
class Branch:
    """The prompts of a batch, or its negative prompts; styles: tokens (B,1,...) of each IP-Adapter."""

    text: Text
    styles: list[Tensor] = field(default_factory=list)

    def then(self, other: Branch) -> Branch:
        """Both in one batch."""
        styles = [torch.cat(pair) for pair in zip(self.styles, other.styles, strict=True)]
        return Branch(Text.cat([self.text, other.text]), styles)


@dataclass(eq=False)
class StableDiffusionDenoiser:
    """The denoiser for a batch of conditions; a `TextDenoiser`. Estimates are not clipped, as latents have no range.

    Args:
        unet: the network of `model` with or without RAD's adapter. compiled: its compiled form, for calls without a `Focus`.
        words: (B,T) 1 at the words of the prompt, 0 at other tokens.
        guidance: (B,); style: (B,) scales of the IP-Adapter, None: none.
        control: images (B,3,H,W) in [0,1] for the ControlNet, and their scales (B,); features: scaled, of the T2I-Adapter.
        masked: (B,1+c,h,w) further input of a network trained for inpainting: hole, and latents of the known pixels.
        inside: region of the text, as in `rad.networks.attention.Focus`; None: everywhere.
    """

    model: StableDiffusionModel
    unet: UNet2DConditionModel
    prompt: Branch
    negative: Branch
    words: Tensor
    guidance: Tensor
    control: tuple[Tensor, Tensor] | None = None
    features: list[Tensor] | None = None
    style: Tensor | None = None
    masked: Tensor | None = None
    inside: dict[int, Tensor] | None = None
    channels: int = 4
    compiled: Callable[..., UNet2DConditionOutput] | None = None

    @functools.cached_property
    def guided(self) -> bool:
        """Whether an image has a guidance above 1; read from the device once."""
        return bool((self.guidance > 1).any())

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """x (B,c,h,w). Without a guidance above 1 in the batch only the prompt is evaluated."""
        if not self.guided:
            return self._x0(x, self._predict(x, noise, self.prompt, Focus(self.inside, style=self.style)), noise)
        twice = Focus(
            None if self.inside is None else {cells: _rows(where, 2) for cells, where in self.inside.items()},
            style=None if self.style is None else _rows(self.style, 2),
        )
        negative, positive = self._predict(x, noise, self.negative.then(self.prompt), twice).chunk(2)
        guidance = per_image(self.guidance)
        return self._x0(x, torch.where(guidance > 1, negative + guidance * (positive - negative), positive), noise)

    def for_hole(self, image: Tensor, hole: Tensor) -> StableDiffusionDenoiser:
        """See `InpaintingDenoiser`. As in diffusers, a cell of the hole is that of its first pixel, top left."""
        latents = self.model.autoencoder.encode(image)
        cells = F.interpolate(hole, latents.shape[2:], mode="nearest").to(latents.dtype)
        return replace(self, masked=torch.cat([cells, latents], 1))

    def bounded(self, hole: Tensor) -> StableDiffusionDenoiser:
        free = (hole.flatten(1).amax(1) == 0) | (self.words.amax(1) == 0)
        inside = {
            size[0] * size[1]: shrunk(hole, size).flatten(1) | free[:, None]
            for size in grids((hole.shape[2], hole.shape[3]), self.model.depths)
        }
        return replace(self, inside=inside)

    def semantic(self, x: Tensor, noise: NoiseLevel, *, fine: bool) -> Semantics:
        shallowest = self.model.shallowest + (0 if fine else 1)
        focus = Focus(self.inside, self.words, shallowest, self.style)
        predicted = self._predict(x, noise, self.prompt, focus)
        sizes = {size[0] * size[1]: size for size in grids((x.shape[2], x.shape[3]), self.model.depths)}
        shares = [kept.unflatten(1, sizes[kept.shape[1]]) for kept in focus.kept]
        return Semantics(self._x0(x, predicted, noise), shares)

    def _predict(self, x: Tensor, noise: NoiseLevel, branch: Branch, focus: Focus) -> Tensor:
        """The network's output, (n B,c,h,w) for the n B rows of `branch`."""
        model, text = self.model, branch.text
        rows = functools.partial(_rows, copies=len(text.tokens) // len(x))
        assert (self.masked is not None) == model.for_inpainting, "for_hole() comes first"
        x, times = rows(x), rows(time_input(noise.timesteps, x))
        inputs = x if self.masked is None else torch.cat([x, rows(self.masked.to(x.dtype))], 1)
        noisiest = times.amax(1)
        added: dict[str, Tensor | list[Tensor]] = {}
        if text.pooled is not None:
            added = {"text_embeds": text.pooled, "time_ids": model.time_ids.expand(len(x), -1)}
        residuals: dict[str, Tensor | list[Tensor]] = {}
        if self.control is not None and model.controls.controlnet is not None:
            images, scale = self.control
            down, middle = model.controls.controlnet(
                x,
                noisiest,
                encoder_hidden_states=text.tokens,
                controlnet_cond=rows(images),
                added_cond_kwargs=added or None,
                return_dict=False,
            )
            scale = per_image(rows(scale))
            residuals["down_block_additional_residuals"] = [scale * residual for residual in down]
            residuals["mid_block_additional_residual"] = scale * middle
        if self.features is not None:  # a new list, as the UNet empties it
            residuals["down_intrablock_additional_residuals"] = [rows(feature) for feature in self.features]
        if branch.styles:
            added = {**added, "image_embeds": branch.styles}
        plain = focus.inside is None and focus.tokens is None and not branch.styles
        levels = (noisiest, {}) if noise.index is None else (times, {"index": rows(noise.index)})
        network = self.compiled if plain and self.compiled is not None else self.unet
        return network(
            inputs,
            levels[0],
            encoder_hidden_states=text.tokens,
            cross_attention_kwargs=None if plain else {"focus": focus},
            added_cond_kwargs=added or None,
            **residuals,
            **levels[1],
        ).sample.to(x.dtype)

    def _x0(self, x: Tensor, predicted: Tensor, noise: NoiseLevel) -> Denoised:
        return Denoised(denoised(x, predicted, noise, self.model.prediction))


def _rows(values: Tensor, copies: int) -> Tensor:
    return torch.cat([values] * copies)
