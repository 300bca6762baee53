"""Denoisers D(x) = E[x0 | x]: estimate the clean image from a noisy image and its noise level."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from rad.diffusion.levels import NoiseLevel, time_input
from rad.diffusion.step import Denoised, Prediction, denoised


class Denoiser(Protocol):
    """The interface between a model and the samplers.

    Example:
        >>> class Grey:  # the best estimate at infinite noise
        ...     channels = 3
        ...
        ...     def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        ...         return Denoised(torch.zeros_like(x))
        >>> denoiser: Denoiser = Grey()
    """

    channels: int

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """Estimate the clean image from x (B,C,H,W) at level `noise`. Costs 1 NFE per image."""
        ...


@dataclass(frozen=True)
class Semantics:
    """A text-conditioned `estimate` without classifier-free guidance, and the attention of each cell on the prompt.

    `shares`: (B,h,w) in [0,1] for each layer, the share of cross-attention on prompt words; 0 without a prompt.
    """

    estimate: Denoised
    shares: list[Tensor]


@runtime_checkable
class InpaintingDenoiser(Denoiser, Protocol):
    """The denoiser of a network trained for inpainting, which also reads the hole and the known pixels."""

    def for_hole(self, image: Tensor, hole: Tensor) -> Denoiser:
        """The denoiser of these images; the result alone can `denoise`.

        Args:
            image: (B,3,H,W) in [-1,1], 0 (mid-grey) in the hole.
            hole: (B,1,H,W) of 0 and 1 in pixels, 1 = fill.
        """
        ...


@runtime_checkable
class TextDenoiser(Denoiser, Protocol):
    """A text-conditioned denoiser that can limit its text to a region, and report its attention."""

    def bounded(self, hole: Tensor) -> "TextDenoiser":
        """Limit the text to the hole (B,1,H,W). Images without hole or text stay unlimited."""
        ...

    def semantic(self, x: Tensor, noise: NoiseLevel, *, fine: bool) -> Semantics:
        """Text-conditioned estimate and attention; 1 NFE. `fine` includes the layers of highest resolution."""
        ...


class _ClampPassingGradients(torch.autograd.Function):
    """Clamp to [-1,1] with the gradient of the identity, which keeps guidance alive outside the range. Infinity becomes NaN."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        return values.clamp(-1, 1) + 0 * values

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


class UNetDenoiser:
    """Denoiser around a network patched by `rad.networks.patch`, with or without an adapter.

    Args:
        network: called as network(x, timesteps, index=...).sample. Networks with 2C output channels have a learned variance.
        prediction_type: "epsilon", "sample" (x0) or "v_prediction" (a eps - s x0).
        clip: clamp x0 to [-1,1], as ADM does. Gradients ignore the clamp.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        prediction_type: Prediction = "epsilon",
        channels: int = 3,
        clip: bool = True,
        learned_variance: bool = True,
    ) -> None:
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"prediction_type is {prediction_type!r}; allowed are 'epsilon', 'sample', 'v_prediction'")
        self.network, self.channels = network, channels
        self.prediction_type: Prediction = prediction_type
        self.clip, self.learned_variance = clip, learned_variance

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        output = self.network(x, time_input(noise.timesteps, x), index=noise.index).sample.to(x.dtype)
        predicted = output[:, : self.channels]
        x0 = denoised(x, predicted, noise, self.prediction_type)
        if self.clip:
            x0 = _ClampPassingGradients.apply(x0)
        learned = self.learned_variance and output.shape[1] == 2 * self.channels
        return Denoised(x0, (output[:, self.channels :] + 1) / 2 if learned else None)


class EDMDenoiser:
    """Denoiser with EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364, eq. 7, table 1), for levels of any scale:

        D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4)  at  x / a  and  sigma = s / a,  d = sigma_data,
        c_skip = d^2 / (sigma^2 + d^2),  c_out = sigma d / sqrt(sigma^2 + d^2),  c_in = 1 / sqrt(sigma^2 + d^2)

    `network` is F: (x (B,C,H,W), c_noise (B,)) -> (B,C,H,W). `sigma_data` is the standard deviation of its training data.
    """

    def __init__(
        self, network: Callable[[Tensor, Tensor], Tensor], *, sigma_data: float = 0.5, channels: int = 3
    ) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is {sigma_data}; it must be above 0")
        self.network, self.sigma_data, self.channels = network, sigma_data, channels

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        assert noise.index is None, "EDM networks take one level per image"
        sigma = (noise.sigma / noise.alpha).clamp(min=1e-8)  # log(0) at the clean level
        width = sigma.square() + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / width, sigma * self.sigma_data / width.sqrt(), 1 / width.sqrt()
        scaled = noise.spread((c_in / noise.alpha).to(x.dtype)) * x
        output = self.network(scaled, time_input(sigma[:, 0].log() / 4, x)).to(x.dtype)
        kept = noise.spread((c_skip / noise.alpha).to(x.dtype)) * x
        return Denoised(kept + noise.spread(c_out.to(x.dtype)) * output)
