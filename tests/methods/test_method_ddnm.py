"""DDNM: its step on known pixels and in the hole, its counts, and its law on Gaussian data."""

import itertools

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import step_levels
from rad.methods.ddnm import DDNM
from rad.methods.replacement import Replacement
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, World, distance, law, make_world

WORLD = make_world()
PROCESS = Uniform(linear_betas())


def run(method, hole, *, steps=12, rows=2):
    sampler = Sampler(PROCESS, method, steps=steps, eta=1 if method is None else method.preset_eta)
    task = Task.from_image(WORLD.y.expand(rows, 1, 8, 8), hole.expand(rows, 1, 8, 8))
    with KeyedNoise(0, range(rows)) as noise:
        return sampler(WORLD.denoiser, task, noise=noise)


def one_step(method, t, u, *, edm=False):
    """(x at u, its e before the correction, x0, fresh, x) of a step from the same image, in VP units or in x / a."""
    generator = torch.Generator().manual_seed(3)
    x, fresh = (torch.randn(1, 1, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(2))
    now, nxt = (PROCESS.noise(torch.tensor([time])) for time in (t, u))
    if edm:
        x = x / now.alpha_map()
        now, nxt = (NoiseLevel(torch.ones_like(n.alpha), n.sigma / n.alpha, n.timesteps) for n in (now, nxt))
    estimate = WORLD.denoiser.denoise(x, now)
    denoiser, task = CountedDenoiser(WORLD.denoiser), Task.from_image(WORLD.y, WORLD.hole)
    state = State(task, PROCESS, denoiser, 0, 1, t, u, now, nxt, x, lambda: fresh)
    return (
        method.after_step(state, estimate, x),
        (x - now.alpha_map() * estimate.x0) / now.sigma_map(),
        estimate.x0,
        fresh,
        x,
    )


def test_counts():
    times = spaced_timesteps(1000, 250)
    travel = DDNM(travel_length=10, travel_repeat=3)
    assert travel.cost(travel.plan(times)) == Cost(730)
    assert DDNM().plan(times) == times
    assert run(DDNM(travel_length=3, travel_repeat=2), WORLD.hole).nfe == 12 + 3 * 3
    with pytest.raises(ValueError, match="form is 'ddpm'; allowed are 'ddnm', 'posterior'"):
        DDNM(form="ddpm")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", ["ddnm", "posterior"])
@pytest.mark.parametrize("known_noise", ["model", "fresh"])
def test_all_known_is_the_image(form, known_noise):
    sample = run(DDNM(form=form, known_noise=known_noise), torch.zeros_like(WORLD.hole))
    assert torch.equal(sample.raw, WORLD.y.expand_as(sample.raw))


def test_all_hole_is_the_plain_chain():
    hole = torch.ones_like(WORLD.hole)
    posterior = run(DDNM(form="posterior"), hole).raw
    torch.testing.assert_close(posterior, run(None, hole).raw, rtol=0, atol=1e-12)
    chain = [PROCESS.noise(torch.tensor([t])) for t in spaced_timesteps(1000, 12)]
    with KeyedNoise(0, range(2)) as noise:
        x = chain[0].sigma_map() * noise.randn(0, (1, 8, 8)).to(DOUBLE)
        for number, (now, nxt) in enumerate(itertools.pairwise(chain)):
            x0 = WORLD.denoiser.denoise(x, now).x0
            e = (x - now.alpha_map() * x0) / now.sigma_map()
            x = nxt.alpha_map() * x0 + nxt.sigma_map() * (0.6 * noise.randn(number + 1, (1, 8, 8)).to(DOUBLE) + 0.8 * e)
    torch.testing.assert_close(run(DDNM(eta=0.6), hole).raw, x, rtol=0, atol=1e-10)


def test_one_step():
    """In the hole x0 with mixed noise; on known pixels y, with the noise asked for."""
    noise = PROCESS.noise(torch.tensor([300]))
    hole = WORLD.hole == 1
    for kind in ("model", "fresh"):
        got, e, x0, fresh, _ = one_step(DDNM(eta=0.6, known_noise=kind), 400, 300)
        mixed = 0.6 * fresh + 0.8 * e
        expected = noise.alpha_map() * WORLD.y + noise.sigma_map() * (mixed if kind == "model" else fresh)
        expected = torch.where(hole, noise.alpha_map() * x0 + noise.sigma_map() * mixed, expected)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("u", [300, 40])
def test_noisy_known_pixels(u):
    """DDNM+ in the paper's x / a: above the level of sigma_y its noise is part of the step's, below x0 is trusted."""
    sigma_y, noise = 0.3, PROCESS.noise(torch.tensor([u]))
    got, _, x0, fresh, _ = one_step(DDNM(eta=0.6, sigma_y=sigma_y), 400, u)
    sigma = noise.sigma_map() / noise.alpha_map()
    assert bool(sigma > sigma_y) == (u == 300), "one of each case"
    if u == 300:
        expected = WORLD.y + (sigma**2 - sigma_y**2).sqrt() * fresh
    else:
        expected = x0 + 0.8 * sigma / sigma_y * (WORLD.y - x0) + 0.6 * sigma * fresh
    known = WORLD.hole == 0
    torch.testing.assert_close((got / noise.alpha_map())[known], expected[known], rtol=0, atol=1e-12)


def test_noisy_known_pixels_in_the_posterior_form():
    """The noise of y that the mean carries and the noise that is added make the variance of the posterior."""
    now, nxt = (PROCESS.noise(torch.tensor([t])) for t in (400, 300))
    levels = step_levels(now, nxt)
    weight, variance = nxt.alpha_map() * levels.b / now.sigma_map() ** 2, levels.posterior
    known = WORLD.hole == 0
    small, large = 0.5 * float(variance.sqrt() / weight), 4 * float(variance.sqrt() / weight)
    clean, *_ = one_step(DDNM(form="posterior"), 400, 300)
    for sigma_y, trust in ((small, 1.0), (large, 0.25)):
        got, _, x0, fresh, _ = one_step(DDNM(form="posterior", sigma_y=sigma_y), 400, 300)
        left = (variance - (trust * weight * sigma_y) ** 2).clamp(min=0).sqrt()
        mean = clean - variance.sqrt() * fresh - weight * (1 - trust) * (WORLD.y - x0)
        torch.testing.assert_close(got[known], (mean + left * fresh)[known], rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"sigma_y": 0.3}, {"form": "posterior"}])
