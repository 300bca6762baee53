"""Training: the loss falls, a resumed run equals an uninterrupted one bit for bit, checkpoints have only trained weights."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loggers.utilities import _scan_checkpoints
from PIL import Image

from rad.data.draws import draw_timesteps
from rad.data.module import ImageDataModule
from rad.diffusion.schedules import linear_betas
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.runs import find_trained
from rad.masks.shapes import make
from rad.models.adapter import AdapterInfo
from rad.models.base import load_base, save_base
from rad.models.lora import LoRA, trainable
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.execution import Execution
from rad.training.panel import Panel, Throughput
from rad.training.resume import find_checkpoint
from rad.training.schedules import Schedule
from rad.training.settings import Scratch, TrainingLoss, TrainingProcess
from tests.rounding import assert_same, doubled
from tests.tiny_networks import small_unet

UNET = {**dict(small_unet().config), "sample_size": 16}
BASE_MODEL = {"scratch": Scratch(UNET), "process": TrainingProcess("uniform"), "image_size": 16}


def adamw(lr, **settings):
    return partial(torch.optim.AdamW, lr=lr, **settings)


def configured(**settings):
    model = Diffusion(**settings)
    model.configure_model()
    return model


def module(world, **options):
    settings = {
        "base": str(world / "base"),
        "image_size": 16,
        "lora": LoRA(rank=4),
        "optimizer": adamw(1e-3),
    }
    return configured(**settings | options)


def data(world, **options):
    return ImageDataModule(
        str(world / "images"), **({"size": 16, "batch_size": 4, "val_count": 3, "flip": True} | options)
    )


def fit(folder, model, images, steps, *, resume=None, logger=False, callbacks=(), **options):
    ema, checkpoint = EMA(decay=0.9), Checkpoint(every_n_train_steps=10, dirpath=str(folder / "checkpoints"))
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[ema, checkpoint, *callbacks],
        logger=logger,
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, datamodule=images, ckpt_path=resume, weights_only=True)
    return trainer, ema


def batch(rows=4):
    image = 2 * torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    return {"image": image, "position": torch.arange(rows)}


@pytest.mark.parametrize(
    ("accumulate", "precision"), [(1, "32-true"), pytest.param(2, "64-true", marks=pytest.mark.slow)]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(world, tmp_path, accumulate, precision):
    options = {
        "precision": precision,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
    }
    settings = {"schedule": Schedule("cosine", warmup_steps=3)}
    whole = module(world, **settings)
    _, whole_ema = fit(tmp_path / "whole", whole, data(world), 20, **options)
    # stopped after 10 of 20 steps: the first half writes step=10.ckpt, which a new process would load
    resumed = module(world, **settings)
    ckpt = tmp_path / "whole" / "checkpoints" / "step=10.ckpt"
    trainer, resumed_ema = fit(tmp_path / "resumed", resumed, data(world), 20, resume=str(ckpt), **options)
    assert trainer.global_step == 20
    for name, weight in trainable(whole).items():
        assert torch.equal(weight, trainable(resumed)[name]), name
        assert torch.equal(whole_ema.weights[name], resumed_ema.weights[name]), name
        assert not torch.equal(whole_ema.weights[name], weight)
    assert whole_ema.step == resumed_ema.step == 20


def test_the_loss_does_not_depend_on_how_the_batch_is_split(world):
    model = module(world).eval()
    doubled(model.model.network)
    together = model.losses(batch(), "train")[0]
    halves = [
        model.losses({name: values[rows] for name, values in batch().items()}, "train")[0]
        for rows in (slice(0, 1), slice(1, 4))
    ]
    for name in ("simple", "vlb", "total"):
        parts = torch.cat([getattr(half, name) for half in halves])
        assert_same(getattr(together, name), parts)


def test_training_lowers_the_loss_and_leaves_the_base_alone(world, tmp_path):
    model = module(world, loss=TrainingLoss(region="noisy"), optimizer=adamw(3e-3))
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        before = model.losses(batch(16), "train")[0].simple.mean()
    fit(tmp_path, model, data(world, batch_size=8), 30)
    with torch.no_grad():
        after = model.losses(batch(16), "train")[0].simple.mean()
    assert float(after) < 0.8 * float(before)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_a_saved_adapter_is_trained_further(world, tmp_path):
    fit(tmp_path, module(world), data(world), 3)
    folder = tmp_path / "checkpoints" / "step=3"
    before = {name: w.detach().clone() for name, w in trainable(module(world, lora=None, adapter=str(folder))).items()}
    assert set(before) == set(trainable(module(world)))
    assert any(float(w.abs().max()) > 0 for name, w in before.items() if "lora_B" in name), "it does not start anew"
    further = module(world, lora=None, adapter=str(folder))
    fit(tmp_path / "further", further, data(world), 2)
    assert all(not torch.equal(w, before[name]) for name, w in trainable(further).items())
    assert AdapterInfo.read(tmp_path / "further" / "checkpoints" / "step=2").trained_steps == 2
    with pytest.raises(ValueError, match=r"its own rank and layers: set model\.lora to null"):
        module(world, adapter=str(folder))


def test_an_adapter_trained_on_td_paints_process_samples_with_its_method(world, tmp_path):
    model = module(world, process=TrainingProcess("tdpaint"), loss=TrainingLoss(region="moving", vlb_weight=1.0))
    fit(tmp_path, model, data(world), 2, callbacks=[Panel(every_n_steps=2, images=2, steps=2)])
    folder = tmp_path / "checkpoints" / "step=2-ema"
    assert AdapterInfo.read(folder).process == "tdpaint"
    inpainter = Inpainter.from_pretrained(folder)
    hole = make("center")([torch.Generator()], 16, 16)[0]
    result = inpainter(Image.new("RGB", (16, 16), (200, 30, 30)), hole, method="tdpaint", steps=2)
    assert result.nfe == 2
    times = model.process.timesteps(
        draw_timesteps([torch.Generator().manual_seed(i) for i in range(64)]), model.noise_process
    )
    assert 0 <= int(times.min()) < 100
    assert 900 < int(times.max()) < 1000


def test_checkpoints_have_only_trained_weights_and_adapters_lie_beside_them(world, tmp_path):
    model = module(world)
    trainer, ema = fit(tmp_path, model, data(world), 13)
    folder = tmp_path / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"step={n}{end}" for n in (10, 13) for end in (".ckpt", "", "-ema")} | {"last.ckpt"}
    content = torch.load(folder / "last.ckpt", weights_only=True)
    assert set(content["state_dict"]) == set(trainable(model))
    assert content["global_step"] == 13
    assert (folder / "last.ckpt").resolve().name == "step=13.ckpt"
    assert AdapterInfo.read(folder / "step=13-ema").trained_steps == 13
    assert AdapterInfo.read(folder / "step=13-ema").ema
    assert "13 steps of batch 4" in (folder / "step=13" / "README.md").read_text()
    assert trainer.global_step == 13
    # the exported adapters are the weights: raw and averaged
    x, times = torch.randn(1, 3, 16, 16), torch.tensor([[0.0, 500.0]])
    index = (torch.rand(1, 16, 16) > 0.5).long()
    with torch.no_grad():
        raw = model.model.network.eval()(x, times, index=index).sample
        loaded = Inpainter.from_pretrained(folder / "step=13").model.adapted(x, times, index=index).sample
        assert_same(loaded, raw)
        averaged = Inpainter.from_pretrained(folder / "step=13-ema").model.adapted(x, times, index=index).sample
        assert (averaged - raw).abs().max() > 1e-4
        for name, weight in trainable(model).items():
            weight.copy_(ema.weights[name])
        assert_same(averaged, model.model.network(x, times, index=index).sample)


def test_only_the_newest_checkpoints_are_kept_with_their_adapters(world, tmp_path):
    newest = Checkpoint(every_n_train_steps=2, save_top_k=2, dirpath=str(tmp_path / "newest"))
    fit(tmp_path, module(world), data(world), 6, callbacks=[newest])
    kept = {path.name for path in (tmp_path / "newest").iterdir()}
    assert kept == {f"step={n}{end}" for n in (4, 6) for end in (".ckpt", "", "-ema")} | {"last.ckpt"}


class Uploads(DummyLogger):
    """Records the checkpoints that a logger such as W&B's uploads."""

    def __init__(self):
        super().__init__()
        self.times, self.paths = {}, []

    def after_save_checkpoint(self, checkpoint_callback):
        for time, path, score, _ in _scan_checkpoints(checkpoint_callback, self.times):
            self.times[path] = time
            self.paths.append((path, score, path == checkpoint_callback.best_model_path))


