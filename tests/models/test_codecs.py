"""Methods on latents of an autoencoder that is known: where it is a rotation of the pixels, the latent run is the pixel run."""

from dataclasses import replace

import pytest
import torch

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.guidance import data_gradient, descend, observation_residual, polyak_step, residual, squared_norm
from rad.methods.registry import create
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.codecs import Blocks, EncodedTape, encoded_denoiser, encoded_task
from tests.gaussian import DOUBLE, make_world

HOLE = torch.zeros(1, 1, 8, 8, dtype=DOUBLE)
HOLE[..., 4:8, 0:4] = 1
WORLD = replace(make_world(), hole=HOLE)  # on the grid of blocks of 2 and of 4
SAME = {
    "replacement": {},
    "repaint": {"jump_length": "2", "resamplings": "2"},
    "ddnm": {},
    "diffpir": {},
    "daps": {},
    "dps": {},
    "mcg": {},
    "pigdm": {},
    "ding": {},
    "flowchef": {"rate": "0.1"},
    "flowdps": {"rate": "0.1"},
    "pnpflow": {"draws": "2"},
    "blended_latent": {"skip": "0", "dilations": "0"},
}
"""Those that treat all the numbers of an image alike; settings in which each part of the method is at work."""


def run(method, denoiser, task, *, autoencoder=None, steps=12):
    sampler = Sampler(Uniform(linear_betas()), method, **vars(method.choose(steps=steps)))
    with KeyedNoise(0, ["a", "b"]) as noise:
        draws = noise if autoencoder is None else EncodedTape(noise, autoencoder, (1, 8, 8))
        return sampler(denoiser, task, noise=draws).raw


@pytest.mark.spread(8)
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("name", SAME)
def test_on_rotated_pixels_a_method_makes_the_same_image(name, factor):
    autoencoder, method = Blocks(factor, colours=1), create(name, SAME[name])
    pixels = run(method, WORLD.denoiser, Task.from_image(WORLD.y.expand(2, -1, -1, -1), HOLE.expand(2, -1, -1, -1)))
    latents = run(
        method, encoded_denoiser(WORLD, autoencoder), encoded_task(WORLD, autoencoder, rows=2), autoencoder=autoencoder
    )
    assert float((pixels[0] - pixels[1])[0, 4:, :4].abs().max()) > 0.05, "the two rows are different samples"
    torch.testing.assert_close(autoencoder.decode(latents), pixels, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["flowchef", "flowdps", "pnpflow"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_misfit_of_rotated_pixels_is_that_of_the_latents(name, scale):
    """At another scale of the latents too, for a step that would go too far is cut at the same place."""
    autoencoder, rate = Blocks(2, colours=1, scale=scale), {} if name == "pnpflow" else {"rate": "100"}
    denoiser, task = encoded_denoiser(WORLD, autoencoder), encoded_task(WORLD, autoencoder, rows=2)
    found = [
        run(create(name, {**rate, "space": space}), denoiser, task, autoencoder=autoencoder)
        for space in ("latent", "pixels")
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)


def test_the_two_spaces_are_one_for_a_pixel_model():
    soft = (0.3 * HOLE).roll(1, -1).maximum(HOLE)
    task, x0 = Task.from_image(WORLD.y, soft), WORLD.denoiser.mean[None]
    for one in (observation_residual, data_gradient, lambda *given: descend(*given, rate=0.3, count=3)):
        found = [one(task, x0, space) for space in ("latent", "pixels")]
        torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    assert torch.equal(observation_residual(task, x0, "latent"), residual(task, x0))
    lack = (1 - soft) * (task.known - x0)
    for part in data_gradient(task, x0, "latent"):
        torch.testing.assert_close(part, lack)


def test_descent_moves_by_its_rate_until_the_misfit_is_zero():
    task = Task.from_image(WORLD.y, HOLE)
    x0 = WORLD.denoiser.mean[None]
    far = float(residual(task, x0).norm())
    for count in (0, 1, 3):
        moved = descend(task, x0, "latent", rate=0.2, count=count)
        assert float((moved - x0).norm()) == pytest.approx(0.2 * count, abs=1e-9)
        assert float(residual(task, moved).norm()) == pytest.approx(far - 0.2 * count)
        assert torch.equal(moved[HOLE == 1], x0[HOLE == 1])
    there = descend(task, x0, "latent", rate=far / 2.5, count=3)
    torch.testing.assert_close(there, torch.where(HOLE == 1, x0, WORLD.y), rtol=0, atol=1e-9)
    torch.testing.assert_close(descend(task, there, "latent", rate=5.0, count=1), there, rtol=0, atol=1e-9)
    change, missing = data_gradient(task, x0, "latent")
    assert float(polyak_step(change, squared_norm(missing))) == pytest.approx(1)
    assert float(polyak_step(torch.zeros_like(change), torch.zeros(1))) == 0


def test_pixels_constrain_more_than_cells_in_fine_holes():
    """Known pixels in cells that overlap the hole: latents ignore them, pixels fit them."""
    hole = torch.zeros_like(HOLE)
    hole[..., 3:5, 3:5] = 1
    world, autoencoder = replace(WORLD, hole=hole), Blocks(4, keep=12, colours=1)
    denoiser, task = encoded_denoiser(world, autoencoder), encoded_task(world, autoencoder, rows=2)
    assert float(task.hole.min()) == 1, "all four cells are to be filled"
    misses = []
    for space in ("latent", "pixels"):
        made = autoencoder.decode(
            run(create("flowchef", {"space": space}), denoiser, task, autoencoder=autoencoder)[:1]
        )
        misses.append(float(((1 - hole) * (world.y - made)).norm()))
    assert misses[1] < 0.3 * misses[0]


def test_the_gradient_in_pixels_is_that_of_the_decoder():
    """Against finite differences, and from within inference mode, as the sampler runs."""
    autoencoder = Blocks(2, keep=3, colours=1)
    task = encoded_task(WORLD, autoencoder)
    generator = torch.Generator().manual_seed(1)
    x0, direction = (torch.randn(task.known.shape, generator=generator, dtype=DOUBLE) for _ in range(2))
    with torch.inference_mode():
        change, missing = data_gradient(task, x0 + 0, "pixels")
    assert not change.requires_grad
    half = [
        0.5 * float(observation_residual(task, x0 + step * direction, "pixels").square().sum())
        for step in (1e-5, -1e-5, 0)
    ]
    assert float(missing.square().sum()) == pytest.approx(2 * half[2])
    assert float((change * direction).sum()) == pytest.approx(-(half[0] - half[1]) / 2e-5, rel=1e-6)
