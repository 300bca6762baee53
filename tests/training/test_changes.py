"""A run that resumes with other settings: they take effect and are reported, or are refused; moments are kept."""

import json
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from rad.data.module import ImageDataModule
from rad.masks.perlin import Perlin
from rad.masks.shapes import Box, Half
from rad.models.lora import LoRA, trainable
from rad.training.changes import differences, plain, shown
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.schedules import Schedule
from rad.training.settings import TrainingLoss, TrainingProcess
from tests.conftest import SIZE, random_image


def adamw(lr, **settings):
    return partial(torch.optim.AdamW, lr=lr, weight_decay=settings.pop("weight_decay", 0.0), **settings)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        random_image(SIZE, SIZE, seed=number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def run(base, images, tmp_path, capsys):
    """`run(steps, resume=step, ...)` trains in tmp_path; returns model and trainer. `run.report`: the line of the last resume."""

    def call(steps, *, resume=None, data=None, trainer=None, callbacks=None, **model):
        settings = {"lora": LoRA(rank=2), "optimizer": adamw(1e-3), "masks": Perlin(), "image_size": SIZE}
        module = Diffusion(base=str(base), **settings | model)
        loop = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            use_distributed_sampler=False,
            callbacks=[EMA(), Checkpoint(every_n_train_steps=1)] if callbacks is None else callbacks,
            logger=False,
            default_root_dir=str(tmp_path),
            enable_progress_bar=False,
            enable_model_summary=False,
            **(trainer or {}),
        )
        source = ImageDataModule(**{"path": str(images), "size": SIZE, "batch_size": 2, "val_count": 0} | (data or {}))
        path = resume and tmp_path / "checkpoints" / f"step={resume}.ckpt"
        loop.fit(module, datamodule=source, ckpt_path=path, weights_only=True)
        lines = capsys.readouterr().err.splitlines()
        call.report = next((line for line in lines if line.startswith("resumed")), None)
        return module, loop

    return call


def weights(module):
    return torch.cat([weight.detach().flatten() for weight in trainable(module).values()]).double()


def test_an_unchanged_run_says_so(run, tmp_path):
    run(2)
    run(2, resume=1)
    assert run.report == "resumed at step 1; settings as in the checkpoint"
    assert "Changed" not in (tmp_path / "checkpoints" / "step=2" / "README.md").read_text()


def test_a_new_learning_rate_scales_the_next_step_and_keeps_the_moments(run):
    """With the same moments and gradient, AdamW's step is proportional to the learning rate."""
    before = weights(run(2)[0])
    steps = {}
    for rate in (1e-3, 3e-3):
        module, loop = run(3, resume=2, optimizer=adamw(rate))
        steps[rate] = weights(module) - before
        (optimizer,) = loop.optimizers
        assert {state["step"].item() for state in optimizer.state.values()} == {3}
    torch.testing.assert_close(steps[3e-3], 3 * steps[1e-3], rtol=1e-3, atol=1e-6)
    assert "learning rate 0.001 -> 0.003" in run.report


@pytest.mark.slow
def test_weight_decay_betas_and_eps_take_effect(run, tmp_path):
    before = weights(run(2)[0])
    plain_step = weights(run(3, resume=2)[0])
    module, loop = run(3, resume=2, optimizer=adamw(1e-3, weight_decay=10.0))
    torch.testing.assert_close(weights(module), plain_step - 1e-3 * 10 * before, rtol=1e-3, atol=1e-6)
    assert "model.optimizer.weight_decay 0 -> 10" in run.report
    _, loop = run(3, resume=2, optimizer=adamw(1e-3, betas=(0.5, 0.6), eps=1e-4))
    (group,) = loop.optimizers[0].param_groups
    assert (tuple(group["betas"]), group["eps"]) == ((0.5, 0.6), 1e-4)
    card = (tmp_path / "checkpoints" / "step=3" / "README.md").read_text()
    assert "resumed at step 2: model.optimizer.betas [0.9, 0.999] -> [0.5, 0.6], model.optimizer.eps" in card


