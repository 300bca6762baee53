"""Training of LoRA variants with power-function averages: splits, exact resume, snapshots, `rad ema`, sampling."""

import json
import shutil
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rad import __main__ as rad
from rad.data.module import ImageDataModule
from rad.diffusion.schedules import linear_betas
from rad.inpainting.inpainter import Inpainter
from rad.models.base import save_base
from rad.models.lora import LoRA, trainable
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.posthoc.power_ema import PowerEMA, find_snapshots, reconstruct
from rad.training.posthoc.profiles import Profile, gamma_of, power_decay, solve_weights
from tests.conftest import random_image
from tests.rounding import assert_same, doubled
from tests.tiny_networks import small_unet

VARIANT = LoRA(rank=4, dropout=0.2, use_dora=True, use_rslora=True, rank_pattern={"mid_block.*": 2})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("variants")
    save_base(root / "base", small_unet(), betas=linear_betas(), half=False)
    (root / "images").mkdir()
    for number in range(8):
        random_image(16, 16, seed=number).save(root / "images" / f"{number}.png")
    fit(root, root / "run", 6)
    return root


def module(root, **settings):
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    model = Diffusion(str(root / "base"), image_size=16, lora=VARIANT, optimizer=optimizer, **settings)
    model.configure_model()
    return model