def test_levels_of_either_kind_give_the_same_step(options):
    method = DDNM(**options)
    for u in (300, 40, CLEAN):
        here, there = one_step(method, 400, u)[0], one_step(method, 400, u, edm=True)[0]
        torch.testing.assert_close(here, PROCESS.noise(torch.tensor([u])).alpha_map() * there, rtol=0, atol=1e-12)


def test_the_posterior_form_has_the_mean_of_replacement():
    here, there = law(WORLD, DDNM(form="posterior"), steps=100), law(WORLD, Replacement(), steps=100)
    torch.testing.assert_close(here[0], there[0], rtol=0, atol=1e-10)
    assert distance(WORLD, *here).variance_ratio > distance(WORLD, *there).variance_ratio


@pytest.mark.parametrize(
    ("options", "mean_error", "variance_ratio", "kl"),
    [
        ({"eta": 0.0}, 0.2375, 1.1901, 0.2633),
        ({}, 0.4937, 1.1129, 1.5085),
        ({"eta": 1.0}, 0.5959, 0.7779, 3.2920),
        ({"known_noise": "fresh"}, 0.7718, 1.3426, 3.1403),
        ({"travel_length": 10, "travel_repeat": 3}, 0.4094, 0.9989, 1.2738),
    ],
)
def test_law_of_100_steps(options, mean_error, variance_ratio, kl):
    """Exact propagation, so the tolerance is that of the rounded numbers."""
    found = distance(WORLD, *law(WORLD, DDNM(**options), steps=100, draws=12 if "travel_length" in options else 2))
    assert found.mean_error == pytest.approx(mean_error, rel=1e-3)
    assert found.variance_ratio == pytest.approx(variance_ratio, rel=1e-3)
    assert found.kl == pytest.approx(kl, rel=1e-3)


def test_more_steps_come_closer():
    errors = [distance(WORLD, *law(WORLD, DDNM(), steps=steps, draws=2)).kl for steps in (25, 50, 200)]
    assert errors[0] > errors[1] > errors[2]


def test_noisy_image_is_denoised():
    """All pixels known with noise: the mean is near that of the posterior, much nearer than y is (0.117 of it)."""
    world = World(WORLD.denoiser, torch.zeros_like(WORLD.hole), WORLD.y)
    mean, _ = law(world, DDNM(sigma_y=0.3), steps=100, draws=2)
    denoiser, y = WORLD.denoiser, WORLD.y.flatten()
    gain = torch.linalg.solve(denoiser.covariance + 0.09 * torch.eye(64, dtype=DOUBLE), denoiser.covariance).T
    exact = denoiser.mean.flatten() + gain @ (y - denoiser.mean.flatten())
    assert float((mean - exact).norm()) < 0.15 * float((y - exact).norm())
