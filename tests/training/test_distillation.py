"""Adversarial distillation: the sampler that is trained, the signs of its losses, gradients, resume, and the exported model."""

import pytest
import torch

from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import RegionAware
from rad.diffusion.schedules import linear_betas
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.inpainter import Inpainter
from rad.models.adapter import AdapterInfo, save_adapter
from rad.models.base import save_base
from rad.models.lora import LoRA, trainable
from rad.models.settings.preferred import Preferred
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from rad.training.diffusion import Diffusion
from rad.training.distillation import Critic, Distillation, Views, feature_loss
from rad.training.execution import Execution
from rad.training.logs.curves import Curves
from rad.training.settings import Scratch, TrainingLoss, TrainingProcess
from rad.training.timesteps import TimestepDensity
from tests.conftest import box_hole, random_image
from tests.rounding import assert_same, doubled
from tests.tiny_networks import small_unet
from tests.training.test_module import UNET, adamw, configured, data, fit

HOLE = box_hole(16, 16, 2, 3, 12, 14)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "base"
    save_base(folder, small_unet(outputs=3), betas=linear_betas(), prediction_type="v_prediction", half=False)
    return folder


def distilled(base, **options):
    settings = {
        "base": str(base),
        "image_size": 16,
        "process": TrainingProcess(phase2=0.0),
        "loss": TrainingLoss(region="noisy", vlb_weight=0.0),
        "optimizer": adamw(1e-3),
        "distillation": Distillation(),
    }
    return configured(**settings | options)


def batch(rows=4):
    image = 2 * torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    return {"image": image, "position": torch.arange(rows), "hole": HOLE.expand(rows, 1, 16, 16).clone()}


def result(module, x0, eps):
    regions, denoiser = NoiseRegions.binary(batch()["hole"]), module.denoiser([""] * len(x0))
    return module.distillation.result(x0, eps, regions, process=module.sampling_process, denoiser=denoiser)


def critic_of(module):
    assert module.critic is not None
    return module.critic


def gradients(module, loss):
    module.zero_grad(set_to_none=True)
    loss.backward()
    heads = {id(weight) for weight in critic_of(module).heads.parameters()}
    found = {name: weight.grad for name, weight in trainable(module).items()}
    critic = [found[name] for name, weight in trainable(module).items() if id(weight) in heads]
    network = [found[name] for name, weight in trainable(module).items() if id(weight) not in heads]
    return network, critic


def test_the_levels_and_the_preferred_settings_are_those_of_trailing_ddim():
    assert Distillation().levels(RegionAware(linear_betas())) == [999, 749, 499, 249, -1]
    before = Preferred(
        steps=10, solver="dpm++2m", spacing="logsnr", average=3, thin_steps=1, size_policy="pyramid", size=96
    )
    for steps in (2, 3, 4, 5, 7):
        after = Distillation(steps=steps).sampling(before)
        assert (after.steps, after.solver, after.spacing, after.thin_steps) == (steps, "ddim", "trailing", 1)
        assert (after.average, after.size_policy, after.size) == (None, "pyramid", 96)
        assert Pyramid.chosen(after).sampler_steps == steps  # the levels of finer scales are among the trained ones
    assert Distillation(steps=3).sampling(Preferred()) == Preferred(steps=3, solver="ddim", spacing="trailing")


class Fixed:
    def __init__(self, noise):
        self.noise = noise

    def randn(self, number, shape):
        return self.noise


def test_the_trained_result_is_that_of_the_sampler(base):
    module = distilled(base)
    doubled(module.model.network)
    x0, eps = batch()["image"].double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    found = result(module, x0, eps)
    sampler = Sampler(module.sampling_process, steps=4, solver="ddim", spacing="trailing")
    task = Task.from_image(x0, batch()["hole"].double())
    expected = sampler(module.denoiser([""] * 4), task, noise=Fixed(eps)).image
    assert_same(torch.where(batch()["hole"] > 0, found, x0).detach(), expected)


def test_soft_holes_are_those_of_the_sampler(base):
    module = distilled(base)
    doubled(module.model.network)
    soft = torch.where(HOLE > 0, 0.5, 0.0).double().expand(4, 1, 16, 16)
    x0, eps = batch()["image"].double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    denoiser = module.denoiser([""] * 4)
    task = Task.from_image(x0, soft)
    found = module.distillation.result(x0, eps, task.regions, process=module.sampling_process, denoiser=denoiser)
    sampler = Sampler(module.sampling_process, steps=4, solver="ddim", spacing="trailing")
    expected = sampler(denoiser, task, noise=Fixed(eps)).image
    assert_same(torch.where(soft > 0, found, x0).detach(), expected)


