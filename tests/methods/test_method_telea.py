"""OpenCV's two algorithms: what they fill, what they keep, and the error without OpenCV."""

import sys

import pytest
import torch

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.navier_stokes import NavierStokes
from rad.methods.telea import Telea
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.linear_autoencoder import LinearAutoencoder

cv2 = pytest.importorskip("cv2")
METHODS = [Telea, NavierStokes]
HOLE = torch.zeros(1, 1, 16, 24)
HOLE[..., 5:10, 8:12] = 1


class Unused:
    channels = 3


def run(method, task):
    with KeyedNoise(0, range(len(task.known))) as noise:
        return Sampler(Uniform(linear_betas()), method, steps=1)(Unused(), task, noise=noise)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", METHODS)
def test_a_constant_is_continued_and_known_pixels_keep_every_bit(kind):
    image = torch.full((1, 3, 16, 24), 0.2)
    filled = run(kind(), Task.from_image(torch.where(HOLE == 1, -1.0, image), HOLE)).raw
    torch.testing.assert_close(filled, image, rtol=0, atol=2.1 / 127.5)  # OpenCV's Telea is off by 2 levels
    assert torch.equal(filled[(HOLE == 0).expand_as(filled)], image[(HOLE == 0).expand_as(filled)])


@pytest.mark.parametrize(("kind", "flag"), [(Telea, cv2.INPAINT_TELEA), (NavierStokes, cv2.INPAINT_NS)])
def test_a_colour_image_of_8_bits_is_filled_as_by_one_call_of_opencv(kind, flag):
    levels = torch.randint(0, 256, (16, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    levels = torch.from_numpy(cv2.GaussianBlur(levels.numpy(), (5, 5), 2))
    hole = HOLE[0, 0] == 1
    mean = levels[~hole].double().mean(0).round()  # the content of the hole, part of which OpenCV reads
    without = torch.where(hole[..., None], mean, levels.double()).to(torch.uint8)
    expected = torch.from_numpy(cv2.inpaint(without.numpy(), HOLE[0, 0].to(torch.uint8).numpy(), 5, flag))
    image = (levels.double() / 127.5 - 1).permute(2, 0, 1)[None]
    filled = run(kind(radius=5), Task.from_image(image, HOLE.double())).raw
    assert torch.equal(((filled[0] + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8), expected)
    assert not torch.equal(filled, run(kind(radius=1), Task.from_image(image, HOLE.double())).raw)


@pytest.mark.parametrize("kind", METHODS)
def test_a_latent_model_encodes_the_filled_pixels(kind):
    image = torch.linspace(-1, 1, 24).expand(1, 3, 16, 24)
    codec = LinearAutoencoder(blur=0.5)  # the fill reaches known cells
    latent = run(kind(), Task.encoded(image, HOLE, codec))
    pixels = run(kind(), Task.from_image(image, HOLE))
    task = Task.encoded(image, HOLE, codec)
    assert torch.equal(latent.raw, torch.lerp(task.known, codec.encode(pixels.raw), task.hole))
    # A ramp is continued to within a few of its 24 steps of 0.087.
    assert float((pixels.raw - image).abs().max()) < 0.2


@pytest.mark.parametrize("kind", METHODS)
def test_the_content_of_a_hole_of_any_shape_has_no_effect_on_the_fill(kind):
    """Nor that of grey pixels, which a task does not hide."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 24, generator=generator) * 2 - 1
    for share in (0.1, 0.5, 0.9):
        hole = (torch.rand(1, 1, 16, 24, generator=generator) < share).float()
        hole[..., :4, :4] = 1
        contents = [torch.where(hole == 1, value, image) for value in (-1.0, 1.0)]
        fills = [2 * run(kind(), Task.from_image(content, hole / 2)).raw - content for content in contents]
        torch.testing.assert_close(fills[0] * hole, fills[1] * hole, rtol=0, atol=1e-5)


def test_the_fill_is_of_the_nearest_level():
    image = torch.full((1, 3, 16, 24), 153.9 / 127.5 - 1)
    filled = run(NavierStokes(), Task.from_image(image, HOLE)).raw[(HOLE == 1).expand_as(image)]
    torch.testing.assert_close(filled, torch.full_like(filled, 154 / 127.5 - 1))


@pytest.mark.parametrize("kind", METHODS)
def test_grey_pixels_are_a_blend_of_the_image_and_the_fill(kind):
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    filled, grey = (run(kind(), Task.from_image(image, share * HOLE)).raw for share in (1, 0.25))
    torch.testing.assert_close(grey, torch.lerp(image, filled, 0.25 * HOLE))
    whole = run(kind(), Task.from_image(image, 0.25 * torch.ones_like(HOLE))).raw
    torch.testing.assert_close(whole, 0.75 * image, msg="no known pixel: the fill is mid-grey")


@pytest.mark.parametrize("kind", METHODS)
def test_without_opencv_an_error_names_the_extra(kind, monkeypatch):
    kind().check()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=rf"method '{kind().name}' needs OpenCV: pip install .*opencv"):
        kind().check()