@pytest.mark.slow
def test_changes_add_up_over_resumes(run, tmp_path):
    run(1)
    run(2, resume=1, optimizer=adamw(1e-6))
    module, _ = run(3, resume=2, optimizer=adamw(1e-6), data={"batch_size": 3})
    assert [change.partition(":")[0] for change in module.changes] == ["step 1", "step 2"]
    card = (tmp_path / "checkpoints" / "step=3" / "README.md").read_text()
    assert "AdamW 1e-06" in card
    assert card.count("Changed when the run resumed") == 2


@pytest.mark.slow
def test_settings_that_the_state_does_not_fit_are_refused(run):
    step_lr = partial(torch.optim.lr_scheduler.StepLR, step_size=2)
    run(1)
    with pytest.raises(ValueError, match="lacks max_exp_avg_sq"):
        run(2, resume=1, optimizer=adamw(1e-3, amsgrad=True))
    with pytest.raises(ValueError, match="SGD"):
        run(2, resume=1, optimizer=partial(torch.optim.SGD, lr=1e-3))
    with pytest.raises(ValueError, match="lr_scheduler"):
        run(2, resume=1, lr_scheduler=step_lr)
    with pytest.raises(ValueError, match=r"at step 1, and trainer\.max_steps is 0"):
        run(0, resume=1)
    run(1, lr_scheduler=step_lr)
    with pytest.raises(ValueError, match="lr_scheduler"):
        run(2, resume=1, lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=3))
    with pytest.raises(ValueError, match="lr_scheduler"):
        run(2, resume=1, lr_scheduler=step_lr, optimizer=adamw(2e-3))


def rates(loop):
    return loop.optimizers[0].param_groups[0]["lr"]


@pytest.mark.slow
def test_another_length_moves_the_schedule_and_says_so(run):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(rates(trainer))

    run(4, schedule=Schedule("linear"))
    run(8, resume=2, schedule=Schedule("linear"), callbacks=[Watch()])
    assert seen == pytest.approx([1e-3 * (1 - step / 8) for step in range(2, 8)])
    assert "schedule at this step 0.0005 -> 0.00075" in run.report
    assert "trainer.max_steps 4 -> 8" in run.report


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay"])
def test_a_finished_schedule_is_not_lifted(run, name):
    run(2, schedule=Schedule(name, decay_share=0.5))
    with pytest.raises(ValueError, match=r"has fallen to 0 at step 2 .*constant"):
        run(4, resume=2, schedule=Schedule(name, decay_share=0.5))
    _, loop = run(3, resume=2, schedule=Schedule("constant"))
    assert rates(loop) == 1e-3
    assert f"model.schedule.name {name} -> constant" in run.report


