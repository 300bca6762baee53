"""Optimisers of other libraries, by class: schedule-free averages in validation, panels and exports, and exact resumes."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from rad.models.lora import trainable
from rad.training.checkpoint import Checkpoint, save_best
from rad.training.ema import averaged
from rad.training.optimizers import evaluating
from rad.training.schedules import Schedule
from tests.training.test_module import Fails, data, fit, module

PRODIGY = ("prodigyopt.Prodigy", {"lr": 1.0, "weight_decay": 0.0})
SCHEDULE_FREE = ("schedulefree.AdamWScheduleFree", {"lr": 3e-3, "warmup_steps": 2})
EIGHT_BIT = ("bitsandbytes.optim.AdamW8bit", {"lr": 1e-3, "min_8bit_size": 16})


def optimizer(path, settings):
    package, _, name = path.rpartition(".")
    return partial(getattr(pytest.importorskip(package), name), **settings)


def train(folder, model, images, steps, *, resume=None, callbacks=(), **options):
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        use_distributed_sampler=False,
        callbacks=[Checkpoint(every_n_train_steps=3), *callbacks],
        logger=False,
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, datamodule=images, ckpt_path=resume, weights_only=True)
    return trainer


def values(model):
    return {name: weight.detach().clone() for name, weight in trainable(model).items()}


def test_the_training_weights_return_bit_for_bit():
    weight = torch.nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    free = optimizer(*SCHEDULE_FREE)([weight])
    free.train()
    for _ in range(5):
        weight.grad = weight.detach().sin()
        free.step()
    before = weight.detach().clone()
    with evaluating([free]):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
    assert free.param_groups[0]["train_mode"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PRODIGY, SCHEDULE_FREE, EIGHT_BIT], ids=["prodigy", "schedule_free", "adamw_8bit"])
def test_a_resumed_run_equals_an_uninterrupted_one(world, tmp_path, kind, capsys):
    runs = [module(world, optimizer=optimizer(*kind)) for _ in range(2)]
    before = values(runs[0])
    train(tmp_path / "a", runs[0], data(world), 6, val_check_interval=2, check_val_every_n_epoch=None)
    assert all(not torch.equal(weight, before[name]) for name, weight in values(runs[0]).items() if "lora_B" in name)
    train(tmp_path / "b", runs[1], data(world), 6, resume=str(tmp_path / "a" / "checkpoints" / "step=3.ckpt"))
    for name, weight in values(runs[0]).items():
        assert torch.equal(weight, values(runs[1])[name]), name
    assert "settings as in the checkpoint" in capsys.readouterr().err


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", [PRODIGY, SCHEDULE_FREE], ids=["prodigy", "schedule_free"])
def test_a_changed_setting_is_reported_and_takes_effect(world, tmp_path, kind, capsys):
    path, settings = kind
    train(tmp_path, module(world, optimizer=optimizer(path, settings)), data(world), 3)
    resumed = module(world, optimizer=optimizer(path, settings | {"lr": 0.5 * settings["lr"], "weight_decay": 0.125}))
    trainer = train(tmp_path, resumed, data(world), 4, resume=str(tmp_path / "checkpoints" / "step=3.ckpt"))
    report = capsys.readouterr().err
    assert f"learning rate {settings['lr']:g} -> {settings['lr'] / 2:g}" in report
    assert "model.optimizer.weight_decay 0 -> 0.125" in report
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.125
    assert trainer.optimizers[0].param_groups[0]["k"] == 4, "the optimiser goes on"


@pytest.mark.slow
def test_validation_panels_and_exports_have_the_average_and_training_does_not_notice(world, tmp_path):
    """x_1 = z_1 and x_(k+1) = (1 - c) x_k + c z_(k+1), with c = lr_k^2 / sum lr^2, from the iterates z of each step."""
    seen, mean, weight_sum = [], {}, 0.0

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            nonlocal weight_sum
            state, group = trainer.optimizers[0].state, trainer.optimizers[0].param_groups[0]
            weight_sum += group["lr_max"] ** 2
            for name, weight in trainable(pl_module).items():
                z = state[weight]["z"].double()
                mean[name] = torch.lerp(mean.get(name, z), z, group["lr_max"] ** 2 / weight_sum)

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append((values(pl_module), {name: x.float() for name, x in mean.items()}))

    watched, plain = (module(world, optimizer=optimizer(*SCHEDULE_FREE)) for _ in range(2))
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = train(tmp_path / "a", watched, data(world), 6, callbacks=[Watch()], **options)
    train(tmp_path / "b", plain, data(world), 6, limit_val_batches=0)
    assert len(seen) == 3
    for weights, expected in seen:
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    for name, weight in values(watched).items():
        assert torch.equal(weight, values(plain)[name]), "validation has no effect on the training"
    exported = values(module(world, lora=None, adapter=str(tmp_path / "a" / "checkpoints" / "step=6")))
    torch.testing.assert_close(exported, {name: x.float() for name, x in mean.items()}, rtol=1e-5, atol=1e-6)
    assert any(float((exported[name] - weight).abs().max()) > 1e-4 for name, weight in values(watched).items())
    save_best(trainer, watched, {"value": 0.5})
    best = values(module(world, lora=None, adapter=str(tmp_path / "a" / "checkpoints" / "best")))
    torch.testing.assert_close(best, exported, rtol=0, atol=0, msg="the best model is the measured one")
    with averaged(trainer, watched):
        torch.testing.assert_close(values(watched), exported, rtol=0, atol=0)
    with evaluating(trainer.optimizers), evaluating(trainer.optimizers):  # nested: the average of the average is itself
        torch.testing.assert_close(values(watched), exported, rtol=0, atol=0)


def test_an_error_in_validation_leaves_the_training_weights(world, tmp_path):
    failing, whole = (module(world, optimizer=optimizer(*SCHEDULE_FREE)) for _ in range(2))
    fails, options = Fails(RuntimeError), {"val_check_interval": 4, "check_val_every_n_epoch": None}
    with pytest.raises(RuntimeError):
        train(tmp_path / "a", failing, data(world), 6, callbacks=[fails], **options)
    train(tmp_path / "b", whole, data(world), 4, limit_val_batches=0)
    for name, weight in values(whole).items():
        assert torch.equal(weight, values(failing)[name]), name
    assert any(not torch.equal(weight, fails.weights[name]) for name, weight in values(whole).items())


def test_a_second_average_is_refused_and_a_decay_warned_of(world, tmp_path):
    with pytest.raises(ValueError, match=r"AdamWScheduleFree averages the weights itself.*remove EMA"):
        fit(tmp_path, module(world, optimizer=optimizer(*SCHEDULE_FREE)), data(world), 2)
    decaying = module(world, optimizer=optimizer(*SCHEDULE_FREE), schedule=Schedule("cosine"))
    with pytest.warns(UserWarning, match="set it to constant"):
        train(tmp_path, decaying, data(world), 1)
    assert Path(tmp_path / "checkpoints" / "step=1").is_dir()