@pytest.mark.slow
def test_loggers_get_each_checkpoint(world, tmp_path):
    logger = Uploads()
    fit(tmp_path, module(world), data(world), 15, logger=logger)
    folder = tmp_path / "checkpoints"
    assert logger.paths == [(str(folder / f"step={step}.ckpt"), step, True) for step in (10, 15)]


@pytest.mark.slow
def test_a_step_that_is_trained_again_replaces_its_files(world, tmp_path):
    """A killed run may leave a model without its checkpoint; the resumed run writes it again."""
    fit(tmp_path, module(world), data(world), 20)
    folder = tmp_path / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    (folder / "step=20" / "old").touch()
    (folder / "step=20.ckpt").unlink()
    fit(tmp_path, module(world), data(world), 20, resume=str(folder / "step=10.ckpt"))
    assert {path.name for path in folder.iterdir()} == names
    assert not (folder / "step=20" / "old").exists()


def test_a_run_that_goes_back_continues_from_its_own_checkpoints(world, tmp_path):
    folder, images = tmp_path / "run" / "checkpoints", data(world, val_count=0)

    def run(steps, resume=None, **settings):
        often = Checkpoint(every_n_train_steps=1, dirpath=str(folder))
        fit(tmp_path, module(world, **settings), images, steps, callbacks=[often], resume=resume)

    run(3)
    contents = {path.name: path.read_bytes() for path in folder.glob("step=[23].ckpt")}
    run(2, str(folder / "step=1.ckpt"), optimizer=adamw(1e-2))
    assert {path.name: path.read_bytes() for path in folder.glob("superseded/1/*.ckpt")} == contents
    assert contents["step=2.ckpt"] != (folder / "step=2.ckpt").read_bytes()
    assert find_trained(tmp_path / "run") == folder / "step=2-ema"
    last = find_checkpoint("last", tmp_path / "run")
    assert last == str(folder / "step=2.ckpt")
    run(3, last, optimizer=adamw(1e-2))
    assert (folder / "last.ckpt").resolve() == folder / "step=3.ckpt"
    assert [path.name for path in (folder / "superseded").iterdir()] == ["1"], "an ordinary resume moves nothing"
    run(4, str(folder / "superseded" / "1" / "step=3.ckpt"))
    assert find_checkpoint("last", tmp_path / "run") == str(folder / "step=4.ckpt"), "the set aside run can continue"


