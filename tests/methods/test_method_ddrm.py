"""DDRM: its step on known pixels, DDNM with fresh noise as its twin, and its law on Gaussian data."""

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.ddnm import DDNM
from rad.methods.ddrm import DDRM
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world

WORLD = make_world()
PROCESS = Uniform(linear_betas())


def run(method, hole, *, steps=12):
    task = Task.from_image(WORLD.y.expand(2, 1, 8, 8), hole.expand(2, 1, 8, 8))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(PROCESS, method, steps=steps, eta=method.preset_eta)(WORLD.denoiser, task, noise=noise)


def one_step(method, t, u, *, edm=False):
    """(x at u, x0, fresh) of a step from the same image, in VP units or in x / a."""
    generator = torch.Generator().manual_seed(3)
    x, fresh = (torch.randn(1, 1, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(2))
    now, nxt = (PROCESS.noise(torch.tensor([time])) for time in (t, u))
    if edm:
        x = x / now.alpha_map()
        now, nxt = (NoiseLevel(torch.ones_like(n.alpha), n.sigma / n.alpha, n.timesteps) for n in (now, nxt))
    estimate = WORLD.denoiser.denoise(x, now)
    denoiser, task = CountedDenoiser(WORLD.denoiser), Task.from_image(WORLD.y, WORLD.hole)
    state = State(task, PROCESS, denoiser, 0, 1, t, u, now, nxt, x, lambda: fresh)
    return method.after_step(state, estimate, x), estimate.x0, fresh


def test_all_known_is_the_image_and_each_step_a_call():
    sample = run(DDRM(), torch.zeros_like(WORLD.hole), steps=DDRM.preset_steps)
    assert torch.equal(sample.raw, WORLD.y.expand_as(sample.raw))
    assert (sample.nfe, sample.vjp) == (20, 0)


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["box", "everything"])
def test_with_eta_b_1_it_is_ddnm_plus_with_fresh_noise(sigma_y, kind):
    hole = WORLD.hole if kind == "box" else torch.ones_like(WORLD.hole)
    there = run(DDNM(known_noise="fresh", sigma_y=sigma_y), hole).raw
    torch.testing.assert_close(run(DDRM(sigma_y=sigma_y), hole).raw, there, rtol=0, atol=1e-10)


@pytest.mark.parametrize("u", [300, 40, CLEAN])
def test_known_pixels_in_one_step(u):
    """The paper's cases, in its x / a; at the clean end a noiseless y is mixed with x0 by eta_b, too."""
    noise, known = PROCESS.noise(torch.tensor([u])), WORLD.hole == 0
    sigma = noise.sigma_map() / noise.alpha_map()
    for sigma_y in (0.0, 0.3):
        got, x0, fresh = one_step(DDRM(eta=0.6, eta_b=0.7, sigma_y=sigma_y), 400, u)
        if bool(sigma >= sigma_y):
            expected = 0.7 * WORLD.y + 0.3 * x0 + (sigma**2 - (0.7 * sigma_y) ** 2).sqrt() * fresh
        else:
            expected = x0 + 0.8 * sigma * (WORLD.y - x0) / sigma_y + 0.6 * sigma * fresh
        torch.testing.assert_close((got / noise.alpha_map())[known], expected[known], rtol=0, atol=1e-12)


def test_levels_of_either_kind_give_the_same_step():
    method = DDRM(sigma_y=0.3, eta_b=0.7)
    for u in (300, 40, CLEAN):
        here, there = one_step(method, 400, u)[0], one_step(method, 400, u, edm=True)[0]
        torch.testing.assert_close(here, PROCESS.noise(torch.tensor([u])).alpha_map() * there, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "mean_error", "variance_ratio", "kl"),
    [(20, 1.2879, 1.7015, 10.3429), (100, 0.7718, 1.3426, 3.1403), (250, 0.5326, 1.1511, 1.4505)],
)
def test_law(steps, mean_error, variance_ratio, kl):
    """Biased, and less so with more steps. Exact propagation, so the tolerance is that of the rounded numbers."""
    found = distance(WORLD, *law(WORLD, DDRM(), steps=steps, draws=2))
    assert found.mean_error == pytest.approx(mean_error, rel=1e-3)
    assert found.variance_ratio == pytest.approx(variance_ratio, rel=1e-3)
    assert found.kl == pytest.approx(kl, rel=1e-3)
