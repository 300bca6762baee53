"""Text-to-image models that are rectified flows: the common part of Stable Diffusion 3, Flux and newer models.

With x = (1 - s) x0 + s e the network predicts the velocity v = e - x0, hence x0 = x - s v (Liu et al. 2022, arXiv 2209.03003;
Esser et al. 2024, arXiv 2403.03206). Its timestep is 1000 s. Classifier-free guidance (arXiv 2207.12598) is linear,

    v = v_negative + g (v_prompt - v_negative),

and both branches run as one batch, which counts as one network call. Flux takes g as an input, as it was distilled.
"""

from __future__ import annotations

import copy
import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from rad.diffusion.levels import NoiseLevel, time_input
from rad.diffusion.processes import LEAST_SIGNAL, Flow
from rad.diffusion.step import Denoised, denoised
from rad.models.adapter import AdapterInfo, Kind
from rad.models.loaded_model import Condition, LoadedModel, Origin
from rad.models.text_to_image.prompts import PromptEncoder, Text
from rad.models.vae import PretrainedAutoencoder

if TYPE_CHECKING:
    from diffusers import (
        DiffusionPipeline,
        FlowMatchEulerDiscreteScheduler,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
    )


CELLS = 2
"""Latent cells along a side of a token, for all models but Stable Diffusion 3 and Z-Image."""


class Velocity(Protocol):
    """x (B,C,H,W) and timesteps (B,K) -> v (B,C,H,W) in float32; index (B,H,W): the timestep of each cell, None for K = 1."""

    def __call__(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None) -> Tensor: ...


Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(v_prompt, v_negative, g (B,1,1,1)) -> v; all velocities (B,C,H,W)."""


def linear_guidance(prompt: Tensor, negative: Tensor, scale: Tensor) -> Tensor:
    """See `Combine` and the equation above."""
    return negative + scale * (prompt - negative)


class FlowDenoiser:
    """A network that predicts velocities; `negative`: texts of the images with `guidance` (B,) above 1, in their order."""

    def __init__(
        self,
        velocity: Velocity,
        text: Text,
        *,
        negative: Text | None,
        guidance: Sequence[float],
        channels: int,
        combine: Combine = linear_guidance,
    ) -> None:
        self.velocity, self.channels, self.combine = velocity, channels, combine
        self.guidance = torch.tensor(guidance, dtype=torch.float32, device=text.tokens.device)
        self.guided = (self.guidance > 1).nonzero()[:, 0]
        assert (negative is None) == (len(self.guided) == 0), "a negative text for each guided image"
        self.count, self.text = len(guidance), text if negative is None else Text.cat([text, negative])

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """x (B,C,H,W) at levels of a flow."""
        assert len(x) == self.count
        times, index = time_input(noise.timesteps, x), noise.index
        if len(self.guided):
            both = None if index is None else torch.cat([index, index[self.guided]])
            inputs = torch.cat([x, x[self.guided]]), torch.cat([times, times[self.guided]])
            velocities = self.velocity(*inputs, self.text, both)
            v, v_negative = velocities[: self.count], velocities[self.count :]
            g = self.guidance[self.guided, None, None, None].to(x.dtype)
            v = v.index_copy(0, self.guided, self.combine(v[self.guided], v_negative, g))
        else:
            v = self.velocity(x, times, self.text, index)
        return Denoised(denoised(x, v, noise, "velocity"))


class InpaintingFlowDenoiser:
    """Of a network that was trained for inpainting. `for_hole` returns the denoiser that also reads the known image.

    Args:
        plain: the denoiser without the image.
        velocity: as `Velocity`, with the keyword argument `context` (B,c,H,W).
        prepare: returns the context for the arguments of `for_hole`.
    """

    def __init__(
        self, plain: FlowDenoiser, velocity: Callable[..., Tensor], prepare: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.plain, self.velocity, self.prepare, self.channels = plain, velocity, prepare, plain.channels

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """Without the image."""
        return self.plain.denoise(x, noise)

    def for_hole(self, image: Tensor, hole: Tensor) -> FlowDenoiser:
        """See `rad.diffusion.denoiser.InpaintingDenoiser`."""
        bound, context = copy.copy(self.plain), self.prepare(image, hole)
        rows = torch.cat([context, context[bound.guided]])
        bound.velocity = functools.partial(self.velocity, context=rows)
        return bound


@dataclass(frozen=True)
class Layout:
    """Input of a transformer: channels of the latents, cells along a side of a token, default and largest side in cells."""

    channels: int
    cells: int
    default: int
    largest: int


class FlowModel(LoadedModel):
    """A transformer that predicts velocities. Raises ValueError for parts or a size that do not fit.

    Args:
        pipeline: its autoencoder in float32; scheduler: holds the noise levels; info: of an adapter.
        size: side of the images in pixels; None: the default.
    """

    kind: Kind
    guidance: float
    """Default guidance."""
    scales: tuple[str, ...] = ()
    """Scales of a `Condition` that have an effect."""
    encode: Callable[..., Text]
    """Encodes prompts, such as the functions of `rad.models.text_to_image.prompts`."""
    coder: type[PretrainedAutoencoder] = PretrainedAutoencoder

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        origin: Origin,
        *,
        scheduler: FlowMatchEulerDiscreteScheduler,
        size: int | None = None,
        info: AdapterInfo | None = None,
    ) -> None:
        self.transformer: SD3Transformer2DModel | FluxTransformer2DModel = pipeline.transformer
        autoencoder, layout = self.coder(pipeline.vae), self.layout
        factor, multiple = autoencoder.factor, autoencoder.factor * layout.cells
        if autoencoder.channels != layout.channels:
            raise ValueError(
                f"the autoencoder of {origin.source} has {autoencoder.channels} channels, its network takes {layout.channels}"
            )
        side = layout.default * factor if size is None else size
        if side < multiple or side % multiple or side > layout.largest * factor:
            raise ValueError(
                f"size is {side}; allowed with {origin.source} are multiples of {multiple} up to {layout.largest * factor}, "
                f"the default is {layout.default * factor}"
            )
        sigmas = self.sigmas(scheduler, (side // multiple) ** 2)
        # The last level is pure noise, which Flow holds below 1; no other may lie there.
        process = Flow(
            torch.cat([sigmas[:-1][sigmas[:-1] < 1 - LEAST_SIGNAL], sigmas[-1:]]),
            scale=scheduler.config["num_train_timesteps"],
            plan=self.plan(scheduler, (side // multiple) ** 2),
        )
        self.largest_side = layout.largest * factor
        super().__init__(
            self.transformer,
            origin,
            base_process=process,
            prediction="velocity",
            autoencoder=autoencoder,
            size=(side, side),
            side_multiple=multiple,
            info=info,
            text=PromptEncoder(pipeline, self.encode),
        )

    @property
    @abstractmethod
    def layout(self) -> Layout: ...

    @staticmethod
    @abstractmethod
    def sigmas(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Tensor:
        """The noise levels of diffusers' pipeline for images of `tokens` tokens: (T,) float64, increasing."""

    @staticmethod
    def plan(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Callable[[int], Tensor] | None:
        """See `rad.diffusion.processes.Flow`; None: every number of steps samples the same table of noise levels."""
        return None

    @abstractmethod
    def velocity(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None) -> Tensor:
        """See `Velocity`."""

    def check(self, conditions: Sequence[Condition]) -> None:
        for condition in conditions:
            if any((condition.control_image, condition.adapter_image, condition.style_image)):
                raise ValueError(
                    f"{self.source} takes no images beside the image: leave them out, or use Stable Diffusion"
                )
            for name in ("control_scale", "adapter_scale", "style_scale"):
                if name not in self.scales and (value := getattr(condition, name)) != 1:
                    raise ValueError(
                        f"{self.source} takes no such image, so {name}={value:g} has no effect: leave it out"
                    )

    def training_denoiser(self, prompts: Sequence[str], *, learned_variance: bool) -> FlowDenoiser:
        return self._unguided(self.velocity, self.encode_text(prompts))

    def _guided(
        self,
        conditions: Sequence[Condition],
        velocity: Velocity,
        *,
        combine: Combine = linear_guidance,
        empty: str = "",
    ) -> FlowDenoiser:
        """The denoiser with classifier-free guidance; `empty` stands for an empty negative prompt."""
        scales = [self._scale(condition) for condition in conditions]
        pairs = zip(conditions, scales, strict=True)
        negatives = [condition.negative or empty for condition, scale in pairs if scale > 1]
        return FlowDenoiser(
            velocity,
            self._texts([condition.prompt for condition in conditions]),
            negative=self._texts(negatives) if negatives else None,
            guidance=scales,
            channels=self.autoencoder.channels,
            combine=combine,
        )

    def _check_negatives(self, conditions: Sequence[Condition]) -> None:
        for condition in conditions:
            scale = self._scale(condition)
            if condition.negative and scale <= 1:
                raise ValueError(f"a negative prompt has no effect with guidance {scale:g}: raise it above 1")

    def _no_adapters(self, name: str) -> NoReturn:
        raise ValueError(f"{self.source} is {name}, which has no RAD adapters: use another model")

    def _unguided(self, velocity: Velocity, text: Text) -> FlowDenoiser:
        guidance = [0.0] * len(text.tokens)
        return FlowDenoiser(velocity, text, negative=None, guidance=guidance, channels=self.autoencoder.channels)

    def _texts(self, prompts: Sequence[str]) -> Text:
        assert self.text is not None
        return Text.cat([self.text.single(prompt) for prompt in prompts]).to(self.network.dtype)

    def _scale(self, condition: Condition) -> float:
        return self.guidance if condition.guidance is None else condition.guidance


def scheduled_sigmas(scheduler: FlowMatchEulerDiscreteScheduler, shift: float, steps: int) -> Tensor:
    """The levels of diffusers' scheduler for sigmas from 1 to 1 / steps: (steps,) float64, increasing."""
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=shift)
    return cast(Tensor, scheduler.sigmas)[:-1].flip(0).double()


