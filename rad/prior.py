"""Priors: from a noisy image and its noise to an estimate of the clean one, D(x) = E[x0 | x].

`UNetPrior` and `EDMPrior` wrap a trained network. `GaussianPrior` is exact for Gaussian data, for scalar and per-pixel levels,
and `MixturePrior` for mixtures of such data. With A = diag(a), S = diag(s), M = A Sigma A + S^2,

    D(x) = mu + Sigma A M^-1 (x - A mu),    Cov[x0 | x] = Sigma - Sigma A M^-1 A Sigma.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rad.process import Noise
from rad.step import Estimate, Prediction, denoised


class Prior(Protocol):
    """What a sampler needs of a model."""

    channels: int

    def estimate(self, x: Tensor, noise: Noise) -> Estimate:
        """x (B,C,H,W) at `noise` -> estimate of the clean image; one network call an image (1 NFE)."""
        ...


@dataclass(frozen=True)
class Semantics:
    """What a prior says of a noisy image from its prompt alone, and where it looks at it.

    Args:
        estimate: as of `Prior.estimate`, without classifier-free guidance.
        shares: for several layers, (B,h,w) in [0,1]: the part of a cell's attention that the words of the prompt have; 0
            where there is no prompt.
    """

    estimate: Estimate
    shares: list[Tensor]


@runtime_checkable
class TextPrior(Prior, Protocol):
    """A prior that fills by a text, and can tell where the text acts."""

    def bounded(self, hole: Tensor) -> "TextPrior":
        """The same prior, whose text acts in the hole (B,1,H,W) alone; unbounded where there is no hole, or no text."""
        ...

    def semantic(self, x: Tensor, noise: Noise, *, fine: bool) -> Semantics:
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


class UNetPrior:
    """A network patched by `rad.unet.patch`, with or without an adapter.

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

    def estimate(self, x: Tensor, noise: Noise) -> Estimate:
        output = self.network(x, noise.times.to(x.dtype), index=noise.index).sample.to(x.dtype)
        predicted = output[:, : self.channels]
        x0 = denoised(x, predicted, noise, self.prediction_type)
        if self.clip:
            x0 = _ClampPassingGradients.apply(x0)
        learned = self.learned_variance and output.shape[1] == 2 * self.channels
        return Estimate(x0, (output[:, self.channels :] + 1) / 2 if learned else None)


class EDMPrior:
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

    def estimate(self, x: Tensor, noise: Noise) -> Estimate:
        assert noise.index is None, "EDM networks are told one level an image"
        sigma = (noise.levels_s / noise.levels_a).clamp(min=1e-8)  # of a clean image the logarithm would be infinite
        width = sigma.square() + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / width, sigma * self.sigma_data / width.sqrt(), 1 / width.sqrt()
        scaled = noise.spread((c_in / noise.levels_a).to(x.dtype)) * x
        output = self.network(scaled, (sigma[:, 0].log() / 4).to(x.dtype)).to(x.dtype)
        kept = noise.spread((c_skip / noise.levels_a).to(x.dtype)) * x
        return Estimate(kept + noise.spread(c_out.to(x.dtype)) * output)


class GaussianPrior:
    """The exact denoiser of data N(mean, covariance); pixels that are clean (a = 1, s = 0) are conditioned on.

    Args:
        mean: (C,H,W) float64.
        covariance: (d,d) float64 with d = C H W, positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance, self.channels = mean, covariance, mean.shape[0]

    def estimate(self, x: Tensor, noise: Noise) -> Estimate:
        a, _, gain = self._system(noise)
        residual = x.flatten(1) - a * self.mean.flatten()
        return Estimate((self.mean.flatten() + torch.einsum("bij,bj->bi", gain, residual)).view(x.shape))

    def posterior_covariance(self, noise: Noise) -> Tensor:
        """Cov[x0 | x] at `noise`, (B,d,d), or (1,d,d) where it is the same for all; it does not depend on x."""
        a, _, gain = self._system(noise)
        return self.covariance - gain @ (a[:, :, None] * self.covariance)

    def log_density(self, x: Tensor, noise: Noise) -> Tensor:
        """log N(x; A mu, M), (B,): how likely x (B,C,H,W) is at `noise`."""
        a, M, _ = self._system(noise)
        residual = x.flatten(1) - a * self.mean.flatten()
        solved = torch.linalg.solve(M, residual[:, :, None])[:, :, 0]
        constant = residual.shape[1] * math.log(2 * math.pi)
        return -0.5 * ((residual * solved).sum(1) + torch.logdet(M) + constant)

    def _system(self, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """a (B,d), M (B,d,d) and Sigma A M^-1 (B,d,d); a single row where the noise is the same for all."""
        maps = torch.cat([noise.a, noise.s], 1)
        if bool((maps == maps[:1]).all()):
            maps = maps[:1]  # one noise for the whole batch: one system to solve, broadcast over the rows
        shape = (len(maps), *self.mean.shape)
        a, s = maps[:, :1].expand(shape).flatten(1), maps[:, 1:].expand(shape).flatten(1)
        M = a[:, :, None] * self.covariance * a[:, None, :] + torch.diag_embed(s.square())
        # Sigma A M^-1 is the transpose of M^-1 A Sigma, since both M and Sigma are symmetric.
        return a, M, torch.linalg.solve(M, a[:, :, None] * self.covariance).mT


class MixturePrior:
    """The exact denoiser of a mixture of Gaussians: the components' estimates, weighted by how likely each is given x.

    Not affine in x and with several modes, so it shows what a method does to diversity.

    Args:
        components: their Gaussians; weights: (J,) probabilities.
    """

    def __init__(self, components: Sequence[GaussianPrior], weights: Tensor) -> None:
        self.components, self.weights, self.channels = tuple(components), weights, components[0].channels

    def responsibilities(self, x: Tensor, noise: Noise) -> Tensor:
        """(B,J) probability of each component given x at `noise`."""
        logs = torch.stack([component.log_density(x, noise) for component in self.components], 1)
        return (logs + self.weights.log()).softmax(1)

    def estimate(self, x: Tensor, noise: Noise) -> Estimate:
        estimates = torch.stack([component.estimate(x, noise).x0 for component in self.components], 1)
        return Estimate((self.responsibilities(x, noise)[:, :, None, None, None] * estimates).sum(1))
