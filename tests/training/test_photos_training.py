"""Models trained as RAD from scratch: v-prediction, timestep weights, unconditional samples, several averages, bf16, compile."""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import instantiate_module
from PIL import Image

from rad.cli.train.run import fit as training_fit
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.losses import hybrid_loss, snr_weight
from rad.diffusion.processes import Flow, RegionAware, Uniform
from rad.diffusion.schedules import linear_betas, shifted_sigmas
from rad.inpainting.inpainter import Inpainter
from rad.models.adapter import AdapterInfo
from rad.models.base import load_base
from rad.models.lora import LoRA
from rad.training.batches import choose_holes
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA, averaged
from rad.training.execution import Execution
from rad.training.panel import Panel
from rad.training.schedules import Schedule
from rad.training.settings import Scratch, TrainingLoss, TrainingProcess
from tests.training.test_module import UNET, adamw, batch, configured, data, fit

ROOT = Path(__file__).resolve().parents[2]
V_UNET = {**UNET, "out_channels": 3}


def scratch(**options):
    settings = {
        "scratch": Scratch(V_UNET, prediction="v_prediction"),
        "image_size": 16,
        "process": TrainingProcess(phase2=0.0, unconditional_share=0.25),
        "loss": TrainingLoss(region="noisy", vlb_weight=0.0),
        "optimizer": adamw(1e-3),
    }
    return configured(**settings | options)


def test_a_model_trained_as_rad_from_scratch_is_saved_sampled_and_adapted(world, tmp_path):
    fit(tmp_path, scratch(), data(world), 10, callbacks=[EMA(decay=0.5, suffix="ema_short")])
    folder = tmp_path / "checkpoints" / "step=10-ema"
    loaded, info = load_base(folder), AdapterInfo.read(folder)
    assert (loaded.prediction_type, loaded.unet.config["out_channels"]) == ("v_prediction", 3)
    assert (info.unconditional, info.learned_variance, info.process) == (True, False, "region_aware")
    assert (folder.with_name("step=10-ema_short") / "unet").is_dir()

    inpainter = Inpainter.from_pretrained(folder)
    image, mask = Image.new("RGB", (16, 16), "teal"), Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    for method in ("rad", "ddnm"):
        found = inpainter(image, mask, method=method, steps=3)
        assert found.nfe == 3
        assert found.images[0].getpixel((0, 0)) == image.getpixel((0, 0))

    adapter = Diffusion(base=str(folder), image_size=16, lora=LoRA(rank=2), loss=TrainingLoss(vlb_weight=0.0))
    adapted, _ = fit(tmp_path / "lora", adapter, data(world), 10)
    assert adapted.global_step == 10
    assert Inpainter.from_pretrained(tmp_path / "lora/checkpoints/step=10")(image, mask, steps=2).nfe == 2


def test_whole_weights_trained_without_unconditional_samples_are_no_base_model(world, tmp_path):
    fit(tmp_path, scratch(process=TrainingProcess(phase2=0.0)), data(world), 10)
    inpainter = Inpainter.from_pretrained(tmp_path / "checkpoints" / "step=10")
    with pytest.raises(ValueError, match="unconditional_share"):
        inpainter.sampler("ddnm")


def test_a_uniform_level_is_the_unconditional_model():
    """An all-hole image under the region-aware process is the same input as a uniform level."""
    module = scratch().eval()
    with torch.no_grad():  # the last layer starts at zero
        module.model.network.conv_out.weight.normal_(generator=torch.Generator().manual_seed(0))
    module = module.double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t, hole = torch.tensor([10, 700]), torch.ones(2, 1, 16, 16)
    regions = module.task(x, hole).regions
    uniform, aware = Uniform(linear_betas()).noise(t), RegionAware(linear_betas()).noise(t, regions)
    expected = module.model.network(x, uniform.timesteps).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(
        module.model.network(x, aware.timesteps, index=aware.index).sample, expected, rtol=0, atol=1e-9
    )


