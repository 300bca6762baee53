"""PyTorch's modes around a call change no result, and the call changes none of them."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from rad.data.module import ImageDataModule
from rad.diffusion.denoiser import UNetDenoiser
from rad.diffusion.processes import RegionAware
from rad.diffusion.schedules import linear_betas
from rad.evaluation.metrics.pixels import psnr, ssim
from rad.inpainting.inpainter import Inpainter
from rad.masks.names import main_names
from rad.masks.shapes import Box, make
from rad.models.loaded_model import PLAIN, Condition
from rad.modes import Evaluation
from rad.networks.unet import patch
from rad.rng import KeyedNoise, generator
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.conftest import SIZE, box_hole, random_image
from tests.tiny_networks import small_unet
from tests.tiny_pipelines import write_pipeline


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),  # a tensor that is created there has no values
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "deterministic": deterministic,
}
EVERY_MODE = pytest.mark.parametrize("mode", list(MODES))


def state():
    """The modes of this thread, and the states of the global generators."""
    modes = (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"))
    grad = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled())
    return *modes, *grad, torch.get_rng_state().tolist(), random.getstate()


@pytest.fixture(scope="module")
def rad(adapter):
    return Inpainter.from_pretrained(adapter)


IMAGE, HOLE = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 11, 12)


def fill(inpainter, method):
    return np.asarray(inpainter(IMAGE, HOLE, method=method, steps=2, seed=3).images[0])


# growrad: integer arithmetic with time; mcg: saves the inputs for a gradient; rad: merges an adapter.
@pytest.mark.spread(6)
@pytest.mark.parametrize("method", ["rad", "growrad", "mcg"])
@EVERY_MODE
def test_inpainter(rad, adapter, mode, method):
    expected = fill(rad, method)
    with MODES[mode]():
        before = state()
        result, loaded = fill(rad, method), fill(Inpainter.from_pretrained(adapter), method)
        assert state() == before
    assert np.array_equal(result, expected)
    assert np.array_equal(loaded, expected)


@pytest.mark.spread(2)
@pytest.mark.parametrize("mode", ["float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["stable", "stable3", "latent"])
def test_models_with_an_autoencoder(tmp_path, kind, mode):
    inpainter = Inpainter.from_pretrained(write_pipeline(tmp_path, kind))
    guided = PLAIN if kind == "latent" else Condition("a boat", negative="fog", guidance=7.3)

    def filled():
        return np.asarray(inpainter(IMAGE, HOLE, method="replacement", steps=2, condition=guided).images[0])

    expected = filled()
    with MODES[mode]():
        assert np.array_equal(filled(), expected)


def test_global_generators_have_no_effect(rad):
    expected = fill(rad, "rad")
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert np.array_equal(fill(rad, "rad"), expected)


@EVERY_MODE
def test_sampler(mode):
    image = torch.linspace(-1, 1, 3 * SIZE**2).reshape(1, 3, SIZE, SIZE)
    network = patch(small_unet(size=SIZE)).eval()

    def sample(task):
        sampler = Sampler(RegionAware(linear_betas()), steps=2, spacing="logsnr")
        with KeyedNoise(0, ["a"]) as noise:
            return sampler(UNetDenoiser(network), task, noise=noise).image

    task = Task.from_image(image, box_hole(SIZE, SIZE, 3, 3, 11, 12)[None])
    with MODES[mode]():
        result = sample(task)
    assert torch.equal(result, sample(task))


@EVERY_MODE
def test_masks(mode):
    for name in main_names():
        expected = make(name)([generator(0, name)], 40, 48)
        with MODES[mode]():
            assert torch.equal(make(name)([generator(0, name)], 40, 48), expected), name


@EVERY_MODE
def test_data(tmp_path, mode):
    for number in range(3):
        random_image(20, 24, seed=number).save(tmp_path / f"{number}.png")
    options = {"size": 16, "crop": "random_scale", "flip": True, "val_count": 1, "masks": Box()}
    expected, data = (ImageDataModule(str(tmp_path), **options) for _ in range(2))
    expected.setup("validate")
    first = [*(expected.stream()[number] for number in range(3)), expected.val_dataloader().dataset[0]]
    with MODES[mode]():
        data.setup("validate")
        second = [*(data.stream()[number] for number in range(3)), data.val_dataloader().dataset[0]]
    for one, other in zip(first, second, strict=True):
        assert one["name"] == other["name"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["hole"], other["hole"])


@EVERY_MODE
def test_metrics(mode):
    image, reference = (
        torch.from_numpy(np.random.default_rng(seed).random((2, 3, 16, 16), np.float32)) for seed in (1, 2)
    )
    with MODES[mode]():
        values = [metric(image, reference) for metric in (psnr, ssim)]
    assert all(torch.equal(value, metric(image, reference)) for value, metric in zip(values, (psnr, ssim), strict=True))


def test_networks_in_training_mode_sample_as_in_evaluation(adapter):
    inpainter = Inpainter.from_pretrained(adapter)
    network = inpainter.model.network
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    expected = fill(inpainter, "replacement")
    network.train()
    assert np.array_equal(fill(inpainter, "replacement"), expected)
    assert all(module.training for module in network.modules())


def test_inpainters_of_one_model_share_its_mode(adapter):
    model = Inpainter.from_pretrained(adapter).model
    model.network.train()
    with model.in_evaluation():
        fill(Inpainter(model), "replacement")
        assert not model.network.training, "the other call still samples"
    assert model.network.training


def test_training_mode_returns_after_the_last_of_several_calls():
    network, evaluation = nn.Sequential(nn.Dropout(), nn.Linear(1, 1)), Evaluation()
    network[1].eval()
    with evaluation([network]):
        with evaluation([network]):
            assert not any(module.training for module in network.modules())
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False]
