"""RAD's sampler on Gaussian data, where its law is known exactly: the hole must follow the posterior given the known pixels."""

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import RegionAware, Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, kl, make_world, propagate

WORLD = make_world()
REGIONS = NoiseRegions.from_mask(WORLD.hole)
PROCESS = RegionAware(linear_betas())


def rad_chain(steps):
    return [PROCESS.noise(torch.tensor([t]), REGIONS) for t in spaced_timesteps(1000, steps)]


def rad_law(steps, **options):
    """Mean and covariance of the hole after sampling from noise in the hole and the truth around it."""
    known = (WORLD.y * (1 - WORLD.hole)).flatten()
    mean, covariance = propagate(
        WORLD, rad_chain(steps), mean=known, covariance=torch.diag(WORLD.hole.flatten()), **options
    )
    inside = WORLD.inside
    assert torch.equal(mean[~inside], known[~inside]), "known pixels are the input, bit for bit"
    assert (covariance[~inside] == 0).all()
    return mean[inside], covariance[inside][:, inside]


@pytest.mark.parametrize("steps", [10, 50])
def test_with_the_true_reverse_kernel_rad_samples_the_exact_conditional(steps):
    """Without the discretisation error of the step variance, the law is the posterior at any number of steps."""
    mean, covariance = rad_law(steps, exact=True)
    posterior_mean, posterior_covariance = WORLD.posterior()
    # What is left is the start: x_T is N(0,1) and not a x_0 + s e, with a = 0.0064.
    torch.testing.assert_close(mean, posterior_mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance, posterior_covariance, rtol=0, atol=1e-4)
    assert kl(mean, covariance, posterior_mean, posterior_covariance) < 1e-3


def test_with_its_own_steps_rad_has_the_right_mean_and_converges():
    """DDPM's step variance is too small at few steps, for the exact conditional denoiser too; the error shrinks with steps."""
    posterior_mean, posterior_covariance = WORLD.posterior()
    previous = float("inf")
    for steps, variance_ratio, distance in ((50, 0.70, 1.46), (250, 0.90, 0.148), (1000, 0.97, 0.016)):
        mean, covariance = rad_law(steps)
        deviations = (mean - posterior_mean) / posterior_covariance.diagonal().sqrt()
        assert float(deviations.abs().max()) < 0.01
        ratio = float(covariance.trace() / posterior_covariance.trace())
        assert ratio == pytest.approx(variance_ratio, abs=0.01)
        reached = kl(mean, covariance, posterior_mean, posterior_covariance)
        assert reached == pytest.approx(distance, rel=0.05)
        assert reached < previous
        previous = reached


def test_ddim_has_the_right_mean_and_covariance_in_the_limit():
    posterior_mean, posterior_covariance = WORLD.posterior()
    mean, covariance = rad_law(1000, eta=0.0)
    assert kl(mean, covariance, posterior_mean, posterior_covariance) < 0.02


def test_the_unconditional_chain_with_the_true_kernel_returns_the_data():
    chain = [Uniform(linear_betas()).noise(torch.tensor([t])) for t in spaced_timesteps(1000, 50)]
    d = WORLD.hole.numel()
    law = propagate(WORLD, chain, mean=torch.zeros(d, dtype=DOUBLE), covariance=torch.eye(d, dtype=DOUBLE), exact=True)
    assert kl(*law, WORLD.denoiser.mean.flatten(), WORLD.denoiser.covariance) < 1e-3


def test_the_sampler_itself_follows_the_propagated_law():
    """The loop as users run it, 4000 samples: mean and covariance within four standard errors of the propagated ones."""
    rows, steps = 4000, 20
    task = Task.from_image(WORLD.y.expand(rows, -1, -1, -1), WORLD.hole.expand(rows, -1, -1, -1))
    with KeyedNoise(0, range(rows)) as noise:
        sample = Sampler(PROCESS, steps=steps)(WORLD.denoiser, task, noise=noise)
    known = (WORLD.hole == 0).expand_as(sample.raw)
    assert torch.equal(sample.raw[known], WORLD.y.expand_as(sample.raw)[known])
    drawn = sample.raw.flatten(1)[:, WORLD.inside]
    mean, covariance = rad_law(steps)
    error = (drawn.mean(0) - mean) / (covariance.diagonal() / rows).sqrt()
    assert float(error.abs().max()) < 4
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance.square()
    assert float(((drawn.T.cov() - covariance) / (spread / rows).sqrt()).abs().max()) < 4.5


def test_gaussian_prior_with_per_pixel_levels():
    """Against the exact conditional, its own symmetry identities, and the scalar formula."""
    noise = PROCESS.noise(torch.tensor([600]), REGIONS)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x = torch.where(WORLD.hole == 1, x, WORLD.y)
    estimate = WORLD.denoiser.denoise(x, noise).x0
    torch.testing.assert_close(estimate[WORLD.hole == 0], WORLD.y[WORLD.hole == 0], rtol=0, atol=1e-10)
    mean, covariance = WORLD.posterior()  # given the known pixels; then condition on the noisy hole
    a, s = noise.alpha[0, 1], noise.sigma[0, 1]
    inside = WORLD.inside
    gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(16, dtype=DOUBLE))
    expected = mean + gain @ (x.flatten()[inside] - a * mean)
    torch.testing.assert_close(estimate.flatten()[inside], expected, rtol=0, atol=1e-10)
    left = WORLD.denoiser.posterior_covariance(noise)[0]
    torch.testing.assert_close(left, left.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(left[inside][:, inside], s**2 / a * gain, rtol=0, atol=1e-10)
    scalar = Uniform(linear_betas()).noise(torch.tensor([600]))
    values, vectors = torch.linalg.eigh(WORLD.denoiser.covariance)
    mu = WORLD.denoiser.mean.flatten()
    shrink = scalar.alpha * values / (scalar.alpha.square() * values + scalar.sigma.square())
    by_eigenvalues = mu + vectors @ (shrink[0] * (vectors.T @ (x.flatten() - scalar.alpha[0] * mu)))
    torch.testing.assert_close(WORLD.denoiser.denoise(x, scalar).x0.flatten(), by_eigenvalues, rtol=0, atol=1e-10)


def test_soft_masks_sample_the_posterior_of_partly_noised_pixels():
    """A pixel with m = 1/2 starts half noised; with the true kernel its law is the posterior given its own noisy value."""
    hole = WORLD.hole.clone()
    hole[..., 0, :] = 0.5
    regions = NoiseRegions.from_mask(hole)
    chain = [PROCESS.noise(torch.tensor([t]), regions) for t in spaced_timesteps(1000, 40)]
    start = chain[0]
    x = start.alpha_map() * WORLD.y * (hole < 1)
    law = propagate(WORLD, chain, mean=x.flatten(), covariance=torch.zeros(64, 64, dtype=DOUBLE), exact=True)
    exact = WORLD.denoiser.denoise(x, start).x0.flatten(), WORLD.denoiser.posterior_covariance(start)[0]
    moving = hole.flatten() > 0
    torch.testing.assert_close(law[0][moving], exact[0][moving], rtol=0, atol=1e-6)
    torch.testing.assert_close(law[1], exact[1], rtol=0, atol=1e-6)


def test_clean_start_and_end():
    assert rad_chain(10)[-1].sigma.abs().max() == 0
    assert spaced_timesteps(1000, 10)[-1] == CLEAN
