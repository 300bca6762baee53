"""MCGDiff: resampling, the two limits of its steps, and the law that it tends to as particles grow."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import step_levels
from rad.methods.mcgdiff import MCGDiff, systematic, uniform
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, World, distance, kl, make_world, moments, propagate

WORLD = make_world()
PROCESS = Uniform(linear_betas())
# Two pixels with correlation 0.8: the left one is known.
PAIR = World(
    GaussianDenoiser(
        torch.tensor([[[0.1, -0.2]]], dtype=DOUBLE), torch.tensor([[0.25, 0.2], [0.2, 0.25]], dtype=DOUBLE)
    ),
    torch.tensor([[[[0.0, 1.0]]]], dtype=DOUBLE),
    torch.tensor([[[[0.7, 0.0]]]], dtype=DOUBLE),
)


class Tape:
    """Normal images for a whole batch, quicker than a generator for every image."""

    def __init__(self, rows, seed=0):
        self.rows, self.numbers = rows, torch.Generator().manual_seed(seed)

    def randn(self, number, shape):
        return torch.randn(self.rows, *shape, generator=self.numbers, dtype=DOUBLE)


def run(world, method, *, steps, rows, hole=None, eta=1.0):
    hole = world.hole if hole is None else hole
    task = Task.from_image(world.y.expand(rows, *world.y.shape[1:]), hole.expand(rows, *hole.shape[1:]))
    sampler = Sampler(PROCESS, method, steps=steps, eta=eta)
    noise = Tape(rows)
    sample = sampler(world.denoiser, task, noise=noise)  # pyright: ignore[reportArgumentType]
    assert (sample.nfe, sample.vjp) == (sampler.cost.nfe, 0)
    return sample.raw


def test_cost_is_calls_of_every_particle():
    assert MCGDiff().cost(spaced_timesteps(1000, 100)) == Cost(6400)


def test_systematic_resampling():
    weight = torch.tensor([[0.5, 0.0], [0.25, 1.0], [0.25, 0.0], [0.0, 0.0]], dtype=DOUBLE)
    log_weight = weight.log() + torch.tensor([1000.0, -5.0])  # no scale, no overflow
    rows = systematic(log_weight, torch.tensor([0.3, 0.999], dtype=DOUBLE), 4)
    assert rows.T.tolist() == [[0, 0, 1, 2], [1, 1, 1, 1]]
    start = (torch.arange(1000, dtype=DOUBLE) + 0.5) / 1000
    weights = torch.tensor([0.1, 0.6, 0.3], dtype=DOUBLE)
    chosen = systematic(weights.log()[:, None].expand(3, 1000), start, 1)
    assert torch.bincount(chosen.flatten()).tolist() == [100, 600, 300]
    copies = systematic(weights.log()[:, None].expand(3, 1000), start, 3)
    # Each row is taken its expected number of times, rounded down or up, and that number on average.
    counts = torch.stack([(copies == row).sum(0) for row in range(3)])
    assert bool(((counts - 3 * weights[:, None]).abs() < 1).all())
    assert counts.double().mean(1).tolist() == pytest.approx([0.3, 1.8, 0.9])


def test_uniform_numbers_are_uniform_and_of_their_own_image():
    draw = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    values = uniform(draw).sort().values
    # Kolmogorov-Smirnov at 0.1 percent: 1.95 / sqrt(4000) = 0.031.
    assert float((values - torch.linspace(0, 1, 4000)).abs().max()) < 0.031
    assert torch.equal(uniform(draw)[7:8], uniform(draw[7:8]))
    assert float(uniform(torch.full((1, 1, 1, 1), 40.0))) == 1
    assert int(systematic(torch.zeros(3, 1), torch.ones(1), 3).max()) == 2


def test_with_many_particles_it_is_the_chain_conditioned_on_the_known_pixel():
    """The law it tends to is exact: that of the unconditional chain's end, given a known pixel of variance kappa."""
    kappa = 1e-2
    mean, covariance = chain_law(steps=20)
    gain = covariance[1, 0] / (covariance[0, 0] + kappa)
    exact = mean[1] + gain * (0.7 - mean[0]), covariance[1, 1] - gain * covariance[0, 1]
    distances, found = [], []
    for particles in (1, 8, 64):
        raw = run(PAIR, MCGDiff(particles=particles, kappa=kappa), steps=20, rows=3000)
        assert bool((raw[..., 0] == 0.7).all())
        found = raw[..., 1].mean(), raw[..., 1].var()
        distances.append(kl(*as_law(found), *as_law(exact)))
    assert distances[0] > 0.3
    assert distances[0] > 5 * distances[1] > 5 * distances[2]
    # Four standard errors of 3000 samples, 0.073 and 0.103 of the deviation and the variance.
    assert float(found[0] - exact[0]) == pytest.approx(0, abs=0.073 * float(exact[1]) ** 0.5 + 0.01)
    assert float(found[1] / exact[1]) == pytest.approx(1, abs=0.11)


