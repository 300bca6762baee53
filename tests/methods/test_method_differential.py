"""Differential Diffusion: when pixels are released, and replacement as its limit."""

import itertools

import pytest
import torch

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.differential import Differential
from rad.methods.replacement import Replacement
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, World, distance, law, make_world

WORLD = make_world()
PROCESS = Uniform(linear_betas())
STRENGTHS = (0.0, 0.1, 0.25, 0.3, 0.5, 0.77, 0.9, 1.0)


def run(method=None, hole=WORLD.hole, steps=12):
    task = Task.from_image(WORLD.y.expand(2, 1, 8, 8), hole.expand(2, 1, 8, 8))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(PROCESS, method, steps=steps)(WORLD.denoiser, task, noise=noise)


class Draws(SamplingMethod):
    """The plain chain, with a draw where the method has one."""

    def after_step(self, state, denoised, x_next):
        state.randn()
        return x_next


def soft_hole():
    """A row for each strength."""
    return torch.tensor(STRENGTHS, dtype=DOUBLE).view(1, 1, 8, 1).expand(1, 1, 8, 8).clone()


@pytest.mark.parametrize("kind", ["box", "nothing", "everything"])
def test_a_mask_of_0_and_1_is_replacement(kind):
    hole = {"box": WORLD.hole, "nothing": torch.zeros_like(WORLD.hole), "everything": torch.ones_like(WORLD.hole)}[kind]
    sample = run(Differential(), hole=hole)
    assert torch.equal(sample.raw, run(Replacement(), hole=hole).raw)
    assert (sample.nfe, sample.vjp) == (12, 0)
    if kind == "everything":
        assert torch.equal(sample.raw, run(Draws(), hole=hole).raw)
    if kind == "nothing":
        assert torch.equal(sample.raw, WORLD.y.expand_as(sample.raw))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_pixels_are_released_at_their_own_time(dtype):
    """A pixel of strength h is the noised original for the first (1 - h) N steps, rounded down, and never again."""
    steps, held = 20, []

    class Silent(KeyedNoise):
        def randn(self, number, shape):
            return torch.zeros_like(super().randn(number, shape))

    class Watched(Differential):
        def after_step(self, state, denoised, x_next):
            x_next = super().after_step(state, denoised, x_next)
            original = state.next.spread(state.next.alpha.to(dtype)) * WORLD.y.to(dtype)
            held.append((x_next == original)[0, 0].all(-1))
            return x_next

    task = Task.from_image(WORLD.y.to(dtype), soft_hole().to(dtype))
    with Silent(0, range(1)) as noise:
        Sampler(PROCESS, Watched(), steps=steps)(WORLD.denoiser, task, noise=noise)
    counts = torch.stack(held).sum(0).tolist()
    assert counts == [20, 18, 15, 14, 10, 4, 2, 0]
    for row, count in enumerate(counts):
        assert all(bool(step[row]) == (number < count) for number, step in enumerate(held))


def test_a_pixel_changes_the_more_the_stronger_its_mask():
    changes = []
    for strength in STRENGTHS:
        world = World(WORLD.denoiser, torch.full_like(WORLD.hole, strength), WORLD.y)
        mean, covariance = law(world, Differential(), steps=20)
        changes.append(float((mean - WORLD.y.flatten()).square().mean() + covariance.diagonal().mean()))
    assert changes[0] == 0
    assert all(less < more for less, more in itertools.pairwise(changes))


@pytest.mark.parametrize(
    ("eta", "mean_error", "variance_ratio", "kl"), [(1.0, 1.1172, 2.2030, 5.7477), (0.0, 1.4396, 3.0270, 9.7446)]
)
def test_law_of_100_steps(eta, mean_error, variance_ratio, kl):
    """Of replacement, DDPM's better than DDIM's. Exact propagation: tolerance of the rounded numbers."""
    found = distance(WORLD, *law(WORLD, Differential(), steps=100, eta=eta))
    assert found.mean_error == pytest.approx(mean_error, rel=1e-3)
    assert found.variance_ratio == pytest.approx(variance_ratio, rel=1e-3)
    assert found.kl == pytest.approx(kl, rel=1e-3)