@pytest.mark.parametrize("name", ["critic", "adversarial", "features"])
def test_each_loss_moves_its_own_weights_alone(base, name):
    module = distilled(base)
    critic, x0, hole = critic_of(module), batch()["image"], batch()["hole"]
    regions = NoiseRegions.binary(hole)
    level = module.noise_process.noise(torch.tensor([20] * 4), regions)
    fake = critic.features(result(module, x0, torch.randn_like(x0)), level)
    real = critic.features(x0, level)
    losses = {
        "critic": lambda: critic.critic_loss(real, fake, hole),
        "adversarial": lambda: critic.adversarial_loss(fake, hole),
        "features": lambda: feature_loss(real, fake, hole),
    }
    network, heads = gradients(module, losses[name]().sum())
    moved, still = (heads, network) if name == "critic" else (network, heads)
    # Biases of attention keys, for one, have no effect.
    assert all(grad is not None and (grad.abs().sum() > 0 or grad.ndim == 1) for grad in moved)
    assert all(grad is None for grad in still)


def test_the_critic_learns_to_tell_photographs_from_results(base):
    critic = Critic(distilled(base).model.network, seed=0)
    process, hole = RegionAware(linear_betas()), batch()["hole"]
    level = process.noise(torch.tensor([10] * 4), NoiseRegions.binary(hole))
    photographs, results = batch()["image"], torch.zeros(4, 3, 16, 16)
    real, fake = critic.features(photographs, level), critic.features(results, level)
    optimizer = torch.optim.Adam(critic.heads.parameters(), lr=1e-2)
    before = critic.critic_loss(real, fake, hole).mean().item()
    for _ in range(30):
        optimizer.zero_grad()
        critic.critic_loss(real, fake, hole).mean().backward()
        optimizer.step()
    assert critic.critic_loss(real, fake, hole).mean() < 0.3 < 1.5 < before
    # The network lowers its loss by results that the critic takes for photographs.
    assert critic.adversarial_loss(real, hole).mean() < 0 < critic.adversarial_loss(fake, hole).mean()


def test_losses_count_the_hole_alone():
    real = [torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))]
    hole = box_hole(16, 16, 4, 4, 12, 12).view(1, 1, 16, 16)
    outside = [real[0] + 3 * (1 - hole)]
    inside = [real[0] + 2 * hole]
    assert feature_loss(real, outside, hole).item() == 0
    variance = real[0].var((2, 3)).mean() + 1e-2
    assert feature_loss(real, inside, hole).item() == pytest.approx(4 / variance.item(), rel=1e-5)
    assert feature_loss(real, inside, torch.zeros_like(hole)).item() == 0


