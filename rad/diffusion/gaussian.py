"""Exact denoisers of Gaussian data and of mixtures of it, for tests and benchmarks.

They hold for one level an image and for levels of each pixel. With A = diag(alpha), S = diag(sigma), M = A Sigma A + S^2,

    D(x) = mu + Sigma A M^-1 (x - A mu),    Cov[x0 | x] = Sigma - Sigma A M^-1 A Sigma.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.step import Denoised


class GaussianDenoiser:
    """The exact denoiser of data N(mean, covariance); pixels that are clean (a = 1, s = 0) are conditioned on.

    Args:
        mean: (C,H,W) float64.
        covariance: (d,d) float64 with d = C H W, positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance, self.channels = mean, covariance, mean.shape[0]

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        a, _, gain = self._system(noise)
        residual = x.flatten(1) - a * self.mean.flatten()
        return Denoised((self.mean.flatten() + torch.einsum("bij,bj->bi", gain, residual)).view(x.shape))

    def posterior_covariance(self, noise: NoiseLevel) -> Tensor:
        """Cov[x0 | x] at `noise`, (B,d,d), or (1,d,d) where it is the same for all; it does not depend on x."""
        a, _, gain = self._system(noise)
        return self.covariance - gain @ (a[:, :, None] * self.covariance)

    def log_density(self, x: Tensor, noise: NoiseLevel) -> Tensor:
        """log N(x; A mu, M), (B,): how likely x (B,C,H,W) is at `noise`."""
        a, M, _ = self._system(noise)
        residual = x.flatten(1) - a * self.mean.flatten()
        solved = torch.linalg.solve(M, residual[:, :, None])[:, :, 0]
        constant = residual.shape[1] * math.log(2 * math.pi)
        return -0.5 * ((residual * solved).sum(1) + torch.logdet(M) + constant)

    def _system(self, noise: NoiseLevel) -> tuple[Tensor, Tensor, Tensor]:
        """a (B,d), M (B,d,d) and Sigma A M^-1 (B,d,d); a single row where the noise is the same for all."""
        maps = torch.cat([noise.alpha_map(), noise.sigma_map()], 1)
        if bool((maps == maps[:1]).all()):
            maps = maps[:1]  # one noise for the whole batch: one system to solve, broadcast over the rows
        shape = (len(maps), *self.mean.shape)
        a, s = maps[:, :1].expand(shape).flatten(1), maps[:, 1:].expand(shape).flatten(1)
        M = a[:, :, None] * self.covariance * a[:, None, :] + torch.diag_embed(s.square())
        # Sigma A M^-1 is the transpose of M^-1 A Sigma, since both M and Sigma are symmetric.
        return a, M, torch.linalg.solve(M, a[:, :, None] * self.covariance).mT


class MixtureDenoiser:
    """The exact denoiser of a mixture of Gaussians: the components' estimates, weighted by how likely each is given x.

    Not affine in x and with several modes, so it shows what a method does to diversity.

    Args:
        components: their Gaussians; weights: (J,) probabilities.
    """

    def __init__(self, components: Sequence[GaussianDenoiser], weights: Tensor) -> None:
        self.components, self.weights, self.channels = tuple(components), weights, components[0].channels

    def responsibilities(self, x: Tensor, noise: NoiseLevel) -> Tensor:
        """(B,J) probability of each component given x at `noise`."""
        logs = torch.stack([component.log_density(x, noise) for component in self.components], 1)
        return (logs + self.weights.log()).softmax(1)

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        estimates = torch.stack([component.denoise(x, noise).x0 for component in self.components], 1)
        return Denoised((self.responsibilities(x, noise)[:, :, None, None, None] * estimates).sum(1))
