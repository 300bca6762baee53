"""examples/minimal_rad.py equals the package: its sampling loop bit for bit, its training step in the loss of every image."""

import sys
from itertools import count

import pytest
import torch
from PIL import Image

from examples import minimal_rad
from rad.data.draws import draw_timesteps
from rad.diffusion import UNetDenoiser, linear_betas
from rad.masks import make
from rad.models import save_base
from rad.networks import patch
from rad.rng import KeyedNoise, generator
from rad.sampling import Sampler, Task
from rad.training import Diffusion
from tests.tiny_networks import small_unet

IMAGES = 2 * torch.rand(2, 3, 16, 16, generator=generator("images")) - 1
HOLE = torch.zeros(2, 1, 16, 16)
HOLE[0, :, 4:12, 4:12], HOLE[1, :, :, 8:] = 1, 1
SOFT = torch.where(HOLE == 1, torch.linspace(0, 1, 4).repeat(4), HOLE)


@pytest.mark.parametrize("hole", [HOLE, SOFT], ids=["binary", "soft"])
def test_sampling_loop_equals_the_sampler(hole: torch.Tensor) -> None:
    process, network, names = minimal_rad.make_process(), patch(small_unet()), ["a", "b"]
    sampler = Sampler(process, steps=5, solver="ddpm", spacing="even")
    with KeyedNoise(0, list(names)) as noise:
        expected = sampler(UNetDenoiser(network), Task.from_image(IMAGES, hole), noise=noise).image
    numbers = count()
    with KeyedNoise(0, list(names)) as noise, torch.no_grad():
        drawn = minimal_rad.sample(network, process, IMAGES, hole, 5, lambda: noise.randn(next(numbers), (3, 16, 16)))
    assert torch.equal(drawn, expected)
    assert torch.equal(torch.where(hole == 0, drawn, IMAGES), IMAGES)
    assert not torch.equal(drawn, IMAGES)


def test_training_step_equals_the_module(tmp_path) -> None:
    save_base(tmp_path / "base", small_unet(), betas=linear_betas(), half=False)
    module = Diffusion(base=str(tmp_path / "base"), image_size=16, lora=None, masks=make("half"))
    module.configure_model()
    module.double()
    x0, positions = IMAGES.repeat(4, 1, 1, 1).double(), torch.arange(8)
    batch = {"image": x0, "position": positions, "hole": HOLE.repeat(4, 1, 1, 1).double()}
    expected, t, hole = module.losses(batch, "train")

    sources = [generator(module.seed, "train", number) for number in positions.tolist()]
    assert torch.equal(module.process.timesteps(draw_timesteps(sources), module.noise_process), t)
    assert bool((t >= 1000).any() and (t < 1000).any()), "both phases"
    eps = torch.stack([torch.randn(x0.shape[1:], generator=source) for source in sources])
    found = minimal_rad.training_loss(module.model.network, minimal_rad.make_process(), x0, hole, t, eps)
    torch.testing.assert_close(found, expected.total, rtol=1e-12, atol=0)


def test_program_writes_an_image(tmp_path, monkeypatch) -> None:
    output = str(tmp_path / "filled.png")
    monkeypatch.setattr(
        sys, "argv", ["minimal_rad.py", "--train_steps", "2", "--sample_steps", "2", "--output", output]
    )
    minimal_rad.main()
    with Image.open(output) as image:
        assert image.size == (3 * minimal_rad.SIZE, 3 * minimal_rad.SIZE)


def test_example_has_at_most_150_lines() -> None:
    with open(str(minimal_rad.__file__)) as source:
        assert len(source.readlines()) <= 150
