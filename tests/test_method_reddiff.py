"""RED-diff: Adam's steps, the stationary point in closed form, and its limits."""

import pytest
import torch
from torch import Tensor

from rad.methods.reddiff import REDDiff
from rad.process import Uniform, linear_betas
from rad.sampler import Cost, CountedPrior, Run, Sampler, Task
from rad.tape import NoiseTape
from tests.gaussian import DOUBLE, distance, make_world, moments, sampled

WORLD = make_world()


def run(method: REDDiff, times: list[int], *, noise: float = 0.0) -> Tensor:
    """With all draws equal to `noise`."""
    task = Task.of(WORLD.y, WORLD.hole)
    process = Uniform(linear_betas())

    def draw() -> Tensor:
        return torch.full_like(WORLD.y, noise)

    return method.run(Run(task, process, CountedPrior(WORLD.prior), times, 0.0, draw, lambda done, total: None))


@pytest.mark.parametrize("t", [100, 400])
def test_stationary_point(t: int):
    """The gradient is affine in the noise, so with no noise it is its mean; there mu solves
    (K + w s^2 M^-1) mu = K y + w s^2 M^-1 mu_prior, with M = a^2 Sigma + s^2."""
    level = Uniform(linear_betas()).noise(torch.tensor([t]), None)
    a2, s2 = float(level.levels_a.square()), float(level.levels_s.square())
    K = torch.diag((1 - WORLD.hole).flatten())
    pull = 0.25 * s2 * torch.linalg.inv(a2 * WORLD.prior.covariance + s2 * torch.eye(64, dtype=DOUBLE))
    exact = torch.linalg.solve(K + pull, K @ WORLD.y.flatten() + pull @ WORLD.prior.mean.flatten())
    found = run(REDDiff(rate=0.01), [*[t] * 1000, -1])
    torch.testing.assert_close(found.flatten(), exact, rtol=0, atol=0.01)


def test_the_first_step_is_the_sign_of_the_gradient():
    """Adam's first step is the rate, against the gradient. A draw n in the hole, where mu = 0, gives (s/a)(e - n)."""
    level = Uniform(linear_betas()).noise(torch.tensor([500]), None)
    a, s, S = level.levels_a, level.levels_s, WORLD.prior.covariance
    mu, n = ((1 - WORLD.hole) * WORLD.y).flatten(), torch.full((64,), 0.7, dtype=DOUBLE)
    M = a**2 * S + s**2 * torch.eye(64, dtype=DOUBLE)
    e = s[0] * torch.linalg.solve(M, (a * mu + s * n - a * WORLD.prior.mean.flatten())[0])
    gradient = (s / a)[0] * (e - n)  # the data term is 0 at the beginning
    found = run(REDDiff(), [500, -1], noise=0.7).flatten()
    torch.testing.assert_close(found, mu - 0.1 * gradient.sign(), rtol=0, atol=1e-4)


def test_without_the_regulariser_only_the_known_pixels_count():
    found = run(REDDiff(weight=0), list(range(49, -2, -1)), noise=0.3)
    torch.testing.assert_close(found, (1 - WORLD.hole) * WORLD.y, rtol=0, atol=0)


def test_counts():
    sampler = Sampler(Uniform(linear_betas()), REDDiff(), steps=9)
    with NoiseTape(0, range(1)) as tape:
        sample = sampler(WORLD.prior, Task.of(WORLD.y, WORLD.hole), noise=tape)
    assert sampler.cost == Cost(9) == Cost(sample.nfe, sample.vjp)
    assert (REDDiff.preset_steps, REDDiff.fast().rate) == (1000, 0.25)


def test_distance_from_the_posterior():
    # A point estimate: the mean alone says something. Measured 0.28 (200 rows); its standard error with 30 rows, of a
    # spread of 0.75 posterior deviations, is 0.14 if all pixels went together.
    far = distance(WORLD, *moments(sampled(WORLD, REDDiff(), steps=1000, rows=30)))
    assert far.mean_error < 0.28 + 0.4
    fast = distance(WORLD, *moments(sampled(WORLD, REDDiff.fast(), steps=100, rows=30)))
    assert far.mean_error < fast.mean_error < 1.2
