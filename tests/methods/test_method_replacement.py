"""Replacement: biased on correlated data however many steps, unbiased where pixels are independent; the corrector helps."""

from dataclasses import replace

import pytest
import torch

from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.rad import RAD
from rad.methods.replacement import Replacement
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import distance, law, make_world, moments, sampled

WORLD = make_world()


@pytest.mark.parametrize(("steps", "ratio", "kl"), [(100, 2.203, 5.748), (250, 2.295, 5.177)])
def test_its_law_is_biased_and_more_steps_do_not_help(steps, ratio, kl):
    """Propagated exactly, so measured values hold to their digits. The bias is 1.1 posterior deviations at any length."""
    reached = distance(WORLD, *law(WORLD, Replacement(), steps=steps))
    assert reached.variance_ratio == pytest.approx(ratio, rel=1e-3)
    assert reached.kl == pytest.approx(kl, rel=1e-3)
    assert reached.mean_error == pytest.approx(1.1, abs=0.03)


def test_on_independent_pixels_only_the_step_variance_is_wrong():
    d = WORLD.denoiser.mean.numel()
    independent = replace(
        WORLD, denoiser=GaussianDenoiser(WORLD.denoiser.mean, 0.25 * torch.eye(d, dtype=torch.float64))
    )
    laws = (law(independent, method, steps=250, solver="ddpm") for method in (Replacement(), RAD()))
    reached, floor = (distance(independent, *one) for one in laws)
    assert reached.mean_error < 1e-3
    assert reached.kl == pytest.approx(floor.kl, rel=1e-6)


def test_known_pixels_have_the_level_of_the_steps_end():
    mean, covariance = law(WORLD, Replacement(), steps=10)
    known = ~WORLD.inside
    assert torch.equal(mean[known], WORLD.y.flatten()[known])
    assert float(covariance[known][:, known].abs().max()) == 0


def test_the_sampler_follows_the_propagated_law():
    rows = 1000
    mean, covariance = law(WORLD, Replacement(), steps=50)
    samples = sampled(WORLD, Replacement(), steps=50, rows=rows)
    found, spread = moments(samples)
    inside = WORLD.inside
    errors = (found - mean)[inside] / (covariance.diagonal()[inside] / rows).sqrt()
    assert float(errors.abs().max()) < 4.5  # of 16 standard normal numbers
    ratio = spread.diagonal()[inside].sum() / covariance.diagonal()[inside].sum()
    assert float(ratio) == pytest.approx(1, abs=0.15)  # its deviation is about sqrt(2 / rows) times sqrt(correlation)


def test_a_correction_is_a_langevin_step_up_the_score():
    """x + h g + sqrt(2 h) n with h = 2 (r |n| / |g|)^2 in the hole, the noised image elsewhere."""
    x, fresh, other = (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(n)).double() for n in range(3))
    task, process = Task.from_image(WORLD.y, WORLD.hole), Uniform(linear_betas())
    now, nxt = (process.noise(torch.tensor([t])) for t in (400, 300))
    draws = iter([fresh, other])
    denoiser = CountedDenoiser(WORLD.denoiser)
    state = State(task, process, denoiser, 0, 1, 400, 300, now, nxt, x, lambda: next(draws))
    found = Replacement(corrections=1, ratio=0.2).before_denoise(state)
    a, s = now.alpha_map(), now.sigma_map()
    score = (a * WORLD.denoiser.denoise(x, now).x0 - x) / s.square()
    h = 2 * (0.2 * fresh.norm() / score.norm()).square()
    moved = x + h * score + (2 * h).sqrt() * fresh
    torch.testing.assert_close(
        found, torch.where(WORLD.hole == 1, moved, a * WORLD.y + s * other), rtol=1e-9, atol=1e-9
    )
    assert denoiser.nfe == 1


@pytest.mark.slow
def test_the_corrector_reduces_the_bias():
    """Monte Carlo of 400: the mean error has a deviation of about 0.05, and falls from 1.11 to 0.64 with five corrections."""
    errors = [
        distance(WORLD, *moments(sampled(WORLD, Replacement(corrections=count), steps=100, rows=400))).mean_error
        for count in (0, 5)
    ]
    assert errors[0] == pytest.approx(1.11, abs=0.2)
    assert errors[1] == pytest.approx(0.64, abs=0.2)


def test_everything_hole_is_the_plain_sampler_bit_for_bit():
    class Plain(SamplingMethod):
        def after_step(self, state, denoised, x_next):
            if state.next_timestep >= 0:
                state.randn()  # so that both use the same draws for the same steps
            return x_next

    task = Task.from_image(WORLD.y, torch.ones_like(WORLD.hole))
    results = []
    for method in (Replacement(), Plain()):
        with KeyedNoise(0, ["a"]) as noise:
            results.append(Sampler(Uniform(linear_betas()), method, steps=20)(WORLD.denoiser, task, noise=noise).raw)
    assert torch.equal(*results)
