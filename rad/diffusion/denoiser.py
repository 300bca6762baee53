"""Denoisers: from a noisy image and its noise level to an estimate of the clean image, D(x) = E[x0 | x]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.step import Denoised, Prediction, denoised


class Denoiser(Protocol):
    """What a sampler needs of a model."""

    channels: int

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """x (B,C,H,W) at `noise` -> estimate of the clean image; one network call an image (1 NFE)."""
        ...


@dataclass(frozen=True)
class Semantics:
    """What a prior says of a noisy image from its prompt alone, and where it looks at it.

    Args:
        estimate: as of `Denoiser.estimate`, without classifier-free guidance.
        shares: for several layers, (B,h,w) in [0,1]: the part of a cell's attention that the words of the prompt have; 0
            where there is no prompt.
    """

    estimate: Denoised
    shares: list[Tensor]


@runtime_checkable
class TextDenoiser(Denoiser, Protocol):
    """A prior that fills by a text, and can tell where the text acts."""

    def bounded(self, hole: Tensor) -> "TextDenoiser":
        """The same prior, whose text acts in the hole (B,1,H,W) alone; unbounded where there is no hole, or no text."""
        ...

    def semantic(self, x: Tensor, noise: NoiseLevel, *, fine: bool) -> Semantics:
        """One network call. `fine`: of all layers with text; else not of those with the most cells."""
        ...


class _ClampPassingGradients(torch.autograd.Function):
    """Clamp to [-1,1] whose gradient is that of no clamp: guidance must not vanish where the estimate leaves the range."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_output


class UNetDenoiser:
    """A network patched by `rad.networks.unet.patch`, with or without an adapter.

    Args:
        network: called as network(x, times, index=...).sample.
        prediction_type: what it predicts: "epsilon", "sample" (x0) or "v_prediction" (a eps - s x0).
        clip: clamp the estimate to [-1,1], as ADM does; gradients pass as if it were not.
        learned_variance: use the network's variance, if it has one.
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
        output = self.network(x, noise.timesteps.to(x.dtype), index=noise.index).sample.to(x.dtype)
        predicted = output[:, : self.channels]
        x0 = denoised(x, predicted, noise, self.prediction_type)
        if self.clip:
            x0 = _ClampPassingGradients.apply(x0)
        learned = self.learned_variance and output.shape[1] == 2 * self.channels
        return Denoised(x0, (output[:, self.channels :] + 1) / 2 if learned else None)


class EDMDenoiser:
    """A network in EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364, eq. 7 and table 1), at levels of any units:

        D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4)  at  x / a  and  sigma = s / a

    with d = sigma_data, c_skip = d^2 / (sigma^2 + d^2), c_out = sigma d / sqrt(sigma^2 + d^2), c_in = 1 / sqrt(sigma^2 + d^2).

    Args:
        network: F, called as network(x (B,C,H,W), c_noise (B,)) -> (B,C,H,W).
        sigma_data: deviation of the data that it was trained on.
    """

    def __init__(
        self, network: Callable[[Tensor, Tensor], Tensor], *, sigma_data: float = 0.5, channels: int = 3
    ) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is {sigma_data}; it must be above 0")
        self.network, self.sigma_data, self.channels = network, sigma_data, channels

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        assert noise.index is None, "EDM networks are told one level an image"
        sigma = (noise.sigma / noise.alpha).clamp(min=1e-8)  # of a clean image the logarithm would be infinite
        width = sigma.square() + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / width, sigma * self.sigma_data / width.sqrt(), 1 / width.sqrt()
        scaled = noise.spread((c_in / noise.alpha).to(x.dtype)) * x
        output = self.network(scaled, (sigma[:, 0].log() / 4).to(x.dtype)).to(x.dtype)
        kept = noise.spread((c_skip / noise.alpha).to(x.dtype)) * x
        return Denoised(kept + noise.spread(c_out.to(x.dtype)) * output)
