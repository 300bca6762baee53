"""Draws of the training in the loader: equal to those in the step, for any number of workers and any start method."""

import pickle

import pytest
import torch

from rad.data.draws import Draws
from rad.data.module import ImageDataModule
from rad.masks.shapes import Box
from rad.models.lora import LoRA, trainable
from rad.rng import generator
from rad.training.settings import TrainingProcess
from tests.training.test_module import adamw, data, fit, module

DRAWS = Draws(seed=3, purpose="train", channels=3, masks=Box(), unconditional=True)


def test_draws_of_a_sample_follow_their_generator():
    rng = generator(3, "train", 5)
    times = torch.rand(2, generator=rng, dtype=torch.float64)
    hole = Box()([rng], 8, 8)[0]
    noise = torch.randn(3, 8, 8, generator=rng)
    draws = DRAWS(5, (8, 8))
    assert torch.equal(draws["times"], times)
    assert torch.equal(draws["hole"], hole)
    assert torch.equal(draws["noise"], noise)
    share = torch.rand((), generator=generator(3, "train", "unconditional", 5))
    assert torch.equal(draws["unconditional"], share)
    together = DRAWS.batch([4, 5], (8, 8))
    assert all(torch.equal(together[name][1], value) for name, value in draws.items())


class Soft(Box):
    def __call__(self, generators, height, width):
        return super().__call__(generators, height, width) / 2


def test_holes_between_0_and_1_are_an_error_that_names_the_generator():
    draws = Draws(seed=3, purpose="train", channels=3, masks=Soft())
    with pytest.raises(ValueError, match=r"Soft draws holes with values from 0 to 0\.5"):
        draws(0, (8, 8))


def test_an_offset_shifts_each_channel_by_its_own_keyed_number():
    plain, offset = (Draws(3, "train", channels=3, noise_offset=c)(5, (8, 8))["noise"] for c in (0.0, 0.5))
    numbers = torch.randn(3, generator=generator(3, "noise offset", 5))
    torch.testing.assert_close(offset - plain, (0.5 * numbers)[:, None, None].expand(3, 8, 8))


class InTheStep(ImageDataModule):
    """Without draws in the loader, as a data module of one's own."""

    def _draw(self, purpose):
        return None


def weights(folder, images, world, **options):
    model = module(world)
    fit(folder, model, images, 5, **options)
    return {name: weight.detach().clone() for name, weight in trainable(model).items()}


@pytest.mark.slow
def test_draws_of_workers_are_those_of_the_step(world, tmp_path):
    settings = {"size": 16, "batch_size": 4, "val_count": 3, "flip": True}
    path = str(world / "images")
    expected = weights(tmp_path / "step", InTheStep(path, **settings), world)
    validated = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    for workers in (0, 2):
        images = ImageDataModule(path, num_workers=workers, **settings)
        found = weights(tmp_path / str(workers), images, world, **validated)
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items()), workers


@pytest.mark.slow
def test_a_run_with_workers_resumes_exactly(world, tmp_path):
    whole = module(world)
    fit(tmp_path / "whole", whole, data(world, num_workers=1), 14)
    resumed = module(world)
    first = str(tmp_path / "whole" / "checkpoints" / "step=10.ckpt")
    fit(tmp_path / "resumed", resumed, data(world, num_workers=2), 14, resume=first)
    assert all(torch.equal(weight, trainable(resumed)[name]) for name, weight in trainable(whole).items())


@pytest.mark.parametrize("masks", [None, Box()])
def test_a_stream_with_draws_can_be_sent_to_a_new_process(world, masks):
    model = module(world, process=TrainingProcess(unconditional_share=0.5))
    images = data(world, masks=masks)
    images.trainer = type("Stub", (), {"lightning_module": model, "max_steps": 3})()
    images.setup("predict")
    sample, sent = images.stream()[7], pickle.loads(pickle.dumps(images.stream()))[7]
    assert sample["draws"].keys() == ({"times", "hole", "noise", "unconditional"} - ({"hole"} if masks else set()))
    assert all(torch.equal(value, sent["draws"][name]) for name, value in sample["draws"].items())


def test_losses_take_the_draws_of_the_batch(world):
    model = module(world, lora=LoRA(rank=2), optimizer=adamw(1e-3))
    batch = {"image": torch.zeros(2, 3, 16, 16), "position": torch.arange(2)}
    draws = model.draws("val", with_holes=True).batch([0, 1], (16, 16))
    expected, t, _ = model.losses(batch, "val")
    given = model.losses({**batch, "draws": draws}, "val")
    assert torch.equal(given[0].total, expected.total)
    assert torch.equal(given[1], t)
    assert torch.equal(given[2], draws["hole"])
    other = model.losses({**batch, "draws": {**draws, "noise": -draws["noise"]}}, "val")[0]
    assert not torch.equal(other.total, expected.total)


def test_positions_stay_on_the_host(world):
    images = data(world)
    batch = {"image": torch.zeros(1), "position": torch.arange(2), "draws": {"times": torch.zeros(2)}}
    moved = images.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["position"] is batch["position"]
    assert moved["image"].device.type == moved["draws"]["times"].device.type == "meta"
