"""DPS: its shift against the closed form, and with the exact weight the exact posterior of Gaussian data."""

from dataclasses import replace

import pytest
import torch

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.step import step_levels
from rad.methods.dps import DPS
from rad.sampling.method import SamplingMethod
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world, moments, sampled

WORLD = make_world()
KNOWN = ~WORLD.inside


class ExactDPS(DPS):
    """log p(y | x_t) = log N(y; x0, C) on known pixels, C = Cov[x0 | x_t], times the factor of a score in a DDPM step."""

    def misfit(self, state, known_residual):
        C = WORLD.denoiser.posterior_covariance(state.now)[0][KNOWN][:, KNOWN]
        observation_residual = known_residual.flatten(1)[:, KNOWN]
        # The score moves x0 by s^2/a score, and the mean of a step holds a' b / s^2 of x0.
        of_score = step_levels(state.now, state.next).b * state.next.alpha / state.now.alpha
        return of_score[:, 0] * (observation_residual * torch.linalg.solve(C, observation_residual.T).T).sum(1) / 2


@pytest.mark.parametrize(("steps", "variance_ratio", "kl"), [(50, 0.6960, 1.4491), (250, 0.9036, 0.1479)])
def test_the_exact_weight_gives_the_exact_posterior(steps, variance_ratio, kl):
    mean, covariance = law(WORLD, ExactDPS(), steps=steps)
    found = distance(WORLD, mean.detach(), covariance.detach())
    assert found.mean_error < 1e-4
    # The chain of the exact conditional denoiser: what is left is DDPM's variance for long steps. Tolerance: rounding.
    assert (found.variance_ratio, found.kl) == pytest.approx((variance_ratio, kl), rel=1e-3)
    torch.testing.assert_close(mean.detach()[KNOWN], WORLD.y.flatten()[KNOWN], rtol=0, atol=1e-12)


@pytest.mark.parametrize("exploding", [False, True])
def test_the_shift_is_the_closed_form(exploding):
    process, task = Uniform(linear_betas()), Task.from_image(WORLD.y.expand(2, 1, 8, 8), WORLD.hole.expand(2, 1, 8, 8))
    now, nxt = (process.noise(torch.tensor([t, t])) for t in (400, 300))
    jacobian = WORLD.denoiser.posterior_covariance(now)[0] * now.alpha[0] / now.sigma[0].square()  # symmetric
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    observation_residual = (1 - task.hole) * (WORLD.y - WORLD.denoiser.denoise(x, now).x0)
    expected = (
        0.3 * (observation_residual.flatten(1) @ jacobian) / observation_residual.flatten(1).norm(dim=1, keepdim=True)
    )
    if exploding:  # the same image in other units: x / a, with a = 1
        x, expected = x / now.alpha_map(), expected / nxt.alpha
        now, nxt = (NoiseLevel(torch.ones_like(v.alpha), v.sigma / v.alpha, v.timesteps) for v in (now, nxt))
    x.requires_grad_()
    denoiser = CountedDenoiser(WORLD.denoiser)
    state = State(task, process, denoiser, 0, 1, 400, 300, now, nxt, x, lambda: x)
    shift = DPS(zeta=0.3).after_step(state, denoiser.denoise(x, now), torch.zeros_like(x))
    torch.testing.assert_close(shift.flatten(1), expected, rtol=1e-9, atol=0)
    assert (denoiser.nfe, denoiser.vjp) == (1, 1)


@pytest.mark.parametrize("why", ["no step", "nothing known"])
def test_without_a_pull_it_is_the_plain_sampler(why):
    world = WORLD if why == "no step" else replace(WORLD, hole=torch.ones_like(WORLD.hole))
    method = DPS(zeta=0) if why == "no step" else DPS()
    plain = sampled(world, SamplingMethod(), steps=10, rows=2)
    assert torch.equal(sampled(world, method, steps=10, rows=2), plain)


def test_a_large_step_is_over_confident():
    samples = sampled(WORLD, DPS(zeta=1), steps=250, rows=300)
    found = distance(WORLD, *moments(samples))
    # Three seeds of 1000 rows gave 0.32 and 0.61. The smooth data has about 3 degrees of freedom, so a trace from 300
    # rows has a standard error of 5 %, and a mean one of 0.05 deviations: four of each.
    assert found.mean_error == pytest.approx(0.32, abs=0.2)
    assert found.variance_ratio == pytest.approx(0.61, rel=0.2)
    off = ((1 - WORLD.hole) * (samples - WORLD.y)).square().sum((1, 2, 3)) / KNOWN.sum()
    assert float(off.mean().sqrt()) == pytest.approx(0.0725, rel=0.1)  # known pixels are only nearly those of the image
