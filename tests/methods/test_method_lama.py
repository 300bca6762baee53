"""LaMa: what the network gets, what is kept, and which files and outputs are refused."""

import pytest
import torch
from torch import Tensor, nn

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.inpainting.inpainter import Inpainter
from rad.methods.lama import LaMa
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.conftest import box_hole, random_image
from tests.linear_autoencoder import LinearAutoencoder

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
HOLE = torch.zeros(1, 1, 12, 17)
HOLE[..., 5:10, 8:17] = 1
IMAGE = torch.rand(1, 3, 12, 17, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Checked(nn.Module):
    """Checks its inputs. The result is 1 - image + mask / 4, clipped: it depends on every value of both."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        height, width = image.shape[2], image.shape[3]
        assert image.shape == [1, 3, height, width]
        assert mask.shape == [1, 1, height, width]
        assert height % 8 + width % 8 == 0
        assert bool(((image >= 0) & (image <= 1)).all()), "range"
        assert bool(((mask == 0) | (mask == 1)).all()), "binary"
        assert bool((image * mask == 0).all()), "the content is hidden"
        return (1 - image - mask / 4).clamp(0, 1)


class Mirrored(nn.Module):
    """Fails unless both inputs were padded from 12x17 to 16x24 by reflection."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        assert image.shape == [1, 3, 16, 24]
        for x in (image, mask):
            assert bool((x[:, :, 12:] == x[:, :, 7:11].flip(2)).all()), "rows"
            assert bool((x[:, :, :, 17:] == x[:, :, :, 9:16].flip(3)).all()), "columns"
        return image


class Wrong(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "shape":
            return image[:, :, :-1]
        return image * 255 if self.kind == "range" else image * float("nan")


@pytest.fixture
def written(tmp_path):
    def write(network):
        path = tmp_path / "network.pt"
        torch.jit.save(torch.jit.script(network), path)
        return str(path)

    return write


def run(method, task):
    class Unused:
        channels = 3

    with KeyedNoise(0, range(len(task.known))) as noise:
        return Sampler(Uniform(linear_betas()), method, steps=1)(Unused(), task, noise=noise)  # pyright: ignore[reportArgumentType]


def lama(path):
    return LaMa(path).load(torch.device("cpu"))


def test_the_network_gets_both_inputs_and_fills_the_hole_alone(written):
    task = Task.from_image(IMAGE.repeat(2, 1, 1, 1), torch.cat([HOLE, HOLE.flip(-1)]))
    method = lama(written(Checked()))
    sample = run(method, task)
    hole = task.hole.expand_as(sample.raw) == 1
    assert torch.equal(sample.raw[~hole], task.known[~hole]), "known pixels keep every bit"
    torch.testing.assert_close(sample.raw[hole], torch.full_like(sample.raw[hole], 0.75 * 2 - 1))
    assert (sample.nfe, sample.vjp) == (0, 0)
    assert lama(method.file) == method, "loaded once"


def test_a_flipped_mask_fails_in_the_network(written):
    method = lama(written(Checked()))
    network = method.check()
    with pytest.raises(torch.jit.Error, match="the content is hidden"):
        network(torch.ones(1, 3, 8, 8), torch.ones(1, 1, 8, 8))


def test_sides_are_padded_by_reflection(written):
    run(lama(written(Mirrored())), Task.from_image(IMAGE, HOLE))


def test_a_latent_model_encodes_the_filled_pixels(written):
    codec, method = LinearAutoencoder(blur=0.5), lama(written(Checked()))  # the fill reaches known cells
    image, hole = IMAGE[..., :16], HOLE[..., :16]
    task = Task.encoded(image, hole, codec)
    pixels = run(method, Task.from_image(image, hole)).raw
    assert torch.equal(run(method, task).raw, torch.lerp(task.known, codec.encode(pixels), task.hole))
    assert bool((codec.encode(pixels) != task.known)[task.hole == 0].any())


def test_grey_pixels_are_hidden_from_the_network_and_the_result_is_a_blend(written):
    grey = HOLE * 0.5
    raw = run(lama(written(Checked())), Task.from_image(IMAGE, grey)).raw
    torch.testing.assert_close(raw, torch.where(HOLE == 1, (IMAGE + 0.5) / 2, IMAGE))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"returned \(1, 3, 15, 24\); expected an image \(1, 3, 16, 24\)"),
        ("range", "values from 0 to 2.*expected 0 to 1: .*scaling to 255"),
        ("nan", "values from nan to nan"),
    ],
)
def test_an_unsuitable_output_is_refused(written, kind, message):
    with pytest.raises(ValueError, match=message):
        run(lama(written(Wrong(kind))), Task.from_image(IMAGE, HOLE))


def test_files_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--set lama.file=big-lama.pt"):
        LaMa().check()
    with pytest.raises(ValueError, match=r"'big-lama.pt' is not loaded: .*method.load\(device\)"):
        LaMa("big-lama.pt").check()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lama(str(tmp_path / "gone.pt"))
    path = tmp_path / "weights.pt"
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a TorchScript file") as caught:
        lama(str(path))
    assert "\n" not in str(caught.value)


def test_an_inpainter_loads_the_file(written, base):
    inpainter = Inpainter.from_pretrained(base, device="cpu")
    image, hole = random_image(16, 16), box_hole(16, 16, 4, 4, 8, 8)
    result = inpainter(image, hole, method=LaMa(written(Checked())))
    assert result.nfe == 0
    assert result.images[0].getpixel((5, 5)) == (191, 191, 191)
    with pytest.raises(ValueError, match="lama needs its network"):
        inpainter(image, hole, method="lama")
