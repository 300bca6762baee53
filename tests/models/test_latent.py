"""Latent diffusion: the folder, its noise, whole runs, RAD on latents, the hole and known pixels."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.models.adapter import AdapterInfo, save_adapter
from rad.models.base import load_base
from rad.models.latent_mask import Grid
from rad.models.loaded_model import Condition
from rad.models.lora import LoRA, inject, trainable
from rad.models.unet_model import UNetModel
from rad.networks.unet import patch
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.conftest import box_hole, random_image
from tests.pipelines import SIDE, tiny_ldm
from tests.rounding import assert_same

HOLE = box_hole(SIDE, SIDE, 4, 5, 11, 12)
SOME = ("replacement", "ddnm", "repaint", "dps", "ddrm")


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module", params=["vq", "kl"])
def folder(request, tmp_path_factory):
    return tiny_ldm(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def inpainter(folder):
    return Inpainter.from_pretrained(folder)


def test_a_pipeline_folder_is_recognised(inpainter, folder):
    model = inpainter.model
    assert isinstance(model, UNetModel)
    assert model.kind == "latent"
    assert model.size == (SIDE, SIDE), "in pixels"
    assert (model.autoencoder.factor, model.autoencoder.channels) == (2, 3 if "vq" in str(folder) else 4)
    betas = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear").betas
    torch.testing.assert_close(model.base_process.betas.float(), betas)
    assert (model.has_base, model.has_adapter) == (True, False)


def test_whatever_its_class_is_called(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    index = tmp_path / "other" / "model_index.json"
    index.write_text(index.read_text().replace("LDMPipeline", "LatentDiffusionUncondPipeline"))
    assert Inpainter.from_pretrained(tmp_path / "other").model.kind == "latent"


@pytest.mark.parametrize("method", SOME)
def test_whole_runs(inpainter, method):
    image = random_image(SIDE, SIDE)
    settings = {"repaint": {"jump_length": 2, "resamplings": 2}}.get(method, {})
    result = inpainter(image, HOLE, method=METHODS[method](**settings), steps=4)
    known = (HOLE[0] == 0).numpy()
    assert np.array_equal(pixels(result.images[0])[known], pixels(image)[known])
    assert (pixels(result.images[0]) != pixels(image))[~known].mean() > 0.5
    assert (pixels(result.raw[0]) != pixels(image))[known].mean() > 0.5, (
        "raw: known pixels went through the autoencoder"
    )


def test_estimates_are_not_clipped(inpainter):
    """Latents have no range: x0 = (x - s e) / a is not clamped as for a pixel model."""
    model = inpainter.model
    denoiser = model.denoiser([Condition()], adapter=False)
    x = 20 * torch.randn(1, model.autoencoder.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = model.base_process.noise(torch.tensor([500]))
    with torch.no_grad():
        e = model.unet(x, 500).sample
        x0 = denoiser.denoise(x, noise).x0
    assert_same(x0, (x - noise.sigma_map().float() * e) / noise.alpha_map().float())
    assert float(x0.abs().max()) > 10


def test_everything_hole_is_plain_ddim_on_the_schedule_of_the_folder(inpainter, folder):
    model, steps = inpainter.model, 4
    task = Task.encoded(torch.zeros(1, 3, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE), model.autoencoder)
    sampler = Sampler(model.base_process, steps=steps, eta=0)
    with KeyedNoise(0, ["a"]) as noise:
        start = noise.randn(0, task.known.shape[1:]).to(task.known)
    with KeyedNoise(0, ["a"]) as noise:
        ours = sampler(model.denoiser([Condition()], adapter=False), task, noise=noise).raw
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    x = float(model.base_process.noise(torch.tensor([999])).sigma_map()) * start
    with torch.no_grad():
        for t, u in zip(sampler.timesteps[:-1], sampler.timesteps[1:], strict=True):
            e = model.unet(x, t).sample
            a, b = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[u] if u >= 0 else torch.tensor(1.0)
            x = b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_known_latents_have_not_seen_the_hole(inpainter):
    image, other = random_image(SIDE, SIDE), random_image(SIDE, SIDE)
    inside = (HOLE[0] == 1).numpy()
    changed = pixels(other).astype(np.uint8)
    changed[inside] = 255 - changed[inside]
    other = Image.fromarray(changed)
    runs = {
        fill: [inpainter(one, HOLE, method="replacement", steps=3, fill=fill).raw[0] for one in (image, other)]
        for fill in ("smooth", "none")
    }
    assert np.array_equal(*map(pixels, runs["smooth"]))
    assert not np.array_equal(*map(pixels, runs["none"])), "--encode_full shows it to the encoder"


def test_the_grid_chooses_the_filled_cells(inpainter):
    model, known = inpainter.model, torch.zeros(1, 3, SIDE, SIDE)
    hole = box_hole(SIDE, SIDE, 4, 4, 8, 8)[None]
    sizes = [
        float(Task.encoded(known, hole, model.autoencoder, grid=grid).hole.sum())
        for grid in (None, Grid("nearest"), Grid("bilinear"), Grid(dilate=1))
    ]
    assert sizes == [4, 4, 12, 16], "bilinear: a ring without its corners, of which less than 5 % is hole"
    assert model.autoencoder.factor == 2
    results = [
        pixels(inpainter(random_image(SIDE, SIDE), hole[0], method="replacement", steps=3, grid=grid).raw[0])
        for grid in (None, Grid("nearest"), Grid(dilate=2))
    ]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_an_image_does_not_depend_on_its_neighbours(inpainter):
    images = [random_image(SIDE, SIDE, seed=seed) for seed in range(3)]
    masks = [HOLE, HOLE.flip(-1), HOLE.flip(-2)]
    options = {"method": "ddnm", "steps": 3}
    together = inpainter(images, masks, names=["a", "b", "c"], **options).raw
    alone = inpainter(images[1], masks[1], names=["b"], **options).raw[0]
    assert np.abs(pixels(together[1]) - pixels(alone)).max() <= 1, "but for how kernels round"


def test_windows_of_a_larger_image(inpainter):
    image, hole = random_image(40, 52), box_hole(40, 52, 3, 30, 30, 50)
    result = inpainter(image, hole, method="replacement", steps=2, size_policy="crop")
    known = (hole[0] == 0).numpy()
    assert np.array_equal(pixels(result.images[0])[known], pixels(image)[known])
    assert (pixels(result.images[0]) != pixels(image))[~known].mean() > 0.5


def test_text_and_coarse_models_are_refused(inpainter):
    image = random_image(SIDE, SIDE)
    with pytest.raises(ValueError, match="takes no text"):
        inpainter(image, HOLE, method="ddnm", condition=Condition("a cat"))
    with pytest.raises(ValueError, match="m2s needs a model of pixels"):
        inpainter(image, HOLE, method="m2s", steps=2)
    with pytest.raises(ValueError, match="needs an adapter"):
        inpainter(image, HOLE, method="rad", steps=2)


def test_pixel_models_have_no_grid(base):
    pixel = Inpainter.from_pretrained(base)
    for told in ({"grid": Grid()}, {"fill": "none"}):
        with pytest.raises(ValueError, match="there is no latent grid"):
            pixel(random_image(16, 16), box_hole(16, 16, 3, 3, 9, 9), method="mean", **told)


def test_latent_models_have_one_size(folder):
    with pytest.raises(ValueError, match="so size=32 has no effect"):
        Inpainter.from_pretrained(folder, size=32)


# ---- RAD on latents --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """An adapter on the UNet, moved away from zero as training would; sizes in pixels."""
    place = tmp_path_factory.mktemp("adapter")
    loaded = load_base(folder)
    peft = inject(patch(loaded.unet), LoRA(rank=2, alpha=2))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(peft).values():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    info = AdapterInfo(
        base=str(folder), base_hash=loaded.hash, time_origin="adm", steps=len(loaded.betas), size=(SIDE, SIDE)
    )
    save_adapter(peft, place, info, card="# A random adapter\n")
    return place


def test_rad_on_latents(adapter, inpainter):
    rad, image = Inpainter.from_pretrained(adapter), random_image(SIDE, SIDE)
    assert rad.model.autoencoder.factor == 2
    assert rad.size == (SIDE, SIDE)
    result = rad(image, HOLE, steps=4)
    known = (HOLE[0] == 0).numpy()
    assert np.array_equal(pixels(result.images[0])[known], pixels(image)[known])
    assert (pixels(result.images[0]) != pixels(image))[~known].mean() > 0.5
    zero_shot = [one(image, HOLE, method="ddnm", steps=3).raw[0] for one in (rad, inpainter)]
    assert np.array_equal(*map(pixels, zero_shot)), "with the adapter off it is the base model"


def test_rad_keeps_known_latents_as_they_are(adapter):
    """A cell that is known has no noise at any level of the reverse process, so nothing happens to it."""
    rad = Inpainter.from_pretrained(adapter)
    known = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    task = Task.encoded(known, HOLE[None], rad.model.autoencoder)
    sampler = rad.sampler("rad", steps=3)
    with KeyedNoise(0, ["a"]) as noise:
        sample = sampler(rad.model.denoiser([Condition()], adapter=True), task, noise=noise)
    kept = (task.hole == 0).expand_as(sample.raw)
    assert torch.equal(sample.raw[kept], task.known[kept])
    assert not torch.equal(sample.raw[~kept], task.known[~kept])


def test_an_adapter_of_another_base_is_refused(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "rad_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_hash": "0" * 64}))
    with pytest.raises(ValueError, match="give the base it was trained on"):
        Inpainter.from_pretrained(tmp_path / "adapter")


# ---- feathering ------------------------------------------------------------------------------------


def test_feather_passes_from_the_filling_into_the_image(inpainter):
    original = random_image(SIDE, SIDE)
    hard, soft = (inpainter(original, HOLE, method="replacement", steps=2, feather=width) for width in (0, 2))
    raw, given, made = (pixels(image) for image in (hard.raw[0], original, soft.images[0]))
    assert np.array_equal(pixels(soft.raw[0]), raw)
    assert np.array_equal(pixels(hard.images[0])[HOLE[0] == 0], given[HOLE[0] == 0]), "0: exact"
    row = 7  # the hole's columns are 5 to 11
    assert np.array_equal(made[row, 5:12], raw[row, 5:12])
    assert np.array_equal(made[row, [0, 1, 2, 14, 15]], given[row, [0, 1, 2, 14, 15]])
    for columns, share in (([4, 12], 2 / 3), ([3, 13], 1 / 3)):
        expected = share * raw[row, columns] + (1 - share) * given[row, columns]
        assert np.abs(made[row, columns] - expected).max() <= 1
    with pytest.raises(ValueError, match="feather is -1"):
        inpainter(original, HOLE, method="replacement", feather=-1)
