"""Guards: signals stop after a step with a checkpoint; batches without a finite loss are saved and skipped."""

import json
import math
import os
import signal
import stat
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from rad.data.module import ImageDataModule
from rad.errors import NotFiniteError
from rad.masks.shapes import Box
from rad.models.lora import LoRA, trainable
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.guards import FiniteGuard, StopOnSignal, requeue_job
from rad.training.panel import Panel
from rad.training.settings import TrainingLoss
from tests.conftest import SIZE, random_image
from tests.training.test_module import adamw


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        random_image(20, 20, seed=number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def world(base, images, tmp_path):
    """`fit(model, steps, *callbacks, ...)` trains in the folder `fit.folder`; `fit.model()` makes one."""

    def fit(model, steps, *callbacks, resume=None, **options):
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            use_distributed_sampler=False,
            callbacks=[EMA(), *callbacks, Checkpoint(every_n_train_steps=100)],
            logger=False,
            default_root_dir=str(tmp_path),
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        data = ImageDataModule(str(images), size=SIZE, batch_size=2, val_count=2)
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        return trainer

    fit.model = lambda: Diffusion(base=str(base), image_size=SIZE, lora=LoRA(rank=2), optimizer=adamw(1e-3))
    fit.folder = tmp_path
    return fit


class Send(L.Callback):
    """A signal to this process while step `step` is under way."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.spread(1)
@pytest.mark.parametrize("accumulate", [2, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_run_with_a_checkpoint_that_goes_on_bit_for_bit(
    world, capsys, number, accumulate, monkeypatch
):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    options = {"accumulate_grad_batches": accumulate}
    straight = world.model()
    world(straight, 5, **options)
    validated = []
    model = world.model()
    model.on_validation_start = lambda: validated.append(1)
    stopped = StopOnSignal()
    trainer = world(model, 5, stopped, Send(number, 2), num_sanity_val_steps=0, **options)
    assert (trainer.global_step, stopped.received) == (3, number.name)
    assert not validated, "the time that is left is for the checkpoint"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
    resumed = world.model()
    world(resumed, 5, StopOnSignal(), resume=str(next(world.folder.rglob("step=3.ckpt"))), **options)
    for name, weight in trainable(straight).items():
        assert torch.equal(weight, trainable(resumed)[name]), name


@pytest.mark.slow
def test_slurm_gets_its_job_back_into_the_queue(world, tmp_path, monkeypatch):
    stub, told = tmp_path / "bin" / "scontrol", tmp_path / "told"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\nls {world.folder}/checkpoints > {told}\necho "$@" >> {told}\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    for name, value in {
        "PATH": f"{stub.parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "rad",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "SLURM_NTASKS_PER_NODE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    trainer = world(world.model(), 9, StopOnSignal(), Send(signal.SIGUSR1, 1))
    assert trainer.global_step == 2
    lines = told.read_text().splitlines()
    assert "step=2.ckpt" in lines, "the checkpoint is there before the job may begin again"
    assert lines[-1] == "requeue 77"
    assert not list(world.folder.rglob("hpc_ckpt*")), "Lightning's handler would have saved in the middle of a step"

    told.unlink()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue_job()
    assert told.read_text().splitlines()[-1] == "requeue 70_3"
    told.unlink()
    world(world.model(), 9, StopOnSignal(), Send(signal.SIGTERM, 1))
    assert not told.exists(), "SIGTERM is somebody who wants the job to end"


class Poison(Diffusion):
    """The loss of the sample at one position is not finite."""

    position = 4

    def losses(self, batch, purpose):
        losses, t, hole = super().losses(batch, purpose)
        bad = (batch["position"] == self.position) & (purpose == "train")
        return replace(losses, total=torch.where(bad, torch.nan, losses.total)), t, hole


def poisoned(base):
    return Poison(base=str(base), image_size=SIZE, lora=LoRA(rank=2), optimizer=adamw(1e-3), masks=Box(), seed=3)


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_the_batch(world, base):
    model = poisoned(base)
    with pytest.raises(FloatingPointError, match=r"step 2 .*nonfinite.*skip"):
        world(model, 5, FiniteGuard())
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    folder = world.folder / "nonfinite" / "step=2-rank=0"
    kept = json.loads((folder / "batch.json").read_text())
    assert kept["seed"] == 3
    assert [(sample["position"], bool(np.isnan(sample["loss"]))) for sample in kept["samples"]] == [
        (4, True),
        (5, False),
    ]
    assert all(sample["name"].endswith(".png") and 0 <= sample["t"] < 2000 for sample in kept["samples"])
    hole = np.asarray(Image.open(folder / "4-hole.png").convert("L"))
    assert set(np.unique(hole)) == {0, 255}
    image = np.asarray(Image.open(folder / "4.png"))
    assert image.shape == (SIZE, SIZE, 3)


def test_an_update_may_be_skipped_and_changes_nothing(world, base):
    class Watch(L.Callback):
        def __init__(self):
            self.weights = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.weights.append(torch.cat([p.detach().flatten() for p in trainable(pl_module).values()]))

    watch, guard = Watch(), FiniteGuard(skip=1)
    with pytest.warns(UserWarning, match="update skipped, 1 of at most 1"):
        trainer = world(poisoned(base), 5, guard, watch)
    assert trainer.global_step == 5
    changed = [not torch.equal(a, b) for a, b in zip(watch.weights, watch.weights[1:], strict=False)]
    assert changed == [True, False, True, True]
    assert guard.state_dict() == {"skipped": 1}
    again = FiniteGuard(skip=1)
    again.load_state_dict(guard.state_dict())
    with pytest.raises(FloatingPointError):
        world(poisoned(base), 5, again)


def test_gradients_that_are_not_finite_count_too(world, base):
    model = world.model()
    model.configure_model()
    next(iter(trainable(model).values())).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match="gradient of step 0"):
        world(model, 5, FiniteGuard())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(world, bad):
    """A finite gradient can lead to them: eps of AdamW is 0 in float16."""

    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                next(iter(trainable(pl_module).values())).data[0] = bad

    with pytest.raises(FloatingPointError, match="weights are not finite after step 3"):
        world(world.model(), 3, Spoil())
    assert not list(world.folder.glob("checkpoints/*"))


def test_an_interval_of_zero_logs_nothing(world):
    assert world(world.model(), 2, log_every_n_steps=0).global_step == 2


def test_the_cap_is_a_number_of_updates():
    with pytest.raises(ValueError, match="skip is -1"):
        FiniteGuard(skip=-1)


def test_a_panel_that_is_not_finite_is_left_out_with_a_warning(tmp_path, monkeypatch):
    def fails(*_):
        raise NotFiniteError("the network's output is not finite", [0])

    monkeypatch.setattr(Panel, "image", fails)
    trainer = SimpleNamespace(global_step=5, is_global_zero=True, default_root_dir=tmp_path)
    module = Diffusion.__new__(Diffusion)
    with pytest.warns(
        UserWarning, match="no panel of step 5: image 1 of the batch: the network's output is not finite"
    ):
        Panel(every_n_steps=5).on_train_batch_end(trainer, module, None, None, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_of_training_are_finite(value):
    for name in ("decay", "inv_gamma", "power"):
        with pytest.raises(ValueError, match=f"{name} {value}"):
            EMA(**{name: value})
    for name in ("vlb_weight", "weight_limit"):
        with pytest.raises(ValueError, match=f"loss.{name} .*{value}"):
            TrainingLoss(**{name: value})


def test_processes_compare_their_signals_at_the_same_steps():
    gathered = []

    def gather(code):
        gathered.append(int(code))
        return torch.tensor([0, 2])  # another process has received SIGUSR1

    strategy = SimpleNamespace(all_gather=gather, root_device="cpu")
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, should_stop=False, world_size=2, strategy=strategy, global_step=0
    )
    stop = StopOnSignal(every_n_steps=4)
    stop.received = "SIGTERM"
    for step in range(1, 6):
        trainer.global_step = step
        stop.on_train_batch_end(trainer, None, None, None, step - 1)
        assert trainer.should_stop == (step >= 4)
    assert gathered == [1]
    assert stop.received == "SIGUSR1"
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        StopOnSignal(every_n_steps=0)


class Late(Poison):
    """Keeps weights and moments after each step."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        kept = [*trainable(self).values()]
        kept += [value for state in self.optimizers().state.values() for value in state.values()]
        self.states.append(torch.cat([value.detach().flatten().float() for value in kept]))


def late(base, **options):
    settings = {"image_size": SIZE, "lora": LoRA(rank=2), "masks": Box(), "optimizer": adamw(1e-3, fused=True)}
    model = Late(base=str(base), **settings | options)
    model.states = []
    return model


@pytest.fixture
def without_waiting(monkeypatch):
    """The guard treats the CPU as an accelerator."""
    monkeypatch.setattr("rad.training.guards.waits_for", lambda device: True)


@pytest.mark.usefixtures("without_waiting")
def test_a_fused_optimiser_skips_an_update_that_the_host_learns_of_later(world, base):
    model, guard = late(base), FiniteGuard(skip=1)
    with pytest.warns(UserWarning, match="step 2 is not finite.*update skipped, 1 of at most 1"):
        world(model, 5, guard, gradient_clip_val=1.0)
    changed = [not torch.equal(a, b) for a, b in zip(model.states, model.states[1:], strict=False)]
    assert changed == [True, False, True, True], "weights, moments and the count of steps"
    assert guard.state_dict() == {"skipped": 1}
    kept = json.loads((world.folder / "nonfinite" / "step=2-rank=0" / "batch.json").read_text())
    assert [(sample["position"], math.isnan(sample["loss"])) for sample in kept["samples"]] == [(4, True), (5, False)]


@pytest.mark.usefixtures("without_waiting")
@pytest.mark.parametrize("steps", [3, 5])
def test_a_late_check_ends_the_run_before_the_next_update(world, base, steps):
    """After 3 steps the end of the run reports the last one, before its checkpoint."""
    model = late(base)
    with pytest.raises(FloatingPointError, match=r"step 2 .*nonfinite.*before this step"):
        world(model, steps, FiniteGuard())
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert torch.equal(model.states[-1], model.states[1])
    assert not list(world.folder.glob("checkpoints/*"))


@pytest.mark.parametrize("settings", [{"gradient_clip_val": 0.01}, {"gradient_clip_val": 1e-4, "algorithm": "value"}])
def test_gradients_are_clipped_by_one_norm_for_all(world, base, settings, monkeypatch):
    computed, seen = [], []
    total = torch.nn.utils.get_total_norm

    def counted(gradients):
        computed.append(total(gradients))
        return computed[-1]

    class Watch(L.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad for p in trainable(pl_module).values() if p.grad is not None]
            if gradients:
                seen.append((total(gradients), max(gradient.abs().max() for gradient in gradients)))

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", counted)
    value = settings["gradient_clip_val"]
    algorithm = {"gradient_clip_algorithm": settings["algorithm"]} if "algorithm" in settings else {}
    model = Diffusion(base=str(base), image_size=SIZE, lora=LoRA(rank=2), optimizer=adamw(1e-3, fused=True))
    world(
        model,
        3,
        FiniteGuard(),
        Watch(),
        gradient_clip_val=value,
        precision="bf16-mixed",
        log_every_n_steps=1,
        **algorithm,
    )
    assert len(computed) == 3
    assert all(norm > value for norm in computed)
    norms, largest = zip(*seen, strict=True)
    clipped = largest if algorithm else norms
    assert all(float(entry) == pytest.approx(value, rel=1e-3) for entry in clipped)


def test_a_loss_scaler_and_a_fused_optimiser_do_not_clip():
    model = Diffusion(base="x", optimizer=adamw(1e-3, fused=True))
    model.weight = torch.nn.Parameter(torch.zeros(1))
    plugin = SimpleNamespace(scaler=object())
    model._trainer = SimpleNamespace(precision_plugin=plugin, world_size=1, gradient_clip_val=1.0, precision="16-mixed")
    with pytest.raises(ValueError, match="16-mixed a fused optimiser"):
        model.configure_optimizers()
