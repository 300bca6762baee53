"""Two modes: the known pixels say how likely each is, and a method that samples the posterior fills holes in that proportion."""

import math

import pytest
import torch

from rad.diffusion.gaussian import GaussianDenoiser, MixtureDenoiser
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import RegionAware, Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.copaint import CoPaint
from rad.methods.rad import RAD
from rad.methods.replacement import Replacement
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import DOUBLE

SIZE = 4
COVARIANCE = 0.02 * torch.exp(-torch.cdist(torch.arange(16.0)[:, None], torch.arange(16.0)[:, None]) / 3).double()
COVARIANCE += 0.005 * torch.eye(16, dtype=DOUBLE)
# The modes differ by 0.2 where the image is known and by 1.2 in the hole.
HOLE = torch.zeros(1, 1, SIZE, SIZE, dtype=DOUBLE)
HOLE[..., 1:, 2:] = 1
MEANS = [sign * (0.1 * (1 - HOLE[0]) + 0.6 * HOLE[0]) for sign in (-1, 1)]
WEIGHTS = torch.tensor([0.3, 0.7], dtype=DOUBLE)
PRIOR = MixtureDenoiser([GaussianDenoiser(mean, COVARIANCE) for mean in MEANS], WEIGHTS)
Y = torch.zeros(1, 1, SIZE, SIZE, dtype=DOUBLE)
INSIDE = HOLE.flatten().bool()


def posterior_weights(y):
    """(2,) pi_j N(y_K; mu_jK, Sigma_KK), normalised."""
    known = ~INSIDE
    normal = [
        torch.distributions.MultivariateNormal(mean.flatten()[known], COVARIANCE[known][:, known]) for mean in MEANS
    ]
    logs = torch.stack([one.log_prob(y.flatten()[known]) for one in normal])
    return (logs + WEIGHTS.log()).softmax(0)


def fill(method, *, rows, steps, y=Y):
    task = Task.from_image(y.expand(rows, -1, -1, -1), HOLE.expand(rows, -1, -1, -1))
    assert isinstance(method, SamplingMethod)
    sampler = Sampler(method.process(Uniform(linear_betas()), "adm"), method, **vars(method.choose(steps=steps)))
    with KeyedNoise(0, range(rows)) as noise:
        return sampler(PRIOR, task, noise=noise).raw.flatten(1)[:, INSIDE]


def test_the_denoiser_is_the_gradient_of_the_log_density():
    """Tweedie: D(x) = (x + s^2 grad log p(x)) / a, with p the density of the noised mixture."""
    noise = Uniform(linear_betas()).noise(torch.tensor([300, 300]))
    x = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).requires_grad_()
    logs = torch.stack([one.log_density(x, noise) for one in PRIOR.components], 1) + WEIGHTS.log()
    (score,) = torch.autograd.grad(logs.logsumexp(1).sum(), x)
    expected = (x + noise.sigma_map().square() * score) / noise.alpha_map()
    torch.testing.assert_close(PRIOR.denoise(x, noise).x0, expected, rtol=0, atol=1e-10)
    normal = torch.distributions.MultivariateNormal(
        float(noise.alpha[0]) * MEANS[1].flatten(),
        noise.alpha[0] ** 2 * COVARIANCE + noise.sigma[0] ** 2 * torch.eye(16, dtype=DOUBLE),
    )
    torch.testing.assert_close(
        PRIOR.components[1].log_density(x, noise), normal.log_prob(x.flatten(1)), rtol=0, atol=1e-10
    )


def test_with_clean_known_pixels_the_responsibilities_are_the_posteriors_weights():
    noise = RegionAware(linear_betas()).noise(torch.tensor([999]), NoiseRegions.from_mask(HOLE))
    x = torch.where(HOLE == 0, Y, 0.0)
    torch.testing.assert_close(PRIOR.responsibilities(x, noise)[0], posterior_weights(Y), rtol=0, atol=5e-3)
    assert 0.25 < float(posterior_weights(Y)[0]) < 0.35, "y = 0 says nothing: the weights are those of the data"


@pytest.mark.parametrize("value", [0.0, 0.03])
def test_rad_fills_holes_in_proportion_to_the_posterior(value):
    y = torch.full_like(Y, value)
    rows, share = 400, float(posterior_weights(y)[1])
    filled = fill(RAD(), rows=rows, steps=50, y=y)
    upper = float((filled.mean(1) > 0).double().mean())
    # The deviation of a share of 400 is at most 0.023; few steps add a little.
    assert upper == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / rows))
    assert float((filled.mean(1).abs() - 0.6).abs().max()) < 0.5, "every hole is in one of the modes, none between"


@pytest.mark.parametrize("method", [Replacement(), CoPaint()])
def test_methods_with_weak_guidance_give_the_modes_wrong_weights(method):
    """Measured with 200 holes at 50 steps: shares 0.64 and 0.63 of the mode that has 0.84 of the posterior (deviation 0.03)."""
    y = torch.full_like(Y, 0.03)
    assert float(posterior_weights(y)[1]) == pytest.approx(0.845, abs=1e-3)
    share = float((fill(method, rows=200, steps=50, y=y).mean(1) > 0).double().mean())
    assert share == pytest.approx(0.635, abs=0.1)