def test_the_loss_does_not_depend_on_how_the_batch_is_split(base):
    module = distilled(base, distillation=Distillation(denoising_share=0.5)).eval()
    doubled(module.model.network)
    together = module.losses(batch(), "train")[0]
    parts = [
        module.losses({name: values[rows] for name, values in batch().items()}, "train")[0]
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert_same(together.total, torch.cat([part.total for part in parts]))
    # The curve of the texture is a ratio of sums, also over several batches.
    curves = []
    for batches in ([together], parts):
        curves.append(Curves())
        for part in batches:
            curves[-1].add("texture", part.curves["texture"][0], over=part.curves["texture"][1])
    assert curves[0].take(lambda totals: totals)["texture"] == pytest.approx(
        curves[1].take(lambda totals: totals)["texture"], rel=1e-9
    )


def test_the_denoising_share_does_not_change_the_mean(base):
    views = Views.draw(range(4000), 0, torch.zeros(4000, 1, 1, 1))
    assert (views.share < 0.25).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(Views.draw([7], 0, torch.zeros(1, 1, 1, 1)).noise[0], views.noise[7])

    module, x0, regions = distilled(base), batch()["image"], NoiseRegions.binary(batch()["hole"])
    views = Views.draw(range(4), 0, x0)

    def denoising(share):
        return Distillation(denoising_share=share).losses(
            critic_of(module), x0, views.other, torch.tensor([0, 300, 600, 999]), regions, views,
            process=module.sampling_process, denoiser=module.denoiser([""] * 4),
            denoising=lambda x0, eps, t, regions: module.compute_losses(x0, eps, t, regions, {}).simple,
        ).curves["denoising"][0].detach()  # fmt: skip

    chosen = views.share < 0.4
    assert chosen.any()
    assert not chosen.all()
    assert_same(denoising(0.4), torch.where(chosen, denoising(1.0) / 0.4, 0.0))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_last_call_gets_a_gradient_in_every_layer(base, precision):
    """Autocast keeps the casts of weights, also those made without gradient for the calls before."""
    module = distilled(base, distillation=Distillation(denoising=0.0))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = module.losses(batch(), "train")[0].total.mean()
    network, heads = gradients(module, loss)
    assert all(grad is not None and (grad.abs().sum() > 0 or grad.ndim == 1) for grad in (*network, *heads))


def test_the_critic_has_its_own_weights_and_rate(base):
    module = distilled(base, distillation=Distillation(critic_rate=3.0))
    network, critic = module.weight_groups()
    assert critic["lr"] == pytest.approx(3e-3)
    assert "lr" not in network
    heads = [id(weight) for weight in critic_of(module).heads.parameters()]
    assert [id(weight) for weight in critic["params"]] == heads
    assert len(network["params"]) == len(module.trained) - len(heads)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_and_exports_a_model_of_four_calls(world, base, tmp_path):
    whole = distilled(base)
    options = {"callbacks": [], "limit_val_batches": 1}
    fit(tmp_path / "whole", whole, data(world), 20, **options)
    resumed = distilled(base)
    ckpt = tmp_path / "whole" / "checkpoints" / "step=10.ckpt"
    trainer, _ = fit(tmp_path / "resumed", resumed, data(world), 20, resume=str(ckpt), **options)
    for name, weight in trainable(whole).items():
        assert torch.equal(weight, trainable(resumed)[name]), name
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates[1] == pytest.approx(5 * rates[0])

    changed = distilled(base, optimizer=adamw(2e-3), distillation=Distillation(critic_rate=3.0))
    trainer, _ = fit(tmp_path / "changed", changed, data(world), 12, resume=str(ckpt), **options)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([2e-3, 6e-3])

    folder = tmp_path / "whole" / "checkpoints" / "step=20-ema"
    info = AdapterInfo.read(folder)
    assert (info.sampling.steps, info.sampling.solver, info.sampling.spacing) == (4, "ddim", "trailing")
    assert not info.unconditional
    found = Inpainter.from_pretrained(folder)(random_image(16, 16), HOLE)
    assert found.nfe == 4


def test_an_adapter_is_distilled_too(base):
    module = distilled(base, lora=LoRA(rank=2))
    before = {name: weight.clone() for name, weight in critic_of(module).frozen.named_parameters()}
    network, _ = gradients(module, module.losses(batch(), "train")[0].total.mean())
    assert any(grad is not None and grad.abs().sum() > 0 for grad in network)
    assert all(torch.equal(weight, before[name]) for name, weight in critic_of(module).frozen.named_parameters())
    assert not any("lora" in name for name in before)


def test_the_critic_of_an_adapter_that_is_trained_further_is_the_network_with_it(base, tmp_path):
    first = distilled(base, lora=LoRA(rank=2))
    with torch.no_grad():
        for name, weight in first.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    save_adapter(first.network, tmp_path, first.adapter_info(ema=False), card="")
    critic, level = critic_of(distilled(base, adapter=str(tmp_path))), batch()["image"]
    plain = critic_of(distilled(base, lora=LoRA(rank=2)))
    t = first.noise_process.noise(torch.tensor([20] * 4), NoiseRegions.binary(batch()["hole"]))
    assert not any("lora" in name for name, _ in critic.frozen.named_parameters())
    assert (critic.features(level, t)[0] - plain.features(level, t)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, "2 or more"),
        ({"adversarial": -1.0}, "at least 0"),
        ({"features": float("nan")}, "at least 0"),
        ({"denoising_share": 0.0}, "above 0, up to 1"),
        ({"view_noise": 1.5}, "above 0, up to 1"),
        ({"critic_rate": 0.0}, "above 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**settings)


def test_models_that_cannot_be_distilled_are_refused(base):
    with pytest.raises(ValueError, match="phase2"):
        Diffusion(str(base), distillation=Distillation())
    with pytest.raises(ValueError, match="a trained model"):
        Diffusion(scratch=Scratch(UNET), process=TrainingProcess(phase2=0.0), distillation=Distillation())
    for settings in (
        {"execution": Execution(shard_optimizer=True)},
        {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1)},
    ):
        with pytest.raises(ValueError, match="two learning rates"):
            distilled(base, **settings)
    with pytest.raises(ValueError, match="has no effect on model"):
        distilled(base, execution=Execution(compile=True))
    for settings in ({"noise_offset": 0.1}, {"density": TimestepDensity("logit_normal")}):
        with pytest.raises(ValueError, match="the noise of its sampler"):
            distilled(base, process=TrainingProcess(phase2=0.0, **settings))
    with pytest.raises(ValueError, match="dropout of the adapter"):
        distilled(base, lora=LoRA(rank=2, dropout=0.1))
    with pytest.raises(ValueError, match="UNet2DModel"):
        Critic(torch.nn.Linear(1, 1), seed=0)