@pytest.mark.slow
def test_it_comes_closer_to_the_posterior_with_particles():
    rows = 300
    one, few, more = (
        distance(WORLD, *moments(run(WORLD, MCGDiff(particles=particles), steps=30, rows=rows)))
        for particles in (1, 4, 24)
    )
    # Measured: 13.8, 10.6, 6.8 nats and 1.55, 1.39, 1.04 deviations.
    assert one.kl > few.kl + 1 > more.kl + 2
    assert one.mean_error > more.mean_error + 0.3


def as_law(moment):
    return moment[0].view(1), moment[1].view(1, 1)


def chain_law(*, steps, eta=1.0):
    chain = [PROCESS.noise(torch.tensor([t])) for t in spaced_timesteps(1000, steps)]
    return propagate(PAIR, chain, mean=torch.zeros(2, dtype=DOUBLE), covariance=torch.eye(2, dtype=DOUBLE), eta=eta)


def test_weights_are_the_fit_of_the_next_mean_over_that_of_the_particle(monkeypatch):
    """log N(m; a_u y, v + w_u) - log N(x; a_t y, w_t), of the known pixel alone."""
    seen: list[Any] = []
    method, steps = MCGDiff(particles=3, kappa=0.01), 3

    def systematic(log_weight, start, count):
        seen.append(log_weight)
        return torch.zeros(count, 1, dtype=torch.int64)

    def mean(run, x, now, nxt):
        seen.append((x, now, nxt))
        return 0.3 * x

    monkeypatch.setattr("rad.methods.mcgdiff.systematic", systematic)
    monkeypatch.setattr("rad.methods.mcgdiff._mean", mean)
    task = Task.from_image(PAIR.y, PAIR.hole)
    tape: Any = Tape(1)
    Sampler(PROCESS, method, steps=steps)(PAIR.denoiser, task, noise=tape)
    (_, now, nxt), x = seen[0], torch.stack([each for each, _, _ in seen[:3]])[..., 0].flatten()
    v = float(step_levels(now, nxt).posterior)
    (a_t, w_t), (a_u, w_u) = (
        (float(each.alpha), float(each.sigma) ** 2 + 0.01 * float(each.alpha) ** 2) for each in (now, nxt)
    )
    expected = (x - a_t * 0.7).square() / (2 * w_t) - (0.3 * x - a_u * 0.7).square() / (2 * (v + w_u))
    torch.testing.assert_close(seen[3].flatten(), expected)


def test_nothing_known_is_the_plain_chain():
    """No weights, so resampling changes nothing: the law is that of the unconditional chain."""
    raw = run(PAIR, MCGDiff(particles=3), steps=20, rows=3000, hole=torch.ones_like(PAIR.hole), eta=0.5)
    # Of the 5 parameters of 3000 samples: 5 / 6000 on average.
    assert kl(*moments(raw), *chain_law(steps=20, eta=0.5)) < 0.005


def test_one_particle_moves_known_pixels_to_the_noised_image():
    """N(m, v) g is Gaussian, its precision the sum of both."""
    task = Task.from_image(PAIR.y.expand(4000, 1, 1, 2), PAIR.hole.expand(4000, 1, 1, 2))
    level = PROCESS.noise(torch.tensor([300]))
    draws: Any = SimpleNamespace(task=task, randn=lambda: Tape(4000).randn(0, (1, 1, 2)))
    mean = torch.full((1, 4000, 1, 1, 2), -0.4, dtype=DOUBLE)
    x = MCGDiff(kappa=0.01)._moved(draws, mean, torch.full((1, 1, 1, 1), 0.09, dtype=DOUBLE), level)[0, :, 0, 0]
    a, w = float(level.alpha), float(level.sigma) ** 2 + 0.01 * float(level.alpha) ** 2
    precision = 1 / 0.09 + 1 / w
    expected = (-0.4 / 0.09 + a * 0.7 / w) / precision
    assert float(x[:, 0].mean()) == pytest.approx(expected, abs=4 / (4000 * precision) ** 0.5)
    assert float(x[:, 0].var() * precision) == pytest.approx(1, abs=0.09)
    assert float(x[:, 1].mean()) == pytest.approx(-0.4, abs=4 * 0.3 / 4000**0.5)
    assert float(x[:, 1].var() / 0.09) == pytest.approx(1, abs=0.09)