def test_the_share_of_unconditional_samples_is_the_one_asked_for():
    module, count = scratch(), 800

    def holes(positions):
        empty = torch.zeros(len(positions), 1, 16, 16)
        draws = module.draws("train", with_holes=False).batch(positions.tolist(), (16, 16))
        return choose_holes({"image": empty, "hole": empty}, draws, module.process)

    drawn = holes(torch.arange(count))
    assert set(drawn.flatten(1).sum(1).tolist()) == {0.0, 256.0}
    assert abs(float(drawn.mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)
    assert torch.equal(holes(torch.arange(5, 9)), drawn[5:9])


def test_v_loss_is_the_error_of_x0_times_snr_plus_one():
    """v_hat = a e - s x0_hat ... an error d of x0 is an error -d / s of v, since x = a x0 + s e is given."""
    now = Uniform(linear_betas()).noise(torch.tensor([50, 400, 900]))
    previous = Uniform(linear_betas()).noise(torch.tensor([49, 399, 899]))
    source = torch.Generator().manual_seed(0)
    x0, eps, wrong = (torch.randn(3, 3, 4, 4, generator=source, dtype=torch.float64) for _ in range(3))
    x = now.alpha_map() * x0 + now.sigma_map() * eps
    guess_eps = (x - now.alpha_map() * wrong) / now.sigma_map()
    outputs = {"epsilon": guess_eps, "v_prediction": now.alpha_map() * guess_eps - now.sigma_map() * wrong}
    error = (wrong - x0).square().mean((1, 2, 3))
    snr = (now.alpha / now.sigma).square()[:, 0]
    factors = {"epsilon": snr, "v_prediction": snr + 1}
    for prediction, output in outputs.items():
        losses = hybrid_loss(output, x0=x0, x=x, eps=eps, now=now, previous=previous, prediction=prediction)
        torch.testing.assert_close(losses.simple, factors[prediction] * error)


@pytest.mark.parametrize(
    ("kind", "gamma", "expected"),
    [
        ("min_snr", None, lambda snr: min(snr, 5.0)),
        ("min_snr", 20.0, lambda snr: min(snr, 20.0)),
        ("truncated_snr", None, lambda snr: max(snr, 1.0)),
        ("p2", None, lambda snr: snr / (1 + snr)),
        ("p2", 0.5, lambda snr: snr / (1 + snr) ** 0.5),
        ("debiased", None, lambda snr: snr**0.5),
        ("edm", None, lambda snr: (1 / snr + 0.5**2) / (1 / snr * 0.5**2)),  # the paper's, with sigma^2 = 1 / SNR
    ],
)
def test_a_timestep_weight_gives_the_error_of_x0_its_factor_whatever_is_predicted(kind, gamma, expected):
    vp, flow = Uniform(linear_betas()), Flow(shifted_sigmas(1000))
    t = torch.tensor([0, 100, 250, 600, 999])
    source = torch.Generator().manual_seed(0)
    x0, eps, wrong = (torch.randn(5, 3, 4, 4, generator=source, dtype=torch.float64) for _ in range(3))
    for process, prediction in ((vp, "epsilon"), (vp, "v_prediction"), (flow, "velocity")):
        now, previous = process.noise(t), process.noise(t - 1)
        x = now.alpha_map() * x0 + now.sigma_map() * eps
        guess = (x - now.alpha_map() * wrong) / now.sigma_map()
        output = {
            "epsilon": guess,
            "v_prediction": now.alpha_map() * guess - now.sigma_map() * wrong,
            "velocity": guess - wrong,
        }[prediction]
        loss = TrainingLoss(timestep_weight=kind, gamma=gamma)
        losses = loss(output, x0=x0, x=x, eps=eps, now=now, previous=previous, prediction=prediction)
        snr = (now.alpha / now.sigma).square()[:, 0]
        factor = torch.tensor([expected(value) for value in snr.tolist()], dtype=torch.float64)
        torch.testing.assert_close(losses.simple, factor * (wrong - x0).square().mean((1, 2, 3)))


def test_a_clean_level_has_no_weight():
    level = NoiseLevel(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))
    for kind in ("min_snr", "truncated_snr", "p2", "debiased", "edm"):
        assert snr_weight(kind, level, "v_prediction").item() == 0