class Trajectory(L.Callback):
    """Keeps the trained weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append({name: p.detach().clone() for name, p in trainable(pl_module).items()})


def fit(root, folder, steps, *, resume=None, **settings):
    averages = [PowerEMA(length, every_n_train_steps=2) for length in (0.05, 0.1)]
    trajectory = Trajectory()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        use_distributed_sampler=False,
        callbacks=[*averages, trajectory, Checkpoint(4, dirpath=str(folder / "checkpoints"))],
        logger=False,
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = module(root, **settings)
    images = ImageDataModule(str(root / "images"), size=16, batch_size=4, val_count=0)
    trainer.fit(model, datamodule=images, ckpt_path=resume, weights_only=True)
    return model, averages, trajectory.weights


@pytest.mark.slow
def test_the_loss_with_dropout_does_not_depend_on_how_the_batch_is_split(world):
    model = module(world).train()
    for parameter in trainable(model).values():
        parameter.data += 0.05
    doubled(model.model.network)
    image = 2 * torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    batch = {"image": image, "position": torch.arange(4)}
    together = model.losses(batch, "train")[0].total
    parts = [model.losses({n: v[rows] for n, v in batch.items()}, "train")[0].total for rows in ([0], [1, 2, 3])]
    assert_same(together, torch.cat(parts))
    assert not torch.allclose(together, model.eval().losses(batch, "train")[0].total, rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_with_its_averages_and_snapshots(world, tmp_path):
    whole, _, _ = fit(world, tmp_path / "whole", 6)
    (tmp_path / "half").mkdir()
    shutil.copytree(tmp_path / "whole" / "ema", tmp_path / "half" / "ema")
    ckpt = str(tmp_path / "whole" / "checkpoints" / "step=4.ckpt")
    with pytest.warns(UserWarning, match="1 snapshots of sigma0.05 after step 4 are removed"):
        resumed, _, _ = fit(world, tmp_path / "half", 6, resume=ckpt)
    for name, weight in trainable(whole).items():
        assert torch.equal(weight, trainable(resumed)[name]), name
    names = [f"step={step}-sigma{length}" for step in (2, 4, 6) for length in ("0.05", "0.1")]
    for run in ("whole", "half"):
        assert sorted(path.name for path in (tmp_path / run / "ema").iterdir()) == sorted(names)
    for name in names:
        files = [tmp_path / run / "ema" / name / "adapter_model.safetensors" for run in ("whole", "half")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_snapshots_are_the_averages_of_the_trajectory(world, tmp_path):
    _, averages, trajectory = fit(world, tmp_path, 4)
    for average in averages:
        for name in ("network.base_model.model.conv_in.lora_A.default.weight", next(iter(average.weights))):
            expected = torch.zeros_like(average.weights[name])
            for step, weights in enumerate(trajectory, start=1):
                decay = power_decay(step, average.gamma)
                expected = decay * expected + (1 - decay) * weights[name]
            torch.testing.assert_close(average.weights[name], expected, rtol=1e-5, atol=1e-6)
        saved = load_file(tmp_path / "ema" / f"step=4-{average.suffix}" / "adapter_model.safetensors")
        expected = average.weights["network.base_model.model.conv_in.lora_A.default.weight"]
        assert torch.equal(saved["base_model.model.conv_in.lora_A.weight"], expected)
        exported = tmp_path / "checkpoints" / f"step=4-{average.suffix}" / "adapter_model.safetensors"
        assert all(torch.equal(weight, saved[name]) for name, weight in load_file(exported).items())


def test_an_average_that_a_resume_adds_counts_from_there():
    average = PowerEMA(0.1)
    average.start = 100
    assert average.decay_at(101) == 0
    assert average.decay_at(110) == power_decay(10, gamma_of(0.1))


def test_the_command_writes_an_adapter_that_samples(world, tmp_path, capsys):
    assert rad.main(["ema", str(world / "run"), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "sigma_rel 0.05" in lines[0]
    folder = tmp_path / "averaged"
    assert rad.main(["ema", str(world / "run"), "--sigma_rel", "0.08", "--output", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(folder)]
    assert "average of sigma_rel 0.08 at step 6, from 6 snapshots" in err
    assert "sigma_rel 0.08" in (folder / "README.md").read_text()
    snapshots = find_snapshots(world / "run")
    profiles = [Profile(step, length) for step in (2, 4, 6) for length in (0.05, 0.1)]
    weights, _ = solve_weights(profiles, Profile(6, 0.08))
    result, saved = (
        load_file(folder / "adapter_model.safetensors"),
        [load_file(snapshot.folder / "adapter_model.safetensors") for snapshot in snapshots],
    )
    assert result.keys() == saved[0].keys()
    for name, tensor in result.items():
        expected = sum(float(weight) * each[name].double() for weight, each in zip(weights, saved, strict=True))
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-6, atol=1e-9)
    filled = Inpainter.from_pretrained(folder, device="cpu")(
        random_image(16, 16), Image.new("L", (16, 16), 255), steps=2, seed=0
    ).images[0]
    assert np.asarray(filled).std() > 0
    several = tmp_path / "several"
    words = ["ema", str(world / "run"), "--sigma_rel", "0.05", "0.1", "--step", "4", "--output", str(several)]
    assert rad.main(words) == 0
    for length in ("0.05", "0.1"):
        saved = load_file(world / "run" / "ema" / f"step=4-sigma{length}" / "adapter_model.safetensors")
        for name, tensor in load_file(several / f"sigma{length}" / "adapter_model.safetensors").items():
            torch.testing.assert_close(tensor, saved[name], rtol=1e-6, atol=1e-9)


def test_unsuitable_requests_and_damaged_snapshots_are_refused(world, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(world / "run" / "ema", run / "ema")

    def error(*words):
        assert rad.main(["ema", str(run), *words]) == 2
        return capsys.readouterr().err

    target = ("--output", str(tmp_path / "out"))
    assert "give --sigma_rel and --output" in error()
    assert "sigma_rel is 0.4" in error("--sigma_rel", "0.4", *target)
    assert "step 5 has no snapshot; those of the run are 2, 4, 6" in error("--sigma_rel", "0.1", "--step", "5", *target)
    assert "exists: give a new folder" in error("--sigma_rel", "0.1", "--output", str(run))
    (run / "ema" / "step=2-sigma0.1" / "adapter_model.safetensors").write_bytes(b"")
    assert "cannot be read" in error("--sigma_rel", "0.08", *target)
    assert not (tmp_path / "out").exists()
    (run / "ema" / "step=2-sigma0.1" / "snapshot.json").write_text(json.dumps({"step": 2, "start": 3, "sigma_rel": 1}))
    assert "snapshot.json cannot be read" in error("--sigma_rel", "0.08", *target)
    shutil.rmtree(run / "ema")
    assert "holds no snapshots" in error("--list")


def test_a_long_average_is_reconstructed_with_a_small_error_of_its_profile(world):
    assert reconstruct(find_snapshots(world / "run"), 0.07).error < 0.1
    assert reconstruct(find_snapshots(world / "run"), 0.25).error > 0.1
