"""An autoencoder from scratch: its loss term by term, resumed runs, the measured scale, and `train.py --config` on it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from rad.cli import main as cli
from rad.data.module import ImageDataModule
from rad.evaluation.features import feature_net
from rad.models.lora import trainable
from rad.models.vae import PretrainedAutoencoder
from rad.training.autoencoder import AutoencoderTraining
from tests.rounding import assert_same

ROOT = Path(__file__).resolve().parents[2]
FEATURES = ROOT / "checkpoints" / "features-nature64"
SMALL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Path("images").mkdir()
    for number in range(6):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 20), Image.Resampling.BICUBIC).save(f"images/{number}.png")
    config = {
        "trains": "autoencoder",
        "model": {"autoencoder": SMALL, "optimizer": {"init_args": {"lr": 3e-3}}},
        "data": {"path": "images", "size": 16, "val_count": 2, "batch_size": 4},
        "trainer": {
            "max_steps": 4,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "rad.training.EMA", "init_args": {"decay": 0.9}},
                {"class_path": "rad.training.Checkpoint", "init_args": {"every_n_train_steps": 2}},
            ],
        },
    }
    Path("small.yaml").write_text(yaml.safe_dump(config))


def batch():
    image = 2 * torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    return {"image": image, "position": torch.tensor([5, 6, 7])}


def test_the_loss_term_by_term():
    module = AutoencoderTraining(SMALL, image_size=16, kl_weight=0.5, perceptual=str(FEATURES), perceptual_weight=2.0)
    module.configure_model()
    given = batch()
    found = module.losses(given, sampled=False)
    posterior = module.autoencoder.encode(given["image"]).latent_dist
    image = module.autoencoder.decode(posterior.mean).sample
    l1 = (image - given["image"]).abs().mean((1, 2, 3))
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum((1, 2, 3)) / (3 * 16 * 16)
    net = feature_net(FEATURES)
    distance = net.compared(image / 2 + 0.5, given["image"] / 2 + 0.5)
    assert_same(found.total, l1 + 2 * distance + 0.5 * kl)
    assert_same(found.kl, kl)
    assert (distance > 0.01).all()
    found.total.sum().backward()
    assert all(p.grad is not None for p in module.autoencoder.parameters())
    drawn, again = (module.losses(given, sampled=True).total for _ in range(2))
    assert torch.equal(drawn, again), "keyed by position"
    assert (drawn != found.total).all()
    row = module.losses({name: values[1:2] for name, values in given.items()}, sampled=True)
    assert_same(row.total, drawn[1:2])
    assert set(module.state_dict()) == {f"autoencoder.{name}" for name, _ in module.autoencoder.named_parameters()}


def test_the_perceptual_loss_equals_the_metric_and_has_gradients():
    net = feature_net(FEATURES)
    source = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 3, 64, 64, generator=source) for _ in range(2))
    first.requires_grad_()
    compared = net.compared(first, second)
    torch.testing.assert_close(compared.detach(), net.distance(first, second), rtol=0.01, atol=1e-3)
    compared.sum().backward()
    assert first.grad.abs().max() > 0
    with torch.no_grad():
        lower = net.compared(first - 0.05 * first.grad / first.grad.norm(), second)
    assert (lower.sum() < compared.sum()).all()
    assert torch.equal(net.compared(second, second), torch.zeros(2))


def test_a_trained_autoencoder_has_latents_of_unit_deviation_and_resumes_bit_for_bit():
    assert cli.train(["--config", "small.yaml", "--name", "whole"]) == 0
    folder = Path("runs/whole/checkpoints")
    assert {path.name for path in folder.iterdir()} == {
        f"step={n}{end}" for n in (2, 4) for end in (".ckpt", "", "-ema")
    } | {"last.ckpt"}
    autoencoder = PretrainedAutoencoder.find(folder / "step=4-ema")
    assert (autoencoder.factor, autoencoder.channels) == (2, 4)
    originals = ImageDataModule("images", size=16, val_count=2)
    originals.setup("validate")
    images = torch.stack([originals.stream()[position]["image"] for position in range(4)])
    with torch.no_grad():
        assert float(autoencoder.encode(images).std()) == pytest.approx(1, abs=1e-4)
    assert "scaling_factor" in json.loads((folder / "step=4" / "config.json").read_text())

    assert cli.train(["--config", "small.yaml", "--name", "part", "--trainer.max_steps", "2"]) == 0
    assert cli.train(["--config", "small.yaml", "--name", "part", "--ckpt_path", "last"]) == 0
    whole, part = (
        AutoencoderKL.from_pretrained(f"runs/{name}/checkpoints/step=4").state_dict() for name in ("whole", "part")
    )
    assert all(torch.equal(weight, part[name]) for name, weight in whole.items())
    fresh = AutoencoderTraining(SMALL, image_size=16)
    fresh.configure_model()
    weights = {name.removeprefix("autoencoder."): w for name, w in trainable(fresh).items()}
    assert all(not torch.equal(weight, weights[name]) for name, weight in whole.items())


def test_validation_alone():
    module = AutoencoderTraining(SMALL, image_size=16, perceptual=str(FEATURES))
    data = ImageDataModule("images", size=16, val_count=3, batch_size=3)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (means,) = trainer.validate(module, datamodule=data)
    with torch.no_grad():
        losses = module.losses(next(iter(data.val_dataloader())), sampled=False)
    assert means["val/loss"] == pytest.approx(losses.total.mean().item(), rel=1e-5)
    assert means["val/distance"] > 0


@pytest.mark.slow
def test_a_latent_model_and_its_adapter_train_on_the_autoencoder():
    assert cli.train(["--config", "small.yaml", "--name", "coder", "--trainer.max_steps", "1"]) == 0
    unet = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
    }
    content = yaml.safe_load(Path("small.yaml").read_text()) | {"trains": "diffusion"}
    scratch = {
        "process": {"kind": "uniform"},
        "scratch": {"unet": unet, "autoencoder": "runs/coder/checkpoints/step=1"},
    }
    Path("latent.yaml").write_text(yaml.safe_dump(content | {"model": scratch}))
    assert cli.train(["--config", "latent.yaml", "--trainer.max_steps", "1"]) == 0
    adapter = {"base": "runs/latent/checkpoints/step=1-ema", "lora": {"rank": 2}}
    Path("rad.yaml").write_text(yaml.safe_dump(content | {"model": adapter}))
    assert cli.train(["--config", "rad.yaml", "--trainer.max_steps", "1"]) == 0
    info = json.loads(Path("runs/rad/checkpoints/step=1/rad_config.json").read_text())
    assert (info["kind"], info["base"], info["size"]) == ("latent", "runs/latent/checkpoints/step=1-ema", [16, 16])


def test_the_last_config_or_argument_decides_the_trained_module(capsys):
    from rad.cli.train.run import trained_module
    from rad.training.diffusion import Diffusion

    assert trained_module(["--config", "small.yaml"]) is AutoencoderTraining
    assert trained_module(["--config", "small.yaml", "--trains=diffusion"]) is Diffusion
    assert trained_module(["--trains", "diffusion", "--config=small.yaml"]) is AutoencoderTraining
    assert trained_module(["--config", "nowhere.yaml"]) is Diffusion
    assert cli.train(["--config", "small.yaml", "--trains", "diffusion"]) == 2
    assert cli.train(["--config", "small.yaml", "--trains", "cats"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "trains is 'cats'; allowed are diffusion, autoencoder" in errors[1]


def test_bad_settings_are_refused():
    blocks = {"block_out_channels": [8, 16]}
    for wrong in ({"colours": 3}, {**SMALL, "in_channels": 1}, {**SMALL, "out_channels": 1}, blocks):
        with pytest.raises(ValueError, match="does not describe an AutoencoderKL"):
            AutoencoderTraining(wrong, image_size=16)
    with pytest.raises(ValueError, match="needs a multiple of 2"):
        AutoencoderTraining(SMALL, image_size=17)
    with pytest.raises(ValueError, match="kl_weight is -1"):
        AutoencoderTraining(SMALL, kl_weight=-1, image_size=16)
    with pytest.raises(ValueError, match="nowhere"):
        AutoencoderTraining(SMALL, perceptual="nowhere", image_size=16).configure_model()
    module = AutoencoderTraining(SMALL, image_size=16)
    module.configure_model()
    with pytest.raises(ValueError, match="trains other layers"):
        module.on_load_checkpoint({"rad": {}, "state_dict": {}})
    assert math.isfinite(module.scaling_factor(torch.zeros(1, 3, 16, 16)))


@pytest.mark.parametrize("hook", ["on_fit_start", "on_validation_start"])
def test_the_feature_network_follows_the_module_to_its_device(monkeypatch, hook):
    """The Trainer moves the module between `configure_model` and these hooks."""
    devices = []
    monkeypatch.setattr("rad.evaluation.features.feature_net", lambda path, device: devices.append(device.type))
    module = AutoencoderTraining(SMALL, image_size=16, perceptual=str(FEATURES))
    module.configure_model()
    module._trainer = SimpleNamespace(optimizers=[])
    module.to("meta")
    getattr(module, hook)()
    getattr(module, hook)()
    assert devices == ["cpu", "meta"]
