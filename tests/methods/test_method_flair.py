"""FLAIR: its levels, its calibration, its loop against an independent one with velocities, its data steps through a decoder."""

import pytest
import torch

from rad.diffusion.processes import EDM, Flow, Uniform
from rad.diffusion.schedules import karras_sigmas, linear_betas, shifted_sigmas
from rad.methods.flair import FLAIR
from rad.methods.guidance import flow_time
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, RunContext
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, make_world, moments, sampled
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()
FLOW = Flow(shifted_sigmas())


def context(process, count):
    task = Task.from_image(WORLD.y, WORLD.hole)
    times = [*range(count, 0, -1), -1]
    return RunContext(task, process, CountedDenoiser(WORLD.denoiser), times, 0.0, lambda: WORLD.y)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("process", [FLOW, Uniform(linear_betas()), EDM(karras_sigmas())])
def test_levels_are_even_in_the_flows_time(process):
    """t = s / (a + s); the official 50 levels from 1 to 0.18 without the ends, on the model's nearest levels."""
    t = torch.cat([flow_time(level)[0] for level in FLAIR().levels(context(process, 50))])
    expected = 1 - 0.82 * torch.arange(1, 51, dtype=DOUBLE) / 51
    torch.testing.assert_close(t, expected, rtol=0, atol=0.006)


@pytest.mark.parametrize("process", [FLOW, Uniform(linear_betas())])
def test_no_level_is_clean(process):
    """lam / t is finite."""
    levels = FLAIR(lowest=0).levels(context(process, 999))
    assert min(float(flow_time(level).min()) for level in levels) > 0


def test_the_calibration_and_its_limits():
    t = torch.tensor([[0.75, 0.1, 1.0, 0.0, 0.975]], dtype=DOUBLE)
    expected = [0.57, 0.075, 0.105, 0.0, (0.72 + 3 * 0.56) / 8]
    torch.testing.assert_close(FLAIR().strength(t), torch.tensor([expected], dtype=DOUBLE), rtol=0, atol=1e-9)
    assert FLAIR(calibration="constant", regularizer=0.3).strength(t).tolist() == [[0.3] * 5]


@pytest.mark.parametrize("trajectory", [0.0, 1.0])
def test_the_loop_equals_an_independent_one_with_velocities(trajectory):
    """The paper's form: mu <- mu - lam (v - (n - mu)), then gradient steps on the squared misfit of known pixels."""
    method, steps = FLAIR(trajectory=trajectory, tolerance=0.05), 4
    with KeyedNoise(0, ["a"]) as noise:
        found = Sampler(FLOW, method, steps=steps)(
            WORLD.denoiser, Task.from_image(WORLD.y, WORLD.hole), noise=noise
        ).raw
        draws = [noise.randn(number, WORLD.y.shape[1:]).to(DOUBLE) for number in range(1 + steps)]

    known = 1 - WORLD.hole
    mu, e = known * WORLD.y, draws[0]
    for level, fresh in zip(method.levels(context(FLOW, steps)), draws[1:], strict=True):
        t = float(level.sigma)
        alpha = trajectory * (1 - t)
        n = alpha * e + (1 - alpha**2) ** 0.5 * fresh
        x = (1 - t) * mu + t * n
        x0 = WORLD.denoiser.denoise(x, level).x0
        v = (x - x0) / t  # dx / dt of the flow
        e = x + (1 - t) * v
        lam = float(method.strength(torch.tensor([[t]], dtype=DOUBLE)))
        mu = mu - lam * (v - (n - mu))
        for _ in range(15):
            if float((known * (WORLD.y - mu)).square().sum()) < 0.05**2 * 48:
                break
            mu = mu + 0.1 * lam * 2 * known * (WORLD.y - mu)
    torch.testing.assert_close(found, mu, rtol=0, atol=1e-9)


def test_data_steps_stop_at_the_tolerance_and_never_overshoot():
    codec = LinearAutoencoder(blur=0.5)
    image = codec.decode(WORLD.y)
    task = Task.encoded(image, torch.zeros_like(image[:, :1]), codec)
    start = torch.zeros_like(WORLD.y)

    def misfit(mu):
        return float((image - codec.decode(mu)).square().mean().sqrt())

    rate = 0.1 * torch.ones(1, dtype=DOUBLE)
    near = FLAIR(iterations=1000).consistent(task, start, rate)
    assert 0.008 < misfit(near) < 0.01
    falling = [misfit(FLAIR(iterations=count).consistent(task, start, 1e9 * rate)) for count in range(6)]
    assert falling == sorted(falling, reverse=True)
    assert torch.equal(FLAIR(tolerance=10).consistent(task, start, rate), start)


def test_an_image_that_fits_takes_no_more_data_steps():
    """The other images of the batch go on."""
    task = Task.from_image(WORLD.y.repeat(2, 1, 1, 1), WORLD.hole.repeat(2, 1, 1, 1))
    start = torch.cat([WORLD.y + 0.005, WORLD.y + 1])
    made = FLAIR().consistent(task, start, 0.1 * torch.ones(2, dtype=DOUBLE))
    assert torch.equal(made[0], start[0])
    assert float((made[1] - WORLD.y)[WORLD.hole == 0].abs().max()) < 0.5


def test_the_trajectory_brings_the_mean_nearer_to_the_posterior():
    on, off = (
        distance(WORLD, *moments(sampled(WORLD, FLAIR(trajectory=factor), steps=50, rows=200, base_process=FLOW)))
        for factor in (1, 0)
    )
    assert on.mean_error < 0.95 < 1.15 < off.mean_error
