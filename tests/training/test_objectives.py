"""Objectives in a run: noise offset, and timesteps that follow the losses, through an interrupted run."""

import math

import pytest
import torch

from rad.diffusion.schedules import linear_betas
from rad.models.base import save_base
from rad.models.lora import LoRA, trainable
from rad.training.settings import TrainingLoss, TrainingProcess
from rad.training.timesteps import HISTORY, TimestepDensity
from tests.rounding import assert_same, doubled
from tests.tiny_networks import small_unet
from tests.training.test_module import batch, data, fit, module


def test_noise_offset_shifts_the_channels_of_each_image_in_training_alone(world, monkeypatch):
    """Recorded by the loss: its eps has c n more, one n for each image and channel, whatever the batch."""
    seen = []
    model = {c: module(world, process=TrainingProcess(noise_offset=c)) for c in (0.0, 0.5)}
    monkeypatch.setattr("rad.training.settings.hybrid_loss", lambda *_, eps, x, **__: seen.append((eps, x)))
    halves = [{name: values[rows] for name, values in batch().items()} for rows in (slice(0, 2), slice(2, 4))]
    for c, images in ((0.0, batch()), (0.5, batch()), (0.5, halves[1]), (0.5, batch())):
        with pytest.raises(AttributeError):  # the loss is replaced
            model[c].training_step(images, 0)
    (plain, x_plain), (shifted, x_shifted), (second, _), _ = seen
    offset = shifted - plain
    assert float(offset.std((2, 3)).max()) < 1e-6, "constant over the pixels"
    assert float(offset[:, :, 0, 0].std()) > 0.2
    assert_same(second, shifted[2:])
    known = x_shifted == x_plain
    assert bool(known.any()), "known pixels of the first phase have no noise, and so no offset"
    with pytest.raises(AttributeError):
        model[0.5].validation_step(batch(), 0)
    with pytest.raises(AttributeError):
        model[0.0].validation_step(batch(), 0)
    assert seen[-1][0].equal(seen[-2][0])


@pytest.mark.slow
def test_timesteps_that_follow_the_losses_resume_exactly(world, tmp_path):
    """Six levels, so that 20 steps fill the history; whole and resumed run have equal weights and histories."""
    save_base(tmp_path / "base", small_unet(), betas=linear_betas(6), half=False)
    density = TimestepDensity("loss_second_moment")
    settings = {"base": str(tmp_path / "base"), "process": TrainingProcess(phase2=0.0, density=density)}
    whole, resumed = module(world, **settings), module(world, **settings)
    fit(tmp_path / "whole", whole, data(world), 24, accumulate_grad_batches=2)
    ckpt = tmp_path / "whole" / "checkpoints" / "step=20.ckpt"
    fit(tmp_path / "resumed", resumed, data(world), 24, accumulate_grad_batches=2, resume=str(ckpt))
    first, second = whole.timestep_sampler, resumed.timestep_sampler
    assert int(first.counts.sum()) == 24 * 2 * 4
    assert int(first.counts[:6].min()) >= HISTORY
    assert float(first.probabilities[0].std()) > 0.001, "no longer uniform"
    assert first.history[:-1].equal(second.history[:-1])
    assert first.counts.equal(second.counts)
    for name, weight in trainable(whole).items():
        assert torch.equal(weight, trainable(resumed)[name]), name


def test_weighted_losses_do_not_depend_on_how_the_batch_is_split(world):
    density = TimestepDensity("logit_normal", reweight=True)
    model = module(world, process=TrainingProcess(density=density)).eval()
    doubled(model.model.network)
    together, t, _ = model.losses(batch(), "train")
    parts = [{name: values[rows] for name, values in batch().items()} for rows in (slice(0, 1), slice(1, 4))]
    split = torch.cat([model.losses(part, "train")[0].total for part in parts])
    assert_same(together.total, split)
    plain = together.simple + model.loss.vlb_weight * together.vlb
    torch.testing.assert_close(together.total, plain * model.timestep_sampler.weights(t).to(plain))


def test_the_official_recipe_differs_in_four_places(world):
    """Decoder term, clipping, attention order, time origin; all other settings are those of the default."""
    default, official = module(world, lora=LoRA(rank=2)), module(world, lora=LoRA(rank=2), official=True)
    assert default.process == TrainingProcess()
    assert official.process == TrainingProcess(time_origin="official")
    assert official.loss == TrainingLoss(vlb_boundary="zero")
    assert (default.qkv_order, official.qkv_order) == ("legacy", "naive")
    time_layers = {name for name in official.trained if "lora_" not in name}
    assert time_layers
    assert all("time_emb" in name for name in time_layers)
    assert len(list(official.clipped_weights())) == len(official.trained) - len(time_layers)
    assert len(list(default.clipped_weights())) == len(default.trained)


@pytest.mark.parametrize("official", [False, True])
def test_gradients_are_clipped_by_the_norm_of_the_clipped_weights(world, official):
    model = module(world, lora=LoRA(rank=2), official=official)
    for weight in model.trained.values():
        weight.grad = torch.full_like(weight, 2.0)
    clipped = list(model.clipped_weights())
    norm = math.sqrt(sum(4.0 * weight.numel() for weight in clipped))
    model.configure_gradient_clipping(torch.optim.SGD(clipped, lr=1.0), 1.0, "norm")
    for name, weight in model.trained.items():
        unclipped = official and "lora_" not in name
        expected = torch.full_like(weight, 2.0 if unclipped else 2.0 / (norm + 1e-6))
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=0)


def test_settings_that_the_official_recipe_lacks_are_an_error(world):
    with pytest.raises(ValueError, match=r"remove them, or set model\.official to false"):
        module(world, lora=LoRA(rank=2), official=True, loss=TrainingLoss(region="noisy"))
    with pytest.raises(ValueError, match=r"set model\.lora or model\.adapter"):
        module(world, lora=None, official=True)
