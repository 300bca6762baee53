"""The reverse and forward steps against Bayes' rule, DDPM's formulas, and a perfect denoiser."""

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import RegionAware, Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.step import Denoised, log_variance, noised, posterior_mean, renoise, reverse_step, step_levels

BETAS = linear_betas()
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def soft_hole(seed=0):
    hole = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hole[:, :, 0, :2], hole[:, :, 0, 2:] = 0, 1
    return NoiseRegions.from_mask(hole)


@pytest.mark.parametrize(("t", "u"), [(500, 499), (999, 899), (20, 0), (1500, 1499), (1000, 999), (1700, 300)])
def test_posterior_is_bayes_rule(t, u):
    process, regions = RegionAware(BETAS), soft_hole()
    now, nxt = (process.noise(torch.full((2,), time), regions) for time in (t, u))
    x0, x = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    # q(x_u|x_0) q(x_t|x_u) as a product of two Gaussians in x_u
    ratio = now.alpha_map() / nxt.alpha_map()
    added = now.sigma_map().square() - ratio.square() * nxt.sigma_map().square()
    moving = ((now.alpha_map() != nxt.alpha_map()) & (nxt.sigma_map() > 0)).expand_as(x)
    precision = 1 / nxt.sigma_map().square() + ratio.square() / added
    mean = (nxt.alpha_map() * x0 / nxt.sigma_map().square() + ratio * x / added) / precision
    torch.testing.assert_close(posterior_mean(x, x0, now, nxt)[moving], mean[moving], rtol=1e-7, atol=1e-9)
    variance = now.spread(step_levels(now, nxt).posterior).expand_as(x)
    torch.testing.assert_close(variance[moving], (1 / precision).expand_as(x)[moving], rtol=1e-7, atol=1e-12)


