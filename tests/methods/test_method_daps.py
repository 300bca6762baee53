"""DAPS: the ODE against its closed form, the inner draw, the fresh start at each level, and the oracle."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import Denoised
from rad.methods.daps import DAPS
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, CountedDenoiser, State, level
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()


def state(x: Tensor, *, time: int, next_timestep: int = 0, noise: float = 0.0) -> State:
    task, process = Task.from_image(WORLD.y, WORLD.hole), Uniform(linear_betas())
    now, after = level(process, time, task), level(process, next_timestep, task)

    def draw() -> Tensor:
        return torch.full_like(x, noise)

    denoiser = CountedDenoiser(WORLD.denoiser)
    return State(task, process, denoiser, 0, 200, time, next_timestep, now, after, x, draw)


def image() -> Tensor:
    return torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def test_the_ode_tends_to_its_closed_form():
    """z = x / a at sigma goes to mu + Sigma^(1/2) (Sigma + sigma^2)^(-1/2) (z - mu): first order in the calls."""
    at = state(image(), time=500)
    a, sigma = float(at.now.alpha), float(at.now.sigma / at.now.alpha)
    values, vectors = torch.linalg.eigh(WORLD.denoiser.covariance)
    mean = WORLD.denoiser.mean.flatten()
    exact = mean + vectors @ ((values / (values + sigma**2)).sqrt() * (vectors.T @ (at.x.flatten() / a - mean)))
    inside, errors, denoised = WORLD.inside, [], at.denoiser.denoise(at.x, at.now)
    for calls in (1, 5, 20, 80):
        found = DAPS(calls=calls).on_denoised(at, denoised).x0.flatten()
        errors.append(float((found - exact)[inside].square().mean().sqrt()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]
    assert errors[3] < 0.01
    one = DAPS(calls=1).on_denoised(at, denoised).x0
    torch.testing.assert_close(one * WORLD.hole, denoised.x0 * WORLD.hole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("time", [0, 300])
@pytest.mark.parametrize("tau", [0.0, 0.05])
def test_inner_moments(time: int, tau: float):
    """Precision 1 / sigma^2 + 2 / tau^2 at known pixels; in the hole x0, or x0 + sigma n."""
    x0, known = image(), 1 - WORLD.hole
    still, noisy = state(image(), time=time), state(image(), time=time, noise=1.0)
    sigma2 = float((still.now.sigma / still.now.alpha).square())
    mean, drawn = DAPS(tau=tau).inner(still, x0), DAPS(tau=tau).inner(noisy, x0)
    precision = 1 / sigma2 + 2 / max(tau, 1e-9) ** 2
    expected = (x0 / sigma2 + 2 * WORLD.y / max(tau, 1e-9) ** 2) / precision
    torch.testing.assert_close(mean * known, expected * known, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((drawn - mean) * known, known * precision**-0.5, rtol=1e-9, atol=1e-9)
    assert torch.equal(drawn * WORLD.hole, x0 * WORLD.hole)
    declared = DAPS(tau=tau, hole="draw").inner(noisy, x0)
    torch.testing.assert_close((declared - x0) * WORLD.hole, sigma2**0.5 * WORLD.hole, rtol=1e-9, atol=1e-12)


def test_the_next_level_starts_afresh():
    at = state(image(), time=300, next_timestep=200, noise=1.0)
    x0 = image().flip(2)
    moved = DAPS().after_step(at, Denoised(x0), torch.full_like(x0, 7.0))
    torch.testing.assert_close(moved, at.next.alpha_map() * x0 + at.next.sigma_map(), rtol=1e-12, atol=1e-14)
    last = state(image(), time=0, next_timestep=CLEAN)
    assert torch.equal(DAPS().after_step(last, Denoised(x0), torch.full_like(x0, 7.0)), x0)


def test_times_and_counts():
    assert [DAPS().ode_timesteps(t) for t in (999, 1, 0)] == [[999, 639, 360, 160, 40], [1, 0], [0]]
    for calls, steps in ((5, 12), (2, 30), (1, 4)):
        sampler = Sampler(Uniform(linear_betas()), DAPS(calls=calls), steps=steps, eta=0)
        with KeyedNoise(0, range(1)) as noise:
            sample = sampler(WORLD.denoiser, Task.from_image(WORLD.y, WORLD.hole), noise=noise)
        assert sampler.cost == Cost(sample.nfe, sample.vjp)
    assert DAPS().cost(spaced_timesteps(1000, 200)) == Cost(996)
    with pytest.raises(ValueError, match="hole"):
        DAPS(hole="median")  # pyright: ignore[reportArgumentType]


def test_distance_from_the_posterior():
    """Exact laws. The declared draw in the hole varies far too much; more levels bring the mean nearer."""
    plain = distance(WORLD, *law(WORLD, DAPS(), steps=200, draws=3))
    assert (plain.mean_error, plain.variance_ratio, plain.kl) == pytest.approx((0.4577, 1.2041, 0.9111), rel=1e-3)
    for method, expected in ((DAPS(calls=2), (0.8384, 1.2249)), (DAPS(calls=2, hole="draw"), (0.8384, 3.3336))):
        short = distance(WORLD, *law(WORLD, method, steps=50, draws=3))
        assert (short.mean_error, short.variance_ratio) == pytest.approx(expected, rel=1e-3)


class Before(DAPS):
    """The draw as it was before there were decoders."""

    def inner(self, state: State, x0: Tensor) -> Tensor:
        sigma = state.now.spread((state.now.sigma / state.now.alpha).to(x0.dtype))
        fresh = state.randn()
        gain = 2 * sigma.square() / (2 * sigma.square() + self.tau**2)
        known = torch.lerp(x0, state.task.known, gain) + (gain / 2).sqrt() * self.tau * fresh
        return torch.lerp(known, x0 if self.hole == "mean" else x0 + sigma * fresh, state.task.hole)


def raw(method: DAPS, task: Task) -> Tensor:
    with KeyedNoise(0, ["a"]) as noise:
        return Sampler(Uniform(linear_betas()), method, steps=6, eta=0)(WORLD.denoiser, task, noise=noise).raw


@pytest.mark.parametrize("hole", ["mean", "draw"])
def test_both_spaces_equal_the_reference_bit_for_bit_on_pixels(hole: Any):
    task, soft = Task.from_image(WORLD.y, WORLD.hole), Task.from_image(WORLD.y, 0.5 * WORLD.hole)
    for one in (task, soft):
        before = raw(Before(hole=hole), one)
        assert torch.equal(raw(DAPS(hole=hole), one), before)
        assert torch.equal(raw(DAPS(hole=hole, space="pixels"), one), before)
        langevin = [raw(DAPS(hole=hole, space=space, mcmc="langevin"), one) for space in ("latent", "pixels")]
        assert torch.equal(*langevin)
        assert not torch.equal(langevin[0], before)


@pytest.mark.parametrize("hole", ["mean", "draw"])
def test_long_langevin_runs_match_the_closed_form(hole: Any):
    """600 chains of 300 steps. Each step forgets 2.7 percent; its discretisation error of the variance is below 2 percent."""
    rows, tau = 600, 0.3
    task = Task.from_image(WORLD.y.expand(rows, -1, -1, -1), WORLD.hole.expand(rows, -1, -1, -1))
    process, numbers = Uniform(linear_betas()), torch.Generator().manual_seed(0)
    now, after = level(process, 300, task), level(process, 200, task)
    x0 = image().expand(rows, -1, -1, -1)
    at = State(
        *(task, process, CountedDenoiser(WORLD.denoiser), 0, 200, 300, 200, now, after, x0),
        lambda: torch.randn(x0.shape, generator=numbers, dtype=DOUBLE),
    )
    method = DAPS(hole=hole, tau=tau, mcmc="langevin", rate=1e-3, iterations=300, decay=1)
    found = method.inner(at, x0)
    exact = DAPS(hole=hole, tau=tau).inner(replace(at, randn=lambda: torch.zeros_like(x0)), x0)[0]
    sigma2 = float((now.sigma / now.alpha)[0].square())
    deviation = (1 / (1 / sigma2 + 2 / tau**2)) ** 0.5
    known = (WORLD.hole == 0)[0]
    assert float((found.mean(0) - exact)[known].abs().max()) < 4.5 * deviation / rows**0.5 + 1e-3
    assert float(found.std(0)[known].mean()) == pytest.approx(deviation, rel=0.03)
    if hole == "mean":
        torch.testing.assert_close(found[:, ~known], x0[:, ~known], rtol=0, atol=0)
    else:  # the chain of the hole is slower: it has forgotten 1 - exp(-0.3 / sigma^2) of its start, which is its mean
        grown = sigma2 * (1 - (1 - 1e-3 / sigma2) ** 600) / (1 - 1e-3 / sigma2 / 2)
        assert float(found.var(0)[~known].mean()) == pytest.approx(grown, rel=0.05)


def test_the_langevin_rate_falls_to_the_decay():
    at, x0 = state(image(), time=300), image()
    method, known = DAPS(mcmc="langevin", tau=0.3, rate=1e-4, iterations=1, decay=0.2), WORLD.hole == 0
    first, later = (method.inner(replace(at, step=step), x0) - x0 for step in (0, 150))
    torch.testing.assert_close(first[known], (2e-4 / 0.3**2 * (WORLD.y - x0))[known])
    torch.testing.assert_close(later[known], 0.4 * first[known])


class Loud(LinearAutoencoder):
    """Its decoder multiplies by 40: steps of the set length would grow without bound."""

    def decode(self, latents: Tensor) -> Tensor:
        return 40 * super().decode(latents)

    def encode(self, pixels: Tensor) -> Tensor:
        return super().encode(pixels) / 40


def test_through_a_decoder():
    image, hole = LinearAutoencoder().decode(WORLD.y), WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    task = Task.encoded(40 * image, hole, Loud())
    with pytest.raises(ValueError, match='use mcmc "langevin", or space "latent"'):
        raw(DAPS(space="pixels"), task)
    found = raw(DAPS(space="pixels", mcmc="langevin", tau=0.1), task)
    assert float(((found - WORLD.y) * (1 - WORLD.hole)).abs().max()) < 0.1
    with pytest.raises(ValueError, match='tau is 0; with mcmc "langevin" it must be above 0'):
        DAPS(mcmc="langevin", tau=0)


def test_the_error_comes_before_any_call():
    class Dead:
        channels = 1

        def denoise(self, x, noise):
            raise AssertionError("a network was called")

    hole = WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    task = Task.encoded(LinearAutoencoder().decode(WORLD.y), hole, LinearAutoencoder())
    with KeyedNoise(0, ["a"]) as rng, pytest.raises(ValueError, match="daps: mcmc"):
        Sampler(Uniform(linear_betas()), DAPS(space="pixels"), steps=6)(Dead(), task, noise=rng)