@pytest.mark.slow
def test_a_resumed_run_removes_the_checkpoints_of_the_first(world, tmp_path):
    def run(steps, resume=None):
        newest = Checkpoint(every_n_train_steps=2, save_top_k=2, dirpath=str(tmp_path / "newest"))
        fit(tmp_path, module(world), data(world), steps, callbacks=[newest], resume=resume)
        return {path.name for path in (tmp_path / "newest").glob("*.ckpt")}

    assert run(4) == {"step=2.ckpt", "step=4.ckpt", "last.ckpt"}
    assert run(6, str(tmp_path / "newest" / "step=4.ckpt")) == {"step=4.ckpt", "step=6.ckpt", "last.ckpt"}


class Fails(L.Callback):
    """An error in the validation after a step; `weights`: what the module held then."""

    def __init__(self, error):
        self.error = error

    def on_validation_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > 0:
            self.weights = {name: weight.detach().clone() for name, weight in trainable(pl_module).items()}
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_validation_leaves_the_trained_weights(world, tmp_path, error):
    failing, whole = module(world), module(world)
    options, fails = {"val_check_interval": 2, "check_val_every_n_epoch": None}, Fails(error)
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        fit(tmp_path / "failing", failing, data(world), 4, callbacks=[fails], **options)
    fit(tmp_path / "whole", whole, data(world), 2)
    for name, weight in trainable(whole).items():
        assert torch.equal(weight, trainable(failing)[name]), name
    assert any(not torch.equal(weight, fails.weights[name]) for name, weight in trainable(whole).items())


