"""Exact denoisers of Gaussian data and Gaussian mixtures, for tests and benchmarks.

Levels may differ between pixels. With A = diag(alpha), S = diag(sigma), M = A Sigma A + S^2,

    D(x) = mu + Sigma A M^-1 (x - A mu),    Cov[x0 | x] = Sigma - Sigma A M^-1 A Sigma.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.step import Denoised


class GaussianDenoiser:
    """Exact denoiser of N(mean (C,H,W), covariance (d,d)), d = C H W, positive definite, float64. Clean pixels are conditions."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance, self.channels = mean, covariance, mean.shape[0]

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        a, _, gain = self._system(noise)
        residual = x.flatten(1) - a * self.mean.flatten()
        return Denoised((self.mean.flatten() + torch.einsum("bij,bj->bi", gain, residual)).view(x.shape))

    def posterior_covariance(self, noise: NoiseLevel) -> Tensor:
        """Cov[x0 | x] at `noise`: (B,d,d), or (1,d,d) for equal levels. It does not depend on x."""
        a, _, gain = self._system(noise)
        return self.covariance - gain @ (a[:, :, None] * self.covariance)

    def log_density(self, x: Tensor, noise: NoiseLevel) -> Tensor:
        """Log density log N(x; A mu, M) of x (B,C,H,W) at `noise`: (B,)."""
        a, M, _ = self._system(noise)
        residual = x.flatten(1) - a * self.mean.flatten()
        solved = torch.linalg.solve(M, residual[:, :, None])[:, :, 0]
        constant = residual.shape[1] * math.log(2 * math.pi)
        return -0.5 * ((residual * solved).sum(1) + torch.logdet(M) + constant)

    def _system(self, noise: NoiseLevel) -> tuple[Tensor, Tensor, Tensor]:
        """a (B,d), M (B,d,d) and Sigma A M^-1 (B,d,d); one row for equal levels."""
        maps = torch.cat([noise.alpha_map(), noise.sigma_map()], 1)
        if bool((maps == maps[:1]).all()):
            maps = maps[:1]  # equal levels: solve once and broadcast
        shape = (len(maps), *self.mean.shape)
        a, s = maps[:, :1].expand(shape).flatten(1), maps[:, 1:].expand(shape).flatten(1)
        M = a[:, :, None] * self.covariance * a[:, None, :] + torch.diag_embed(s.square())
        # Sigma A M^-1 = (M^-1 A Sigma)^T, because M and Sigma are symmetric.
        return a, M, torch.linalg.solve(M, a[:, :, None] * self.covariance).mT


class MixtureDenoiser:
    """Exact denoiser of J Gaussians with `weights` (J,): the mean of their estimates, weighted by posterior probability.

    Unlike a Gaussian's it is not affine in x. Tests use its several modes to measure diversity.
    """

    def __init__(self, components: Sequence[GaussianDenoiser], weights: Tensor) -> None:
        self.components, self.weights, self.channels = tuple(components), weights, components[0].channels

    def responsibilities(self, x: Tensor, noise: NoiseLevel) -> Tensor:
        """Posterior probability of each component given x at `noise`: (B,J)."""
        logs = torch.stack([component.log_density(x, noise) for component in self.components], 1)
        return (logs + self.weights.log()).softmax(1)

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        estimates = torch.stack([component.denoise(x, noise).x0 for component in self.components], 1)
        return Denoised((self.responsibilities(x, noise)[:, :, None, None, None] * estimates).sum(1))
