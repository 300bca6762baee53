"""Blended Diffusion: skipped steps, the start, and replacement as its limit."""

import pytest
import torch

from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.methods.blended import Blended
from rad.methods.replacement import Replacement
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world

WORLD = make_world()
PROCESS = Uniform(linear_betas())


def run(method, *, hole=WORLD.hole, steps=12):
    task = Task.from_image(WORLD.y.expand(2, 1, 8, 8), hole.expand(2, 1, 8, 8))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(PROCESS, method, steps=steps)(WORLD.denoiser, task, noise=noise)


class Short(SamplingMethod):
    """The plain chain from the same level, with a draw where the method has one."""

    def plan(self, times):
        return Blended().plan(times)

    def after_step(self, state, denoised, x_next):
        state.randn()
        return x_next


def test_a_quarter_of_the_steps_is_left_out():
    times = spaced_timesteps(1000, 100)
    plan = Blended().plan(times)
    assert plan == times[25:]
    assert Blended().cost(plan).nfe == 75
    assert run(Blended(), steps=100).nfe == 75
    for count in (1, 2, 50):
        assert Blended(skip=0.99).plan(spaced_timesteps(1000, count))[-2:] == [spaced_timesteps(1000, count)[-2], CLEAN]


def test_without_skip_it_is_replacement():
    assert torch.equal(run(Blended(skip=0.0)).raw, run(Replacement()).raw)


def test_all_known_is_the_image_and_all_hole_the_plain_chain():
    sample = run(Blended(), hole=torch.zeros_like(WORLD.hole))
    assert torch.equal(sample.raw, WORLD.y.expand_as(sample.raw))
    everything = torch.ones_like(WORLD.hole)
    assert torch.equal(run(Blended(), hole=everything).raw, run(Short(), hole=everything).raw)


def test_the_hole_starts_from_the_mean_of_the_known_pixels():
    """Each image and channel has its own mean; the hole's content has no effect."""
    generator = torch.Generator().manual_seed(1)
    image, x = (torch.rand(2, 3, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(2))
    hole = torch.zeros(2, 1, 8, 8, dtype=DOUBLE)
    hole[0, :, :4], hole[1, :, :, 5:] = 1, 1
    image = torch.where(hole == 1, 100.0, image)
    now, nxt = (PROCESS.noise(torch.tensor([t, t])) for t in (745, 700))
    denoiser = CountedDenoiser(GaussianDenoiser(torch.zeros(3, 8, 8, dtype=DOUBLE), torch.eye(192, dtype=DOUBLE)))
    state = State(Task.from_image(image, hole), PROCESS, denoiser, 0, 1, 745, 700, now, nxt, x, lambda: x)
    added = (Blended().on_start(state) - x) / now.alpha_map()
    expected = torch.zeros_like(added)
    expected[0, :, :4] = image[0, :, 4:].mean((1, 2))[:, None, None]
    expected[1, :, :, 5:] = image[1, :, :, :5].mean((1, 2))[:, None, None]
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("skip", "mean_error", "variance_ratio", "kl"), [(0.0, 1.1172, 2.2030, 5.7477), (0.25, 1.1101, 2.2029, 5.7299)]
)
def test_law_of_100_steps(skip, mean_error, variance_ratio, kl):
    """As biased as replacement: of 100 steps, 25 change little. Exact propagation: tolerance of the rounded numbers."""
    found = distance(WORLD, *law(WORLD, Blended(skip=skip), steps=100))
    assert found.mean_error == pytest.approx(mean_error, rel=1e-3)
    assert found.variance_ratio == pytest.approx(variance_ratio, rel=1e-3)
    assert found.kl == pytest.approx(kl, rel=1e-3)
