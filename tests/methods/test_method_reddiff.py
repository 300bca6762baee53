"""RED-diff: Adam's steps, the stationary point in closed form, and its limits."""

import pytest
import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.guidance import predicted_noise, residual
from rad.methods.reddiff import REDDiff
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, CountedDenoiser, RunContext
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, make_world, moments, sampled
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()


def run(method: REDDiff, times: list[int], *, noise: float = 0.0) -> Tensor:
    """With all draws equal to `noise`."""
    task = Task.from_image(WORLD.y, WORLD.hole)
    process = Uniform(linear_betas())

    def draw() -> Tensor:
        return torch.full_like(WORLD.y, noise)

    return method.run(RunContext(task, process, CountedDenoiser(WORLD.denoiser), times, 0.0, draw))


@pytest.mark.spread(1)
@pytest.mark.parametrize("t", [100, 400])
def test_stationary_point(t: int):
    """The gradient is affine in the noise, so with no noise it is its mean; there mu solves
    (K + w s^2 M^-1) mu = K y + w s^2 M^-1 mu_prior, with M = a^2 Sigma + s^2."""
    level = Uniform(linear_betas()).noise(torch.tensor([t]), None)
    a2, s2 = float(level.alpha.square()), float(level.sigma.square())
    K = torch.diag((1 - WORLD.hole).flatten())
    data_gradient = 0.25 * s2 * torch.linalg.inv(a2 * WORLD.denoiser.covariance + s2 * torch.eye(64, dtype=DOUBLE))
    exact = torch.linalg.solve(K + data_gradient, K @ WORLD.y.flatten() + data_gradient @ WORLD.denoiser.mean.flatten())
    found = run(REDDiff(rate=0.01), [*[t] * 1000, -1])
    torch.testing.assert_close(found.flatten(), exact, rtol=0, atol=0.01)


def test_the_first_step_is_the_sign_of_the_gradient():
    """Adam's first step is the rate, against the gradient. A draw n in the hole, where mu = 0, gives (s/a)(e - n)."""
    level = Uniform(linear_betas()).noise(torch.tensor([500]), None)
    a, s, S = level.alpha, level.sigma, WORLD.denoiser.covariance
    mu, n = ((1 - WORLD.hole) * WORLD.y).flatten(), torch.full((64,), 0.7, dtype=DOUBLE)
    M = a**2 * S + s**2 * torch.eye(64, dtype=DOUBLE)
    e = s[0] * torch.linalg.solve(M, (a * mu + s * n - a * WORLD.denoiser.mean.flatten())[0])
    gradient = (s / a)[0] * (e - n)  # the data term is 0 at the beginning
    found = run(REDDiff(), [500, -1], noise=0.7).flatten()
    torch.testing.assert_close(found, mu - 0.1 * gradient.sign(), rtol=0, atol=1e-4)


def test_without_the_regulariser_only_the_known_pixels_count():
    found = run(REDDiff(weight=0), list(range(49, -2, -1)), noise=0.3)
    torch.testing.assert_close(found, (1 - WORLD.hole) * WORLD.y, rtol=0, atol=0)


def test_counts():
    sampler = Sampler(Uniform(linear_betas()), REDDiff(), steps=9)
    with KeyedNoise(0, range(1)) as noise:
        sample = sampler(WORLD.denoiser, Task.from_image(WORLD.y, WORLD.hole), noise=noise)
    assert sampler.cost == Cost(9) == Cost(sample.nfe, sample.vjp)
    assert (REDDiff.preset_steps, REDDiff.fast().rate) == (1000, 0.25)


def test_distance_from_the_posterior():
    # A point estimate: the mean alone says something. Measured 0.28 (200 rows); its standard error with 30 rows, of a
    # spread of 0.75 posterior deviations, is 0.14 if all pixels went together.
    far = distance(WORLD, *moments(sampled(WORLD, REDDiff(), steps=1000, rows=30)))
    assert far.mean_error < 0.28 + 0.4
    fast = distance(WORLD, *moments(sampled(WORLD, REDDiff.fast(), steps=100, rows=30)))
    assert far.mean_error < fast.mean_error < 1.2


class Before(REDDiff):
    """The gradient as it was before there were decoders."""

    def gradient(self, task: Task, mu: Tensor, x: Tensor, x0: Tensor, level: NoiseLevel, *, noise: Tensor) -> Tensor:
        ratio = level.spread((level.sigma / level.alpha).to(x.dtype))
        regulariser = ratio * (predicted_noise(x, x0, level) - noise)
        return (self.weight * regulariser - residual(task, mu)) / mu[0].numel()


def raw(method: REDDiff, task: Task, *, steps: int = 8) -> Tensor:
    with KeyedNoise(0, ["a"]) as noise:
        return Sampler(Uniform(linear_betas()), method, steps=steps)(WORLD.denoiser, task, noise=noise).raw


def test_both_spaces_equal_the_reference_bit_for_bit_on_pixels():
    for hole in (WORLD.hole, 0.5 * WORLD.hole):
        task = Task.from_image(WORLD.y, hole)
        before = raw(Before(), task)
        assert torch.equal(raw(REDDiff(), task), before)
        assert torch.equal(raw(REDDiff(space="pixels"), task), before)
        assert not torch.equal(raw(REDDiff(weighting="const"), task), before)


def test_the_gradient_through_a_decoder_is_that_of_its_matrix():
    """The loss of the data is a mean over pixels: with a decoder that repeats a cell in them it is that of the cells."""
    autoencoder, hole = LinearAutoencoder(blur=0.5), WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    task, level = Task.encoded(image, hole, autoencoder), Uniform(linear_betas()).noise(torch.tensor([500]), None)
    mu, x, x0, noise = torch.randn(4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    found = REDDiff(weight=0, space="pixels").gradient(task, mu, x, x0, level, noise=noise)
    D = autoencoder.decode(torch.eye(64, dtype=DOUBLE).view(64, 1, 8, 8)).flatten(1).T
    missing = (1 - hole) * (image - autoencoder.decode(mu))
    torch.testing.assert_close(found.flatten(), -D.T @ missing.flatten() / missing.numel(), rtol=1e-9, atol=1e-15)
    plain = LinearAutoencoder()
    task = Task.encoded(plain.decode(WORLD.y), hole, plain)
    both = [REDDiff(space=space).gradient(task, mu, x, x0, level, noise=noise) for space in ("latent", "pixels")]
    extra = REDDiff(weight=0).gradient(task, mu, x, x0, level, noise=noise)
    # Half the scale in pixels: a quarter of the pull.
    torch.testing.assert_close(both[1], both[0] - 0.75 * extra, rtol=1e-9, atol=1e-12)


def test_linear_weighting_pulls_towards_the_estimate_and_const_less_where_there_is_more_noise():
    level = Uniform(linear_betas()).noise(torch.tensor([700]), None)
    mu, noise = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x = level.alpha_map() * mu + level.sigma_map() * noise
    x0, task = WORLD.denoiser.denoise(x, level).x0, Task.from_image(WORLD.y, torch.ones_like(WORLD.hole))
    linear, const = (
        REDDiff(weighting=name).gradient(task, mu, x, x0, level, noise=noise) for name in ("linear", "const")
    )
    torch.testing.assert_close(linear, 0.25 * (mu - x0) / 64, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(const, float(level.alpha / level.sigma) * linear, rtol=1e-9, atol=1e-12)