@pytest.mark.slow
def test_two_averages_are_kept_apart_through_a_resume(world, tmp_path):
    def run(folder, steps, resume=None):
        long = EMA(decay=0.99, inv_gamma=0.1, suffix="ema_long")
        _, first = fit(folder, scratch(), data(world), steps, resume=resume, callbacks=[long])
        return first, long

    whole = run(tmp_path / "whole", 20)
    run(tmp_path / "parts", 10)
    parts = run(tmp_path / "parts", 20, resume=str(tmp_path / "parts/checkpoints/step=10.ckpt"))
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert any(not torch.equal(whole[0].weights[name], whole[1].weights[name]) for name in whole[0].weights)


def test_each_average_is_exported_and_the_first_is_validated_and_shown(world, tmp_path, monkeypatch):
    long, seen = EMA(decay=0.99, inv_gamma=0.1, suffix="ema_long"), {}

    class Look(L.Callback):
        def on_validation_batch_start(self, trainer, pl_module, *args):
            seen["validation"] = pl_module.network.conv_out.weight.detach().clone()

    def image(self, trainer, module):
        with averaged(trainer, module):
            seen["panel"] = module.model.network.conv_out.weight.detach().clone()
        return torch.zeros(3, 8, 8)

    monkeypatch.setattr(Panel, "image", image)
    options = {"val_check_interval": 10, "check_val_every_n_epoch": None}
    callbacks = [long, Panel(every_n_steps=10), Look()]
    _, first = fit(tmp_path, scratch(), data(world), 10, callbacks=callbacks, **options)
    name = next(name for name in first.weights if name.endswith("conv_out.weight"))
    assert not torch.equal(first.weights[name], long.weights[name])
    for ema in (first, long):
        exported = load_base(tmp_path / "checkpoints" / f"step=10-{ema.suffix}").unet.conv_out.weight
        assert torch.equal(exported, ema.weights[name])
    assert torch.equal(seen["validation"], first.weights[name])
    assert torch.equal(seen["panel"], first.weights[name])


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_prediction(world, tmp_path):
    fit(tmp_path, scratch(), data(world), 10)
    other = scratch(scratch=Scratch(V_UNET))
    with pytest.raises(ValueError, match="belongs to"):
        fit(tmp_path, other, data(world), 20, resume=str(tmp_path / "checkpoints/step=10.ckpt"))


def test_zero_shot_methods_ignore_a_variance_that_was_not_trained(world, tmp_path):
    fit(tmp_path, scratch(scratch=Scratch(UNET)), data(world), 10)
    model = Inpainter.from_pretrained(tmp_path / "checkpoints" / "step=10").model
    level = model.base_process.noise(torch.tensor([500]))
    for adapter in (False, True):
        assert model.denoiser([], adapter=adapter).denoise(torch.zeros(1, 3, 16, 16), level).variance_fraction is None


