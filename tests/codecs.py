"""Autoencoders whose every property is known: block transforms, linear and orthonormal, with all coefficients or some."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.diffusion.gaussian import GaussianDenoiser
from rad.models.latent_mask import Grid
from rad.models.vae import Autoencoder
from rad.rng import KeyedNoise
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, World


class Blocks:
    """The cosine transform of blocks of `factor` x `factor` pixels, each colour by itself; `decoder` is a network of one layer.

    Args:
        keep: coefficients of each block and colour, the lowest first; None: all, so that encoder and decoder are inverse.
        scale: of the latents, over that of the pixels.
    """

    def __init__(
        self,
        factor: int = 2,
        *,
        keep: int | None = None,
        colours: int = 3,
        scale: float = 1.0,
        dtype: torch.dtype = DOUBLE,
    ) -> None:
        basis = _cosines(factor)[:keep].to(dtype)
        kept = len(basis)
        self.factor, self.channels = factor, colours * kept
        weight = torch.zeros(self.channels, colours, factor, factor, dtype=dtype)
        for colour in range(colours):
            weight[colour * kept : (colour + 1) * kept, colour] = basis
        self.weight = weight * scale
        self.decoder = nn.ConvTranspose2d(self.channels, colours, factor, stride=factor, dtype=dtype)
        self.decoder.requires_grad_(False)
        self.decoder.weight.copy_(weight / scale)
        assert self.decoder.bias is not None
        self.decoder.bias.zero_()

    def encode(self, pixels: Tensor) -> Tensor:
        return F.conv2d(pixels, self.weight, stride=self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


def _cosines(factor: int) -> Tensor:
    """(factor^2, factor, factor) orthonormal, the lowest frequencies first."""
    points = torch.arange(factor, dtype=DOUBLE)
    rows = torch.cos(math.pi / factor * (points + 0.5) * points[:, None]) * math.sqrt(2 / factor)
    rows[0] /= math.sqrt(2)
    order = sorted(((u, v) for u in range(factor) for v in range(factor)), key=lambda pair: (sum(pair), pair))
    return torch.stack([torch.outer(rows[u], rows[v]) for u, v in order])


def encoded_denoiser(world: World, autoencoder: Autoencoder) -> GaussianDenoiser:
    """The law of the latents of the world."""
    shape = world.denoiser.mean.shape
    basis = torch.eye(world.denoiser.mean.numel(), dtype=DOUBLE).view(-1, *shape)
    latents = autoencoder.encode(basis)
    matrix = latents.flatten(1).T
    mean = autoencoder.encode(world.denoiser.mean[None])[0]
    return GaussianDenoiser(mean, matrix @ world.denoiser.covariance @ matrix.T)


def encoded_task(world: World, autoencoder: Autoencoder, *, rows: int = 1, grid: Grid | None = None) -> Task:
    """The world's task in latents."""
    image, hole = (one.expand(rows, *one.shape[1:]) for one in (world.y, world.hole))
    return Task.encoded(image, hole, autoencoder, grid=grid)


class EncodedTape:
    """The draws of keyed noise, as encodings of noise in pixels (C,H,W), so that both runs see the same noise."""

    def __init__(self, noise: KeyedNoise, autoencoder: Autoencoder, shape: tuple[int, int, int]) -> None:
        self.noise, self.autoencoder, self.shape = noise, autoencoder, shape

    def randn(self, number: int, shape: Sequence[int]) -> Tensor:
        return self.autoencoder.encode(self.noise.randn(number, self.shape).to(DOUBLE))