def test_ddpm_coefficients_of_a_uniform_chain():
    t = 600
    now, nxt = (Uniform(BETAS).noise(torch.tensor([time])) for time in (t, t - 1))
    beta, abar, before = BETAS[t], ALPHA_BAR[t], ALPHA_BAR[t - 1]
    x0, x = normal(1, 3, 2, 2), normal(1, 3, 2, 2, seed=1)
    mean = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x) / (1 - abar)
    noise = normal(1, 3, 2, 2, seed=2)
    stepped = reverse_step(x, Denoised(x0), now, nxt, eta=1.0, noise=noise)
    torch.testing.assert_close(stepped, mean + (beta * (1 - before) / (1 - abar)).sqrt() * noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_family_keeps_the_marginal(eta):
    """From x_t = a x0 + s e with the true x0, x_u must be N(a' x0, s'^2): mean and variance add up for every eta."""
    process, regions = RegionAware(BETAS), soft_hole()
    now, nxt = (process.noise(torch.full((2,), time), regions) for time in (700, 500))
    x0, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)

    def step(x, noise):
        return reverse_step(x, Denoised(x0), now, nxt, eta=eta, noise=noise)

    at_mean = step(noised(x0, now, noise=zero), zero)
    torch.testing.assert_close(at_mean, (nxt.alpha_map() * x0).expand_as(x0), rtol=1e-9, atol=1e-9)
    from_eps = step(noised(x0, now, noise=one), zero) - at_mean
    from_noise = step(noised(x0, now, noise=zero), one) - at_mean
    torch.testing.assert_close(
        from_eps.square() + from_noise.square(), nxt.sigma_map().square().expand_as(x0), rtol=1e-7, atol=1e-9
    )
    assert (from_noise >= 0).all()
    assert eps.shape == x0.shape


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_pixels_whose_level_does_not_change_come_back_bit_identical(eta):
    regions = NoiseRegions.from_mask((torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float())
    process = RegionAware(BETAS)
    x, x0, noise = (normal(2, 3, 4, 4, seed=seed).float() for seed in range(3))
    hole = (regions.index == 1)[:, None].expand_as(x)
    for t, u, still in ((800, 700, ~hole), (0, CLEAN, ~hole), (1800, 1700, hole)):
        now, nxt = (process.noise(torch.full((2,), time), regions) for time in (t, u))
        for moved in (
            reverse_step(x, Denoised(x0, torch.rand_like(x)), now, nxt, eta=eta, noise=noise),
            renoise(x, nxt, now, noise=noise),
            posterior_mean(x, x0, now, nxt),
        ):
            assert torch.equal(moved[still], x[still])
            assert not (moved[~still] == x[~still]).any()


def test_last_step_returns_the_estimate():
    now, nxt = (Uniform(BETAS).noise(torch.tensor([time])) for time in (0, CLEAN))
    x0 = normal(1, 3, 2, 2)
    torch.testing.assert_close(reverse_step(normal(1, 3, 2, 2, seed=1), Denoised(x0), now, nxt), x0)


def test_perfect_estimate_and_no_noise_reach_x0_in_one_jump():
    process, regions = RegionAware(BETAS), soft_hole()
    x0, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    now, nxt = (process.noise(torch.full((2,), time), regions) for time in (999, CLEAN))
    x = noised(x0, now, noise=eps)
    estimate = (x - now.sigma_map() * eps) / now.alpha_map()
    torch.testing.assert_close(reverse_step(x, Denoised(estimate), now, nxt, eta=0.0), x0, rtol=1e-9, atol=1e-9)


def test_forward_marginal_by_composing_single_moves():
    """Mean and variance of x_t by going through every level one by one equal those of one jump."""
    process = RegionAware(BETAS)
    values = torch.tensor([[0.0, 0.3, 0.8, 1.0]], dtype=torch.float64)
    regions = NoiseRegions(values, torch.arange(4)[None, None])
    now = process.noise(torch.tensor([CLEAN]), regions)
    mean, variance = torch.ones(1, 1, 1, 4, dtype=torch.float64), torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    for t in range(1500):
        nxt = process.noise(torch.tensor([t]), regions)
        mean, scale = renoise(mean, now, nxt, noise=zero), renoise(one, now, nxt, noise=zero)
        spread = renoise(zero, now, nxt, noise=one)
        variance, now = variance * scale.square() + spread.square(), nxt
    torch.testing.assert_close(mean, now.alpha_map(), rtol=1e-9, atol=0)
    torch.testing.assert_close(variance, now.sigma_map().square(), rtol=1e-9, atol=1e-15)


def test_learned_variance_runs_from_the_posterior_to_the_forward_one():
    now, nxt = (Uniform(BETAS).noise(torch.tensor([time])) for time in (500, 400))
    levels = step_levels(now, nxt)
    for fraction, variance in ((0.0, levels.posterior), (1.0, levels.b)):
        got = log_variance(torch.full((1, 3, 2, 2), fraction, dtype=torch.float64), now, nxt)
        torch.testing.assert_close(got.exp(), variance.view(1, 1, 1, 1).expand_as(got), rtol=1e-9, atol=0)
    x, x0, noise = (normal(1, 3, 2, 2, seed=seed) for seed in range(3))
    low = reverse_step(x, Denoised(x0, torch.zeros_like(x)), now, nxt, noise=noise)
    torch.testing.assert_close(low, reverse_step(x, Denoised(x0), now, nxt, noise=noise), rtol=1e-9, atol=1e-9)
    still = reverse_step(x, Denoised(x0), now, nxt, noise=torch.zeros_like(x))
    half = reverse_step(x, Denoised(x0, torch.ones_like(x)), now, nxt, noise=noise) - still
    torch.testing.assert_close(half, levels.b.sqrt().view(1, 1, 1, 1) * noise, rtol=1e-7, atol=1e-9)


def test_learned_variance_of_a_step_to_the_clean_level_begins_at_half_the_forward_one():
    now, nxt = (Uniform(BETAS).noise(torch.tensor([time])) for time in (0, CLEAN))
    for fraction, share in ((0.0, 0.5), (1.0, 1.0)):
        got = log_variance(torch.full((1, 3, 2, 2), fraction, dtype=torch.float64), now, nxt)
        torch.testing.assert_close(got.exp(), (share * step_levels(now, nxt).b).view(1, 1, 1, 1).expand_as(got))


def test_missing_noise_is_an_error_where_it_is_needed_only():
    now, nxt, clean = (Uniform(BETAS).noise(torch.tensor([time])) for time in (500, 400, CLEAN))
    x = normal(1, 3, 2, 2)
    with pytest.raises(ValueError, match="needs noise"):
        reverse_step(x, Denoised(x), now, nxt)
    reverse_step(x, Denoised(x), now, clean)
    reverse_step(x, Denoised(x), now, nxt, eta=0.0)