@pytest.mark.slow
def test_a_new_number_of_accumulated_batches_begins_with_a_whole_step(run):
    """A run of step 1 with one batch, then of 2 batches a step: positions 0-1, then 2-5, and the mean of both batches."""
    run(1)
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((batch["position"].tolist(), trainer.global_step))

    run(3, resume=1, trainer={"accumulate_grad_batches": 2}, callbacks=[Watch()])
    assert seen == [([2, 3], 1), ([4, 5], 2), ([6, 7], 2), ([8, 9], 3)]
    assert "trainer.accumulate_grad_batches 1 -> 2" in run.report


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"batch_size": 4}}, ["data.batch_size 2 -> 4"]),
        ({"data": {"seed": 7}}, ["data.seed 0 -> 7"]),
        ({"data": {"crop": "random"}}, ["data.crop center -> random"]),
        ({"data": {"val_count": 2}}, ["data.val_count 0 -> 2", "data.images 6 -> 4"]),
        ({"data": {"masks": Half()}}, ["data.masks null -> Half"]),
        ({"masks": Box()}, ["model.masks Perlin -> Box"]),
        ({"masks": Perlin(area_range=(0.1, 0.5))}, ["model.masks.area_range"]),
        ({"seed": 3}, ["model.seed 0 -> 3"]),
        ({"loss": TrainingLoss(region="noisy")}, ["model.loss.region all -> noisy"]),
        ({"process": TrainingProcess(phase2=0.1)}, ["model.process.phase2 0.5 -> 0.1"]),
        ({"lora": LoRA(rank=2, alpha=4)}, ["model.lora.alpha 16 -> 4"]),
        ({"trainer": {"precision": "64-true"}}, ["trainer.precision 32-true -> 64-true"]),
        ({"trainer": {"gradient_clip_val": 0.5}}, ["trainer.gradient_clip_val null -> 0.5"]),
        ({"callbacks": [EMA(decay=0.5)]}, ["EMA.decay 0.9999 -> 0.5"]),
        ({"callbacks": []}, ["trainer.callbacks [EMA] -> []"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_every_change_is_reported(run, tmp_path, changes, words):
    run(1)
    run(1, resume=1, **changes)
    assert run.report is None, "no step is left"
    run(2, resume=1, **changes)
    report = run.report.removesuffix(", trainer.max_steps 1 -> 2")
    assert all(word in report for word in words), report
    assert len(report.split("; ", 1)[1].split(", ")) <= 1 + 2 * len(words), "nothing else"


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [False, True])
def test_changed_images_are_reported(run, tmp_path, in_memory):
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(3):
        random_image(SIZE, SIZE, seed=number).save(folder / f"{number}.png")
    data = {"path": str(folder), "in_memory": in_memory}
    run(1, data=data)
    run(2, resume=1, data=data | {"in_memory": not in_memory})
    assert run.report.endswith("trainer.max_steps 1 -> 2")
    random_image(SIZE, SIZE, seed=9).save(folder / "1.png")
    run(2, resume=1, data=data)
    assert ("data.pixels_hash" if in_memory else "data.content_hash") in run.report
    assert "names_hash" not in run.report
    Path(folder / "1.png").rename(folder / "8.png")
    run(2, resume=1, data=data)
    assert "data.names_hash" in run.report


def test_changed_captions_are_reported(images, tmp_path):
    path, settings = tmp_path / "captions.json", []
    for text in ("a lake", "a lake", "a hill"):
        path.write_text(json.dumps({"0.png": text}))
        settings.append(plain(ImageDataModule(str(images), captions=str(path)).settings()))
    assert differences(settings[0], settings[1]) == {}
    assert list(differences(settings[0], settings[2])) == ["texts_hash"]


@pytest.mark.slow
def test_checkpoints_of_earlier_versions_resume(run, tmp_path):
    """Their settings are those of the hyperparameters and of the optimiser's state alone."""
    run(1)
    path = tmp_path / "checkpoints" / "step=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name in ("settings", "changes"):
        del checkpoint["rad"][name]
    torch.save(checkpoint, path)
    run(2, resume=1)
    assert run.report == "resumed at step 1; settings as in the checkpoint"
    _, loop = run(2, resume=1, optimizer=adamw(1e-6), loss=TrainingLoss(region="noisy"))
    assert rates(loop) == 1e-6
    assert "learning rate 0.001 -> 1e-06" in run.report
    assert "model.loss.region all -> noisy" in run.report


def test_settings_of_other_versions_are_left_out():
    before = {"model": {"seed": 0, "removed": 1, "lora": {"rank": 2}}, "gone": {"a": 1}}
    now = {"model": {"seed": 0, "added": 2, "lora": None}, "new": {"b": 1}}
    assert differences(before, now) == {"model.lora": ({"rank": 2}, None)}
    assert shown({"rank": 2}) == "{rank: 2}"


def test_patterns_of_layers_are_compared_as_a_whole():
    before, now = ({"lora": {"alpha_pattern": pattern}} for pattern in ({"conv1": 1}, {"conv1": 1, "conv2": 2}))
    assert differences(before, now) == {"lora.alpha_pattern": ({"conv1": 1}, {"conv1": 1, "conv2": 2})}
    assert differences(now, now) == {}


def test_objects_are_described_by_class_and_settings():
    assert plain(Box()) == plain(Box())
    assert differences({"masks": plain(Box())}, {"masks": plain(Half())}).keys() == {"masks"}
    configured = {"phase2": 0.5, "kind": "region_aware"}
    assert not differences({"process": configured}, {"process": plain(TrainingProcess())}), (
        "a configuration has no class"
    )
