"""PnP-Flow: its gradient step, its counts, the chain of fresh noise where nothing is known, its law on two pixels."""

import pytest
import torch

from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Flow
from rad.diffusion.schedules import shifted_sigmas
from rad.diffusion.spacings import spaced_timesteps
from rad.methods.guidance import data_gradient
from rad.methods.pnpflow import PnPFlow
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import make_pair, make_world
from tests.linear_autoencoder import LinearAutoencoder

WORLD, PAIR = make_world(), make_pair()
FLOW = Flow(shifted_sigmas())


class Fresh(SamplingMethod):
    """Nothing of x goes from level to level but x0."""

    def after_step(self, state, denoised, x_next):
        if state.next_timestep == CLEAN:
            return denoised.x0
        return state.next.alpha_map() * denoised.x0 + state.next.sigma_map() * state.randn()


def run(method, *, hole=WORLD.hole, steps=12):
    task = Task.from_image(WORLD.y.expand(2, -1, -1, -1), hole.expand(2, -1, -1, -1))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(FLOW, method, steps=steps, eta=0)(WORLD.denoiser, task, noise=noise)


class Rows:
    """Cheap draws for many rows."""

    def __init__(self, rows):
        self.rows, self.generator = rows, torch.Generator().manual_seed(0)

    def randn(self, number, shape):
        return torch.randn(self.rows, *shape, generator=self.generator)


def test_all_hole_is_the_chain_of_fresh_noise():
    everything = torch.ones_like(WORLD.hole)
    found = run(PnPFlow(draws=1), hole=everything).raw
    torch.testing.assert_close(found, run(Fresh(), hole=everything).raw, rtol=0, atol=1e-12)


def test_with_rate_1_known_pixels_are_the_image_and_with_less_nearly():
    known = (WORLD.hole == 0).expand(2, -1, -1, -1)
    errors = [float((run(PnPFlow(rate=rate)).raw - WORLD.y)[known].abs().max()) for rate in (1.0, 0.5, 0.0)]
    assert errors[0] < 1e-12
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("space", ["latent", "pixels"])
def test_a_gradient_step(space):
    task, x = Task.from_image(WORLD.y, WORLD.hole), WORLD.denoiser.mean[None]
    level = FLOW.noise(torch.tensor([500]))
    for rate, fade, factor in (
        (0.6, 0.0, 1.0),
        (1.5, 0.0, 1.0),
        (0.6, 0.5, level.sigma_map().sqrt()),
        (0.6, 1.0, level.sigma_map()),
    ):
        moved = PnPFlow(rate=rate, fade=fade, space=space).nearer(task, x, level)
        expected = x + rate * factor * (1 - WORLD.hole) * (WORLD.y - x)
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)
    clean = FLOW.noise(torch.tensor([CLEAN]))
    torch.testing.assert_close(PnPFlow(fade=1.0).nearer(task, x, clean), x)


class Faint(LinearAutoencoder):
    """Its decoder divides by 10, so that the step that removes the residual would be long."""

    def decode(self, latents):
        return super().decode(latents) / 10

    def encode(self, pixels):
        return 10 * super().encode(pixels)


@pytest.mark.parametrize(("autoencoder", "length"), [(LinearAutoencoder(), 1 / 3), (Faint(), 1.0)])
def test_a_step_through_a_decoder_is_never_longer_than_the_gradient(autoencoder, length):
    hole = WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    task = Task.encoded(LinearAutoencoder().decode(WORLD.y), hole, autoencoder)
    x = torch.zeros_like(WORLD.y)
    gradient, _ = data_gradient(task, x, "pixels")
    moved = PnPFlow(rate=0.5, space="pixels").nearer(task, x, FLOW.noise(torch.tensor([500])))
    torch.testing.assert_close(moved, 0.5 * length * gradient, rtol=1e-9, atol=0)
    assert float(gradient.abs().max()) > 0


def test_counts():
    assert PnPFlow().cost(spaced_timesteps(1000, 50)).nfe == 250
    assert run(PnPFlow(draws=3), steps=7).nfe == 21


def test_averaging_over_draws_on_two_pixels():
    """Exact: 0.8 and 0.36. One draw: 0.663, 0.195 (independent simulation); five have a fifth of the variance. 5000 rows."""
    rows, found = 5000, []
    task = Task.from_image(PAIR.y.expand(rows, -1, -1, -1), PAIR.hole.expand(rows, -1, -1, -1))
    for draws in (1, 5):
        raw = Sampler(FLOW, PnPFlow(draws=draws), steps=49, eta=0)(PAIR.denoiser, task, noise=Rows(rows)).raw
        found.append((float(raw[..., 1].mean()), float(raw[..., 1].var())))
    assert found[0] == pytest.approx((0.663, 0.195), abs=0.015)
    assert found[1][0] == pytest.approx(0.663, abs=0.015)
    assert found[1][1] == pytest.approx(found[0][1] / 5, rel=0.1)
