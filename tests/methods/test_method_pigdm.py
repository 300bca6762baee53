"""PiGDM: its three weights against the formulas, where Bayes' rule is exact, and how far it is from the posterior."""

from dataclasses import dataclass, replace

import pytest
import torch

from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.step import reverse_step
from rad.methods.pigdm import PiGDM
from rad.sampling.method import SamplingMethod
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world, sampled

WORLD = make_world()
WEIGHTINGS = ("reddiff", "paper", "score")


def state_at(x, t, after, *, denoiser=WORLD.denoiser, rows=2):
    process, task = (
        Uniform(linear_betas()),
        Task.from_image(WORLD.y.expand(rows, 1, 8, 8), WORLD.hole.expand(rows, 1, 8, 8)),
    )
    now, nxt = (process.noise(torch.full((rows,), time)) for time in (t, after))
    x, counted = x.detach().requires_grad_(), CountedDenoiser(denoiser)
    return State(task, process, counted, 0, 1, t, after, now, nxt, x, lambda: x)


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_step_is_that_of_the_formulas(weighting, sigma_y):
    eta = 0.5
    x, fresh = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    state, method = state_at(x, 400, 300), PiGDM(weighting=weighting, sigma_y=sigma_y, strength=0.7)
    denoised = state.denoiser.denoise(state.x, state.now)
    guided = method.on_denoised(state, denoised)
    stepped = reverse_step(x, guided, state.now, state.next, eta=eta, noise=fresh)
    found = method.after_step(state, guided, stepped)
    assert state.denoiser.vjp == 1

    a, a_next = state.now.alpha_map(), state.next.alpha_map()
    s, s_next = state.now.sigma_map(), state.next.sigma_map()
    hole, x0 = WORLD.hole, denoised.x0
    r = (1 - hole) * (WORLD.y - x0) / (1 + sigma_y**2 / s**2)
    jacobian = WORLD.denoiser.posterior_covariance(state.now)[0] * a[0] / s[0].square()  # symmetric
    g = 0.7 * (r.flatten(1) @ jacobian).view(x.shape)
    c1 = eta * s_next / s * (1 - (a / a_next) ** 2).sqrt()
    c2 = (s_next**2 - c1**2).sqrt()
    weight = {"reddiff": a_next * a * hole, "paper": a, "score": a_next / a - c2 / s}[weighting]
    projected = x0 + r if weighting == "reddiff" else x0
    expected = a_next * projected + c1 * fresh + c2 * (x - a * x0) / s + weight * g
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_the_score_weight_is_bayes_rule_for_white_data(sigma_y):
    white = GaussianDenoiser(torch.zeros(1, 8, 8, dtype=DOUBLE), torch.eye(64, dtype=DOUBLE))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    state = state_at(x, 400, 300, denoiser=white)
    a, s = state.now.alpha_map(), state.now.sigma_map()
    # x0 given x_t is N(a x, s^2); y adds sigma_y^2.
    expected = a * x + (1 - WORLD.hole) * s**2 / (s**2 + sigma_y**2) * (WORLD.y - a * x)
    found = PiGDM(weighting="score", sigma_y=sigma_y).on_denoised(state, state.denoiser.denoise(state.x, state.now))
    torch.testing.assert_close(found.x0, expected, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Exploding(PiGDM):
    """The same chain in units where a = 1."""

    def process(self, own, time_origin):
        class Process(Uniform):
            def noise(self, t, regions=None):
                level = super().noise(t)
                return NoiseLevel(torch.ones_like(level.alpha), level.sigma / level.alpha, level.timesteps)

        return Process(own.betas)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_units_do_not_matter(weighting):
    one, two = (sampled(WORLD, kind(weighting=weighting), steps=10, rows=2) for kind in (PiGDM, Exploding))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@pytest.mark.parametrize("why", ["no strength", "nothing known"])
def test_without_a_pull_it_is_the_plain_sampler(why):
    world = WORLD if why == "no strength" else replace(WORLD, hole=torch.ones_like(WORLD.hole))
    plain = sampled(world, SamplingMethod(), steps=10, rows=2, eta=0.0)
    for weighting in ("paper", "score") if why == "no strength" else WEIGHTINGS:
        method = PiGDM(weighting=weighting, strength=0 if why == "no strength" else 1)
        assert torch.equal(sampled(world, method, steps=10, rows=2, eta=0.0), plain)


@pytest.mark.parametrize(
    ("weighting", "eta", "mean_error", "variance_ratio", "kl"),
    [
        ("reddiff", 1, 0.1523, 0.8189, 0.6534),
        ("reddiff", 0, 0.5267, 1.0766, 1.1206),
        ("paper", 1, 0.2073, 0.7285, 0.7975),
        ("paper", 0, 0.3317, 0.6111, 1.0412),
        ("score", 1, 0.7770, 1.5216, 3.7579),
    ],
)
def test_distance_from_the_posterior(weighting, eta, mean_error, variance_ratio, kl):
    mean, covariance = law(WORLD, PiGDM(weighting=weighting), steps=100, eta=eta)
    found = distance(WORLD, mean.detach(), covariance.detach())
    # Propagated, not sampled: the tolerance is for rounding of these numbers.
    assert (found.mean_error, found.variance_ratio, found.kl) == pytest.approx(
        (mean_error, variance_ratio, kl), rel=1e-3
    )
    if weighting == "reddiff":
        known = ~WORLD.inside
        torch.testing.assert_close(mean.detach()[known], WORLD.y.flatten()[known], rtol=0, atol=1e-12)
        assert float(covariance.detach().diagonal()[known].max()) < 1e-20


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="weighting is 'dps'; allowed are"):
        PiGDM(weighting="dps")  # pyright: ignore[reportArgumentType]