def planned_levels(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Callable[[int], Tensor]:
    """`FlowModel.plan` of pipelines whose shift depends on the size of the image alone."""
    return functools.partial(scheduled_sigmas, scheduler, level_shift(scheduler, tokens))


def table_of_levels(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Tensor:
    """`FlowModel.sigmas` of the same pipelines: the levels of as many steps as the training had."""
    return planned_levels(scheduler, tokens)(scheduler.config["num_train_timesteps"])


def level_shift(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> float:
    """Shift of the noise levels, linear in the number of tokens of an image."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = scheduler.config
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(config[name] for name in names))


def token_places(rows: int, columns: int, *, axes: int, device: torch.device) -> Tensor:
    """Position ids of the tokens of an image, (rows * columns, axes) int64: row at axis 1, column at axis 2, 0 elsewhere."""
    places = torch.zeros(rows, columns, axes, dtype=torch.int64, device=device)
    places[..., 1] = torch.arange(rows, device=device)[:, None]
    places[..., 2] = torch.arange(columns, device=device)
    return places.flatten(0, 1)


def to_tokens(x: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,L,4C): 2x2 cells of all channels, row by row."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=CELLS, q=CELLS)


def from_tokens(tokens: Tensor, rows: int) -> Tensor:
    """Inverse of `to_tokens`; rows: of tokens, half the rows of x."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=CELLS, q=CELLS)