def test_ema_follows_its_formula():
    ema = EMA(decay=0.999, inv_gamma=2.0, power=0.5)
    assert ema.decay_at(6) == pytest.approx(1 - 4**-0.5)
    assert ema.decay_at(10**9) == 0.999
    layer = torch.nn.Linear(1, 1, bias=False)
    ema.weights = {"weight": torch.zeros(1, 1)}
    layer.weight.data.fill_(1.0)
    expected = 0.0
    for step in (1, 2, 3):
        ema.update(layer, step)
        expected = ema.decay_at(step) * expected + (1 - ema.decay_at(step))
    assert float(ema.weights["weight"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"decay 1\.5"):
        EMA(decay=1.5)


@pytest.mark.slow
def test_a_base_model_trains_from_scratch_and_loads(world, tmp_path):
    model = configured(**BASE_MODEL, optimizer=adamw(2e-3), loss=TrainingLoss(vlb_weight=1.0))
    with torch.no_grad():
        before = model.losses(batch(16), "train")[0].simple.mean()
    assert float(before) == pytest.approx(1, abs=0.1), "a network of zeros predicts no noise"
    fit(tmp_path, model, data(world, batch_size=8), 30)
    with torch.no_grad():
        assert float(model.losses(batch(16), "train")[0].simple.mean()) < 0.8
    folder = tmp_path / "checkpoints" / "step=30"
    x = torch.randn(1, 3, 16, 16)
    assert_same(load_base(folder).unet(x, 40).sample, model.model.network.eval()(x, 40).sample)


def test_times_cover_both_phases_in_the_share_asked_for(world):
    for phase2 in (0.0, 0.25, 1.0):
        model = module(world, process=TrainingProcess(phase2=phase2))
        rngs = [torch.Generator().manual_seed(i) for i in range(4000)]
        times = model.process.timesteps(draw_timesteps(rngs), model.noise_process)
        assert float((times >= 1000).double().mean()) == pytest.approx(phase2, abs=0.03)
        inside = (times % 1000).double()
        assert float(inside.mean()) == pytest.approx(499.5, abs=4 * 289 / 4000**0.5)
        assert int(inside.max()) > 990
        assert int(inside.min()) < 10


def test_holes_of_the_data_go_before_those_of_the_module(world):
    model = module(world)
    hole = make("half")([torch.Generator()] * 4, 16, 16)
    _, _, used = model.losses({**batch(), "hole": hole}, "train")
    assert torch.equal(used, hole)
    _, _, drawn = model.losses(batch(), "train")
    assert not torch.equal(drawn, hole)


def test_tensorboard_gets_its_curves_and_a_panel(world, tmp_path):
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    callbacks = [Throughput(window_size=2), Panel(every_n_steps=4, images=2, steps=2), LearningRateMonitor()]
    fit(
        tmp_path, module(world), data(world), 8, logger=logger, callbacks=callbacks,
        log_every_n_steps=2, val_check_interval=4, check_val_every_n_epoch=None,
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = "loss simple vlb hole_fraction gradient_norm images_per_second"
    assert {f"train/{name}" for name in wanted.split()} | {"val/loss", "val/simple", "val/vlb"} <= scalars
    assert any(name.startswith("train/simple_t") for name in scalars)
    assert any(name.startswith("lr") for name in scalars)
    assert [image.step for image in events.Images("panel")] == [3, 7]
    losses = [event.value for event in events.Scalars("val/loss")]
    assert len(losses) == 2
    assert losses[0] != losses[1]


def test_a_panel_of_a_base_model_fills_by_replacement(world, tmp_path):
    model = configured(**BASE_MODEL)
    panel = Panel(every_n_steps=0, images=2, steps=2)
    trainer, _ = fit(tmp_path, model, data(world), 1, callbacks=[panel])
    image = panel.image(trainer, model)
    assert image.shape == (3, 2 * 18 + 2, 3 * 18 + 2)
    hole, result, truth = (image[:, 2:18, 2 + 18 * i : 18 + 18 * i] for i in range(3))
    known = torch.ones(16, 16, dtype=torch.bool)
    known[4:12, 4:12] = False  # the first mask is "center"
    for shown in (hole, result):
        torch.testing.assert_close(shown[:, known], truth[:, known], rtol=0, atol=1e-6)
    assert (result - truth)[:, ~known].abs().max() > 0.01
    assert (hole[:, ~known] == 0.5).all()


def test_a_panel_of_a_rad_model_uses_the_preset_of_rad_or_its_own_solver(world):
    sampler = Panel(steps=5).sampler(module(world))
    assert (sampler.solver, sampler.eta, len(sampler.timesteps)) == ("dpm++2m", 0.0, 6)
    sampler = Panel(steps=5, solver="ddpm", spacing="trailing").sampler(module(world))
    assert (sampler.solver, sampler.eta, sampler.timesteps[1]) == ("ddpm", 1.0, 799)


def test_a_panel_that_cannot_be_drawn_is_refused_before_training(tmp_path, world):
    model = configured(**BASE_MODEL)
    with pytest.raises(ValueError, match="method 'replacement' changes x or x0"):
        fit(tmp_path, model, data(world), 1, callbacks=[Panel(every_n_steps=2, solver="dpm++2m")])
    with pytest.raises(ValueError, match="Panel needs validation images, and there are none"):
        fit(tmp_path, model, data(world, val_count=0), 1, callbacks=[Panel(every_n_steps=2)])
    fit(tmp_path, model, data(world, val_count=0), 1, callbacks=[Panel(every_n_steps=0)])


def factors(schedule, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule.build(optimizer, total)
    values = []
    for _ in range(total + 1):
        values.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        scheduler.step()
    return values


def test_schedules_in_closed_form():
    ramp = [0, 0.25, 0.5, 0.75]
    assert factors(Schedule("constant", warmup_steps=4), 8) == pytest.approx([*ramp, 1, 1, 1, 1, 1])
    assert factors(Schedule("linear", warmup_steps=4), 8) == pytest.approx([*ramp, 1, 0.75, 0.5, 0.25, 0])
    cosine = [(1 + math.cos(math.pi * p)) / 2 for p in (0, 0.25, 0.5, 0.75, 1)]
    assert factors(Schedule("cosine", warmup_steps=4), 8) == pytest.approx([*ramp, *cosine])
    stable = factors(Schedule("warmup_stable_decay", warmup_steps=4, decay_share=0.5), 16)
    assert stable == pytest.approx([*ramp, *[1] * 4, *[(1 + math.cos(math.pi * p / 8)) / 2 for p in range(9)]])
    assert factors(Schedule("cosine"), 4)[0] == 1, "without warm-up the first step has the full rate"
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        factors(Schedule("linear"), 0)


def test_optimiser_and_scheduler_are_exchangeable(world, tmp_path):
    settings = {
        "optimizer": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        "lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=2),
    }
    trainer, _ = fit(tmp_path, module(world, **settings), data(world), 3)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert "SGD 0.5" in (tmp_path / "checkpoints" / "step=3" / "README.md").read_text()


def test_a_checkpoint_restores_the_module_with_its_settings(world, tmp_path):
    trained = module(world, process=TrainingProcess(phase2=0.25), loss=TrainingLoss(region="noisy"))
    fit(tmp_path, trained, data(world), 2)
    restored = Diffusion.load_from_checkpoint(tmp_path / "checkpoints" / "step=2.ckpt", weights_only=True)
    assert (restored.process, restored.loss, restored.lora) == (trained.process, trained.loss, trained.lora)
    assert all(torch.equal(weight, trainable(restored)[name]) for name, weight in trainable(trained).items())


def test_new_weights_do_not_depend_on_the_precision_of_the_run(world):
    expected = trainable(module(world))
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            model = module(world)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(weight, expected[name]) for name, weight in trainable(model).items())


@pytest.mark.parametrize("whole", [False, True])
def test_validation_alone(world, whole):
    """`trainer.validate` loads the model; the result equals the loss of the module itself."""
    model = Diffusion(**BASE_MODEL) if whole else Diffusion(str(world / "base"), image_size=16, lora=LoRA(rank=4))
    images = data(world, batch_size=3)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (means,) = trainer.validate(model, datamodule=images)
    with torch.no_grad():
        losses = model.losses(next(iter(images.val_dataloader())), "val")[0]
    assert means["val/loss"] == pytest.approx(losses.total.mean().item(), rel=1e-5)


def test_bad_settings_and_foreign_checkpoints_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match=r"give either model.base .* or model.scratch"):
        Diffusion()
    with pytest.raises(ValueError, match="trains a base model"):
        module(world, process=TrainingProcess("uniform"))
    with pytest.raises(ValueError, match="phase2 is 2"):
        TrainingProcess(phase2=2)
    with pytest.raises(ValueError, match="does not describe a UNet2DModel"):
        configured(scratch=Scratch({"block_out_channels": [32], "layers": 3}))
    with pytest.raises(ValueError, match=r"lr_scheduler replaces model\.schedule"):
        module(world, schedule=Schedule("linear"), lr_scheduler=lambda optimizer: None)
    with pytest.raises(RuntimeError, match="configure_model"):
        Diffusion(**BASE_MODEL).task(batch()["image"], torch.ones(4, 1, 16, 16))
    fit(tmp_path, module(world), data(world), 2)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="trains other layers"):
        fit(tmp_path / "b", module(world, lora=LoRA(rank=2)), data(world), 4, resume=last)
    other = small_unet()
    with torch.no_grad():
        other.conv_in.weight += 1
    save_base(tmp_path / "other", other, betas=linear_betas())
    with pytest.raises(ValueError, match="the checkpoint belongs to"):
        fit(tmp_path / "c", module(world, base=str(tmp_path / "other")), data(world), 4, resume=last)


@pytest.mark.parametrize(
    "changes", [{"out_channels": 2}, {"out_channels": 0}, {"in_channels": 4}, {"num_class_embeds": 5}]
)
def test_networks_of_other_channels_and_classes_are_refused_before_training(changes):
    with pytest.raises(ValueError, match="RGB images"):
        configured(**BASE_MODEL | {"scratch": Scratch({**UNET, **changes})})


def test_a_batch_with_accumulation_and_bf16(world, tmp_path):
    model = module(world, execution=Execution(gradient_checkpointing=True, channels_last=True))
    fit(tmp_path, model, data(world), 2, precision="bf16-mixed", accumulate_grad_batches=2)
    assert all(bool(p.isfinite().all()) for p in trainable(model).values())


def test_a_validation_loss_does_not_hide_a_sample_with_nan(monkeypatch):
    model = configured(**BASE_MODEL)
    monkeypatch.setattr(model, "log", lambda *args, **settings: None)
    model.log_means({"loss": torch.tensor([1.0, math.nan]), "simple": torch.tensor([1.0, 3.0])})
    assert math.isnan(model.val_means["loss"].compute())
    assert model.val_means["simple"].compute() == 2
