"""LATINO: its levels, its start, its data step as a minimum, and the limits of its settings."""

import pytest
import torch

from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Flow, Uniform
from rad.diffusion.schedules import linear_betas, shifted_sigmas
from rad.diffusion.step import Denoised
from rad.methods.latino import LATINO
from rad.models.latent_mask import prefill
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, make_world
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()
VP, FLOW = Uniform(linear_betas()), Flow(shifted_sigmas())
IMAGE = 0.5 * WORLD.y.tanh()


def state_at(task, *, process=VP, t=600, u=400, step=0, steps=8):
    generator = torch.Generator().manual_seed(3)
    x, fresh = (torch.randn(task.known.shape, generator=generator, dtype=DOUBLE) for _ in range(2))
    now, nxt = (process.noise(torch.tensor([time])) for time in (t, u))
    return State(task, process, CountedDenoiser(WORLD.denoiser), step, steps, t, u, now, nxt, x, lambda: fresh), fresh


def test_the_preset_has_the_official_levels():
    method = LATINO()
    sampler = Sampler(VP, method, **vars(method.choose()))
    assert sampler.timesteps == [999, 874, 749, 624, 499, 374, 249, 124, CLEAN]
    assert (sampler.cost.nfe, sampler.cost.vjp) == (8, 0)


@pytest.mark.parametrize("process", [VP, FLOW])
@pytest.mark.parametrize(("step", "delta"), [(3, 1.0), (4, 0.5)])
def test_the_data_step_minimises_its_objective(process, step, delta):
    method = LATINO(sigma_y=0.5)
    state, _ = state_at(Task.from_image(IMAGE, WORLD.hole), process=process, step=step)
    estimate = 0.3 * torch.sin(state.x)
    z = method.on_denoised(state, Denoised(estimate)).x0.requires_grad_()
    a, s = state.now.alpha_map(), state.now.sigma_map()
    misfit = (1 - WORLD.hole) * (IMAGE - z).square()
    objective = (z - estimate).square() + delta * s**2 / (a**2 + s**2) / 0.5**2 * misfit
    assert float(torch.autograd.grad(objective.sum(), z)[0].abs().max()) < 1e-12


def test_limits_of_the_settings():
    state, _ = state_at(Task.from_image(IMAGE, WORLD.hole))
    estimate = 0.3 * torch.sin(state.x)
    for method, known in (
        (LATINO(sigma_y=0), IMAGE),
        (LATINO(delta=0), estimate),
        (LATINO(delta=0, sigma_y=0), estimate),
    ):
        z = method.on_denoised(state, Denoised(estimate)).x0
        torch.testing.assert_close(z, torch.where(WORLD.hole == 1, estimate, known), rtol=0, atol=1e-12)
    clipped = LATINO(delta=0).on_denoised(state, Denoised(3 * estimate + 1)).x0
    assert torch.equal(clipped, (3 * estimate + 1).clamp(-1, 1))


def test_the_start_is_the_filled_image_and_noise_and_each_step_has_fresh_noise():
    codec = LinearAutoencoder(blur=0.5)
    image = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=DOUBLE) * 2 - 1
    hole = torch.zeros(1, 1, 8, 12, dtype=DOUBLE)
    hole[..., 2:6, 4:8] = 1
    task = Task.encoded(image, hole, codec)
    state, fresh = state_at(task)
    filled = codec.encode(prefill(torch.where(hole == 1, 0.0, image), hole, "smooth"))
    a, s = state.now.alpha_map(), state.now.sigma_map()
    noise = (state.x - a * task.known) / s  # the loop's first x is a y + s n
    torch.testing.assert_close(LATINO().on_start(state), a * filled + s * noise, rtol=0, atol=1e-12)

    x0 = LATINO(delta=0).on_denoised(state, Denoised(0.3 * state.x))
    expected = codec.encode(codec.decode(0.3 * state.x).clamp(-1, 1))
    torch.testing.assert_close(x0.x0, expected, rtol=0, atol=1e-12)
    stepped = state.next.alpha_map() * expected + state.next.sigma_map() * fresh
    torch.testing.assert_close(LATINO().after_step(state, x0, state.x), stepped, rtol=0, atol=1e-12)


def test_a_denoiser_that_samples_fills_the_hole_with_its_sample():
    """A consistency model of one image: known pixels agree with y, and the hole is the model's."""

    class Memory:
        channels = 1

        def denoise(self, x, noise):
            return Denoised((0.5 * torch.ones_like(x)).to(x))

    with KeyedNoise(0, ["a"]) as noise:
        method = LATINO()
        sample = Sampler(VP, method, **vars(method.choose()))(Memory(), Task.from_image(IMAGE, WORLD.hole), noise=noise)
    assert bool((sample.raw[WORLD.hole == 1] == 0.5).all())
    v = float(VP.noise(torch.tensor([124])).sigma) ** 2
    w = 0.02**2 / (0.02**2 + 0.5 * v)
    known = WORLD.hole == 0
    torch.testing.assert_close(sample.raw[known], (w * 0.5 + (1 - w) * IMAGE)[known], rtol=0, atol=1e-12)
