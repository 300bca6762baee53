"""A Gaussian world where everything is known: data, exact posterior, exact law of an affine sampler (propagated, not sampled)."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.prior import GaussianPrior
from rad.process import Noise
from rad.step import Estimate, reverse_step, step_levels

DOUBLE = torch.float64


@dataclass(frozen=True)
class World:
    """An 8x8 grey image of smooth Gaussian data with a 4x4 hole; y is one draw of it."""

    prior: GaussianPrior
    hole: Tensor
    y: Tensor

    @property
    def inside(self) -> Tensor:
        return self.hole.flatten().bool()

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the hole given the known pixels."""
        inside, covariance, mean = self.inside, self.prior.covariance, self.prior.mean.flatten()
        gain = torch.linalg.solve(covariance[~inside][:, ~inside], covariance[~inside][:, inside]).T
        residual = (self.y.flatten() - mean)[~inside]
        return mean[inside] + gain @ residual, covariance[inside][:, inside] - gain @ covariance[~inside][:, inside]


def make_world(size: int = 8) -> World:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    points = torch.stack([rows.flatten(), columns.flatten()], 1).to(DOUBLE)
    covariance = 0.25 * torch.exp(-torch.cdist(points, points).square() / 8) + 0.01 * torch.eye(
        size * size, dtype=DOUBLE
    )
    mean = (0.2 * torch.sin(columns / 2).to(DOUBLE))[None]
    draw = torch.randn(size * size, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    y = mean + (torch.linalg.cholesky(covariance) @ draw).view(1, size, size)
    hole = torch.zeros(1, 1, size, size, dtype=DOUBLE)
    hole[..., 2:6, 3:7] = 1
    return World(GaussianPrior(mean, covariance), hole, y[None])


def propagate(
    world: World,
    chain: list[Noise],
    *,
    mean: Tensor,
    covariance: Tensor,
    eta: float = 1.0,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """The law of x after the reverse steps between neighbours of `chain`, from N(mean, covariance) at chain[0].

    The affine map of each step is read off the code itself: rows of `basis` go through prior and step like images.
    `exact` adds the variance of x0 given x to each step, which makes it the true reverse kernel of Gaussian data.
    """
    shape = world.prior.mean.shape
    d = mean.numel()
    basis = torch.cat([torch.zeros(1, d, dtype=DOUBLE), torch.eye(d, dtype=DOUBLE)]).view(-1, *shape)
    zero = torch.zeros_like(basis)

    def step(x: Tensor, x0: Tensor, now: Noise, nxt: Noise, noise: Tensor) -> Tensor:
        return reverse_step(x, Estimate(x0), now, nxt, eta=eta, noise=noise).flatten(1)

    for now, nxt in itertools.pairwise(chain):
        estimate = world.prior.estimate(basis, now).x0
        images = step(basis, estimate, now, nxt, zero)
        offset, matrix = images[0], (images[1:] - images[0]).T
        deviation = step(zero[:1], zero[:1], now, nxt, torch.ones_like(zero[:1]))[0]
        covariance = matrix @ covariance @ matrix.T + torch.diag(deviation.square())
        if exact:
            assert eta == 1
            on_x0 = step(zero[:1], torch.ones_like(zero[:1]), now, nxt, zero[:1])[0]
            left = world.prior.posterior_covariance(now)[0]
            covariance = covariance + on_x0[:, None] * left * on_x0
            assert bool((step_levels(now, nxt).posterior >= 0).all())
        mean = matrix @ mean + offset
    return mean, covariance


def kl(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """KL( N(mean, covariance) || N(other) ), in nats."""
    solved = torch.linalg.solve(other_covariance, covariance)
    off = other_mean - mean
    distance = off @ torch.linalg.solve(other_covariance, off)
    logs = torch.logdet(other_covariance) - torch.logdet(covariance)
    return 0.5 * float(torch.trace(solved) - len(mean) + distance + logs)