def test_the_panel_is_a_png_file_of_the_run(world, tmp_path):
    fit(tmp_path, scratch(), data(world), 2, callbacks=[Panel(every_n_steps=2, images=2, steps=2)])
    with Image.open(tmp_path / "panels" / "step=2.png") as panel:
        assert panel.size == (3 * 18 + 2, 2 * 18 + 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrainingLoss(timestep_weight="p2", weight_limit=5.0), "remove one of them"),
        (lambda: TrainingLoss(timestep_weight="snr"), "allowed are none, min_snr"),
        (lambda: TrainingLoss(timestep_weight="debiased", gamma=5.0), "has none: remove it, or use min_snr or p2"),
        (lambda: TrainingLoss(timestep_weight="min_snr", gamma=0.0), "loss.gamma is 0.0; allowed"),
        (lambda: TrainingProcess(noise_offset=-0.1), "noise_offset is -0.1"),
        (lambda: TrainingProcess(unconditional_share=1.5), "fractions from 0 to 1"),
        (lambda: TrainingProcess("uniform", unconditional_share=0.25), "remove it"),
        (lambda: TrainingProcess(time_origin="official", unconditional_share=0.25), "remove unconditional_share"),
        (lambda: TrainingProcess("rad"), "allowed are region_aware, tdpaint, uniform"),
        (lambda: Schedule("wsd"), "allowed are constant"),
        (lambda: Schedule(decay_share=0.0), "above 0"),
        (lambda: Schedule(warmup_steps=-1), "warmup_steps is -1"),
        (lambda: Scratch(UNET, prediction="velocity"), "allowed are epsilon, v_prediction"),
        (lambda: scratch(scratch=Scratch(UNET, prediction="v_prediction")), "output channels"),
        (lambda: scratch(loss=TrainingLoss(weight_limit=15)), r"weight_limit is 15"),
    ],
)
def test_settings_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_averages_of_one_name_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [f"--data.path={world / 'images'}", f"--model.base={world / 'base'}", "--data.size=16"]
    averages = '[{"class_path": "rad.training.EMA"}, {"class_path": "rad.training.EMA"}]'
    with pytest.raises(ValueError, match="give each its own"):
        training_fit([*given, f"--trainer.callbacks={averages}", "--trainer.max_steps=1"])


def test_bf16_follows_float32(world):
    """The loss in bfloat16 is that in float32 to the 8 bits of its mantissa, and its gradients point the same way."""
    losses, gradients = [], []
    for precision in (torch.float32, torch.bfloat16):
        module = scratch()
        with torch.no_grad():
            module.model.network.conv_out.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            loss = module.losses({**batch(), "hole": torch.ones(4, 1, 16, 16)}, "train")[0].total.mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in module.model.network.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=2**-5)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.slow
def test_torch_compile_gives_the_eager_loss_and_gradients():
    unet = V_UNET | {
        "block_out_channels": (32,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    results = []
    for compiled in (False, True):
        module = scratch(scratch=Scratch(unet, prediction="v_prediction"), execution=Execution(compile=compiled))
        with torch.no_grad():
            module.model.network.conv_out.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        loss = module.losses({**batch(), "hole": torch.ones(4, 1, 16, 16)}, "train")[0].total.mean()
        loss.backward()
        gradients = [p.grad.flatten() for p in module.model.network.parameters() if p.grad is not None]
        results.append((loss.item(), torch.cat(gradients)))
    (eager, expected), (fused, found) = results
    assert fused == pytest.approx(eager, rel=1e-4)
    assert (found - expected).norm() < 1e-3 * expected.norm()  # float32 in another order; a wrong term is of order 1


@pytest.mark.slow
def test_the_configuration_matches_its_comments():
    """3.16 M parameters, and the levels of the trial: known pixels clean, the hole at t."""
    config = yaml.safe_load((ROOT / "configs/photos.yaml").read_text())["model"]
    module = instantiate_module(Diffusion, {**config, "image_size": 32})
    module.configure_model()
    assert sum(p.numel() for p in module.model.network.parameters()) == 3_161_955
    assert (module.model.prediction, module.model.network.config["out_channels"]) == ("v_prediction", 3)
    hole = torch.zeros(1, 1, 32, 32)
    hole[..., 16:] = 1
    now = module.noise_process.noise(torch.tensor([600]), module.task(torch.zeros(1, 3, 32, 32), hole).regions)
    assert now.timesteps.tolist() == [[0.0, pytest.approx(600.0)]]
    assert now.sigma[0, 0] == 0
