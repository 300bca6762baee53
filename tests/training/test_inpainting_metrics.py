"""Held-out inpainting during training: right values for any number of devices, the best model kept, the run ended in time."""

import json
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from safetensors.torch import load_file

from rad.data.module import ImageDataModule
from rad.errors import NotFiniteError
from rad.evaluation.features import feature_net
from rad.evaluation.metrics.pixels import PSNR_LIMIT, crop, crop_box, gradient_energy, psnr
from rad.models.lora import LoRA, trainable
from rad.training.autoencoder import AutoencoderTraining
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.inpainting import InpaintingMetrics, metrics, scores
from rad.training.inpainting.best import Best
from rad.training.settings import TrainingProcess
from tests.conftest import SIZE, random_image
from tests.training.test_module import BASE_MODEL, adamw

DISTANCE = "inpainting/perceptual-crop/nature64-resnet"
FRECHET = "inpainting/fd/nature64-resnet"
SMALL = {"every_n_steps": 2, "images": 5, "batch_size": 2, "steps": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(9):
        random_image(20, 20, seed=number).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def no_lpips(monkeypatch):
    """As on a machine without the weights of LPIPS."""
    monkeypatch.setattr("rad.evaluation.features.has_lpips", lambda net: False)


class Log(DummyLogger):
    """Keeps what it logs: (step, metrics) where there are any of inpainting."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("inpainting/") for name in metrics):
            self.rows.append((step, {name: value for name, value in metrics.items() if "seconds" not in name}))


@pytest.fixture
def fit(base, images, tmp_path):
    """`fit(steps, *callbacks, ...)` trains an adapter in the temporary folder."""

    def train(steps, *callbacks, resume=None, model=None, folder="run", ema=True, data=None, **options):
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            use_distributed_sampler=False,
            callbacks=[*([EMA(decay=0.9)] if ema else []), *callbacks, Checkpoint(every_n_train_steps=4, save_top_k=1)],
            default_root_dir=str(tmp_path / folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"logger": False, "num_sanity_val_steps": 0, **options},
        )
        module = model or Diffusion(base=str(base), image_size=SIZE, lora=LoRA(rank=2), optimizer=adamw(1e-2))
        images_of = {"size": SIZE, "batch_size": 2, "val_count": 5} | (data or {})
        trainer.fit(module, datamodule=ImageDataModule(str(images), **images_of), ckpt_path=resume, weights_only=True)
        return trainer

    train.folder = tmp_path
    return train


def networks():
    return scores.load_networks(None, lpips=False, device=torch.device("cpu"))


class Scripted(InpaintingMetrics):
    """Given values in place of measured ones; None: a sample was not finite."""

    def __init__(self, *values, **settings):
        super().__init__(**{"every_n_steps": 2, "images": 5} | settings)
        self.script = list(values)

    def measure(self, trainer, module):
        value = self.script[trainer.global_step // self.every_n_steps - 1]
        return None if value is None else {DISTANCE: value, "inpainting/seconds": 1.0}


def best(fit, folder="run"):
    return json.loads((fit.folder / folder / "checkpoints" / "best" / "best.json").read_text())


def test_values_of_an_image_are_those_of_the_evaluation():
    source = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (2, 3, 32, 32), generator=source) / 255
    hole = torch.zeros(2, 1, 32, 32)
    hole[0, :, 4:20, 8:24], hole[1, :, :, 16:] = 1, 1
    image = torch.where(hole == 1, (original + 0.1).clamp(0, 1), original)
    network = feature_net(scores.SHIPPED)
    rows = scores.score(image, original, hole, networks())
    image = (image * 255).round() / 255
    for number, row in enumerate(rows):
        box = crop_box(hole[number])
        distance = network.distance(crop(image[number], box)[None], crop(original[number], box)[None])
        assert float(row[0]) == pytest.approx(float(distance), rel=1e-5)
        assert float(row[1]) == pytest.approx(float(psnr(image, original, hole)[number]))
    values = scores.summarise(rows, networks())
    energy = gradient_energy(image, hole).sum() / gradient_energy(original, hole).sum()
    assert values["texture"] == pytest.approx(float(energy))
    assert values["psnr-hole"] == pytest.approx(float(psnr(image, original, hole).mean()))
    assert set(values) == {name.removeprefix("inpainting/") for name in (DISTANCE, FRECHET)} | {"psnr-hole", "texture"}


def test_the_original_is_the_best_fill_and_a_smooth_one_lacks_texture():
    original = torch.stack([torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(3)])
    hole = torch.zeros(3, 1, 32, 32)
    hole[..., 8:24, 8:24] = 1
    perfect = scores.summarise(scores.score(original, original, hole, networks()), networks())
    assert perfect["psnr-hole"] == pytest.approx(PSNR_LIMIT)
    assert perfect["texture"] == 1
    assert perfect[DISTANCE.removeprefix("inpainting/")] == 0
    assert perfect[FRECHET.removeprefix("inpainting/")] == pytest.approx(0, abs=1e-3)
    half = torch.where(hole == 1, original / 2 + 0.25, original)
    smooth = scores.summarise(scores.score(half, original, hole, networks()), networks())
    assert smooth["texture"] == pytest.approx(0.25, abs=0.01)
    assert smooth["psnr-hole"] < PSNR_LIMIT


def test_gradient_energy_in_closed_form():
    image, hole = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    hole[..., 1:3, 1:3] = 1
    image[:, 0, 1, 1], image[:, :, 0] = 0.5, 7.0  # the second lies outside the hole
    assert gradient_energy(image, hole).tolist() == [2 * 0.5**2]


def test_an_image_without_a_hole_has_no_distance():
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    hole = torch.ones(2, 1, 16, 16)
    hole[1] = 0
    rows = scores.score(image, image, hole, networks())
    assert rows[:, 0].isnan().tolist() == [False, True]
    assert scores.summarise(rows, networks())["psnr-hole"] == pytest.approx(PSNR_LIMIT)


def test_the_parts_of_three_devices_are_exactly_the_rows_of_one(base, images):
    module = Diffusion(base=str(base), image_size=SIZE, lora=LoRA(rank=2))
    module.configure_model()
    data = ImageDataModule(str(images), size=SIZE, val_count=8)
    data.setup("fit")
    callback, held_out = InpaintingMetrics(**SMALL | {"images": 8, "batch_size": 4}), data.held_out()
    callback._networks = networks()
    whole = callback.rows(module, held_out, range(8))
    assert whole.isfinite().all()
    parts = [callback.rows(module, held_out, range(rank, 8, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 2]
    most = [torch.cat([part, part.new_zeros(3 - len(part), part.shape[1])]) for part in parts]
    assert torch.equal(metrics.interleave(torch.stack(most), 8), whole)
    again = InpaintingMetrics(**SMALL | {"images": 8, "batch_size": 3})
    again._networks = networks()
    torch.testing.assert_close(again.rows(module, held_out, range(8))[:, 1:4], whole[:, 1:4], rtol=0.01, atol=0.1)


@pytest.mark.slow
def test_a_resumed_run_measures_and_keeps_what_an_uninterrupted_one_does(fit):
    options = {"accumulate_grad_batches": 2}  # the first batch after a resume ends no step
    straight, first, resumed = Log(), Log(), Log()
    ours, theirs = (InpaintingMetrics(**SMALL, patience=9) for _ in range(2))
    fit(8, ours, logger=straight, folder="straight", **options)
    fit(4, InpaintingMetrics(**SMALL, patience=9), logger=first, folder="resumed", **options)
    checkpoint = next((fit.folder / "resumed").rglob("step=4.ckpt"))
    trainer = fit(8, theirs, resume=str(checkpoint), logger=resumed, folder="resumed", **options)
    assert [step for step, _ in straight.rows] == [1, 3, 5, 7]
    assert [*first.rows, *resumed.rows] == straight.rows
    assert set(straight.rows[0][1]) == {DISTANCE, FRECHET, "inpainting/psnr-hole", "inpainting/texture"}
    assert ours.best.record() == theirs.best.record()
    assert best(fit, "straight") == best(fit, "resumed")
    assert best(fit, "straight")["value"] == min(values[DISTANCE] for _, values in straight.rows)
    assert float(trainer.callback_metrics[DISTANCE]) == pytest.approx(straight.rows[-1][1][DISTANCE])


@pytest.mark.slow
def test_measuring_changes_no_weight_and_another_seed_of_training_keeps_masks_and_noise(fit):
    log, logs = Log(), []
    trainers = [fit(2, InpaintingMetrics(**SMALL), logger=log, folder="a"), fit(2, folder="b")]
    for name, weight in trainable(trainers[0].lightning_module).items():
        assert torch.equal(weight, trainable(trainers[1].lightning_module)[name]), name
    for seed in (0, 1):  # at a learning rate of 0 and without an adapter that draws weights, only masks and noise count
        model = Diffusion(**BASE_MODEL, seed=0, optimizer=adamw(0.0, weight_decay=0.0))
        model.configure_model()
        model.seed = seed
        logs.append(Log())
        fit(2, InpaintingMetrics(**SMALL), model=model, logger=logs[-1], folder=f"seed{seed}", ema=False)
    assert logs[0].rows == logs[1].rows


def test_the_best_model_is_kept_with_its_averaged_weights(fit):
    seen = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen[trainer.global_step] = {n: w.clone() for n, w in trainer.callbacks[0].weights.items()}

    fit(12, Scripted(0.5, 0.3, 0.4, 0.3, 0.6, 0.9), Look())
    assert best(fit) == {"metric": DISTANCE, "value": 0.3, "step": 4, DISTANCE: 0.3}
    folder = fit.folder / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best",
        "last.ckpt",
        "step=12",
        "step=12-ema",
        "step=12.ckpt",
    ]
    saved = load_file(folder / "best" / "adapter_model.safetensors")
    (name,) = [name for name in saved if name.endswith("conv_in.lora_A.weight")] or [next(iter(saved))]
    averages = {n.replace(".default", "").removeprefix("network."): w for n, w in seen[4].items()}
    assert torch.equal(saved[name], averages[name])
    assert json.loads((folder / "best" / "rad_config.json").read_text())["ema"] is True


@pytest.mark.parametrize(("monitor", "values", "expected"), [("psnr", (1, 3, 2), 4), ("texture", (0.4, 1.9, 0.6), 6)])
def test_higher_psnr_and_texture_nearer_to_one_are_better(monitor, values, expected):
    state = Best()
    for number, value in enumerate(values):
        state.update(monitor, value, 2 * number + 2)
    assert state.step == expected
    assert state.waited == (3 - expected // 2)


def test_the_patience_counts_measurements_without_a_better_value():
    state, ended = Best(), []
    for number, value in enumerate((0.5, 0.6, 0.4, 0.4, 0.5)):
        state.update("distance", value, number)
        ended.append(state.has_ended(2))
    assert ended == [False, False, False, False, True]
    assert not state.has_ended(None)


@pytest.mark.slow
def test_the_run_ends_early_and_says_so_again_at_a_resume(fit, capsys):
    values = (0.5, 0.3, 0.4, 0.3, 0.2, 0.9)
    trainer = fit(12, Scripted(*values, patience=2))
    assert trainer.global_step == 8, "two measurements without a better value; an equal one is not better"
    checkpoint = str(fit.folder / "run" / "checkpoints" / "step=8.ckpt")
    err = capsys.readouterr().err
    assert "ended early at step 8" in err
    assert "0.3 of step 4 in 2 measurements" in err
    again = fit(12, Scripted(*values, patience=2), resume=checkpoint)
    assert again.global_step == 8
    assert "ended early at step 8" in capsys.readouterr().err
    longer = Scripted(*values, patience=3)
    assert fit(12, longer, resume=checkpoint).global_step == 12
    assert (longer.best.value, longer.best.step, longer.best.waited) == (0.2, 10, 1)
    assert "ended early" not in capsys.readouterr().err


@pytest.mark.slow
def test_other_held_out_images_begin_the_search_anew(fit):
    fit(4, Scripted(0.1, 0.2))
    checkpoint = str(fit.folder / "run" / "checkpoints" / "step=4.ckpt")
    callback = Scripted(0.1, 0.2, 0.6, images=4)
    with pytest.warns(UserWarning, match="is not comparable"):
        fit(6, callback, resume=checkpoint)
    assert (callback.best.value, callback.best.step) == (0.6, 6)


@pytest.mark.slow
def test_a_sample_that_is_not_finite_gives_a_warning_and_no_value(fit, monkeypatch):
    log, callback = Log(), InpaintingMetrics(**SMALL, patience=1)

    def fails(*_, **__):
        raise NotFiniteError("the network's output is not finite", [0])

    monkeypatch.setattr(metrics, "inpaint", fails)
    with pytest.warns(UserWarning, match="no inpainting metrics of step 2: image 1 of the batch: the network's output"):
        trainer = fit(4, callback, logger=log)
    assert trainer.global_step == 4
    assert not log.rows
    assert callback.best.value is None
    assert not (fit.folder / "run" / "checkpoints" / "best").exists()


@pytest.mark.slow
def test_networks_stay_out_of_checkpoints(fit):
    fit(4, InpaintingMetrics(**SMALL))
    content = torch.load(fit.folder / "run" / "checkpoints" / "step=4.ckpt", weights_only=True)
    assert set(content["callbacks"]["InpaintingMetrics"]) == {"latest", "best"}
    assert not [name for name in content["state_dict"] if "lora" not in name and "time" not in name]


def test_lpips_is_the_distance_where_its_weights_are(monkeypatch):
    lpips = SimpleNamespace(distance_name="lpips/alex", provenance={"weights": "0"})
    monkeypatch.setattr("rad.evaluation.features.lpips", lambda net, device: lpips)
    chosen = scores.load_networks(None, lpips=True, device=torch.device("cpu"))
    assert (chosen.distance_name, chosen.frechet_name) == ("lpips-crop/alex", "fd/nature64-resnet")
    named = scores.load_networks(scores.SHIPPED, lpips=True, device=torch.device("cpu"))
    assert named.distance_name == "perceptual-crop/nature64-resnet"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"images": 1}, "images is 1; give a whole number of at least 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"every_n_steps": -1}, "every_n_steps is -1"),
        ({"masks": ["centre"]}, "no mask is called 'centre'"),
        ({"masks": []}, "masks is empty"),
        ({"monitor": "fid"}, "monitor is 'fid'; allowed are distance, psnr, texture, frechet and null"),
        ({"patience": 0}, "patience is 0"),
        ({"monitor": None, "patience": 2}, "patience is 2 and monitor is null"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        InpaintingMetrics(**settings)


def test_a_run_that_cannot_be_measured_is_refused_before_training(fit):
    with pytest.raises(ValueError, match="list it after EMA"):
        fit(2, InpaintingMetrics(**SMALL), EMA(suffix="late"), ema=False)
    with pytest.raises(ValueError, match="needs validation images"):
        fit(2, InpaintingMetrics(**SMALL), data={"val_count": 0})
    with pytest.raises(ValueError, match=r"dpm\+\+2m"):
        fit(2, InpaintingMetrics(**SMALL, solver="dpm++2m"), model=Diffusion(**BASE_MODEL))
    with pytest.raises(ValueError, match="nowhere"):
        fit(2, InpaintingMetrics(**SMALL, feature_net="nowhere"))
    with pytest.raises(ValueError, match="needs a diffusion model"):
        InpaintingMetrics()._require_fit(SimpleNamespace(), AutoencoderTraining.__new__(AutoencoderTraining))


@pytest.mark.spread(1)
@pytest.mark.filterwarnings("ignore:trainer.precision bf16-true")
@pytest.mark.parametrize(
    ("process", "precision"),
    [
        ("region_aware", "bf16-mixed"),
        ("uniform", "bf16-mixed"),
        ("region_aware", "bf16-true"),
        ("uniform", "64-true"),
    ],
)
def test_base_models_and_other_precisions(fit, process, precision):
    log = Log()
    model = Diffusion(**BASE_MODEL | {"process": TrainingProcess(process)})
    fit(2, InpaintingMetrics(**SMALL), model=model, logger=log, precision=precision, ema=False)
    assert all(math.isfinite(value) for value in log.rows[0][1].values())
    assert (fit.folder / "run" / "checkpoints" / "best" / "unet").is_dir()


@pytest.mark.slow
def test_validation_means_do_not_depend_on_sanity_checks_or_batches(fit):
    """Three of five images in batches of two: an unequal last batch. The checks before training leave no value."""
    values = []
    for options in ({"num_sanity_val_steps": 0}, {"num_sanity_val_steps": 2}, {"num_sanity_val_steps": -1}):
        trainer = fit(
            2, val_check_interval=2, check_val_every_n_epoch=None, data={"val_limit": 3}, folder=str(options), **options
        )
        values.append(float(trainer.callback_metrics["val/loss"]))
    assert values[0] == values[1] == values[2]
