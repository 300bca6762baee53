"""Weights in half precision: their average moves in float32, is exported as such, and the run warns about the rest."""

import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rad.data.module import ImageDataModule
from rad.diffusion.denoiser import UNetDenoiser
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.models.lora import LoRA, trainable
from rad.rng import KeyedNoise
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA, replaced
from rad.training.execution import Execution
from rad.training.inpainting.sampling import choose_sampler, inpaint
from tests.conftest import SIZE, random_image


class Weight(L.LightningModule):
    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.register_buffer("count", torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_average_in_closed_form(dtype):
    """From 0 towards 1 with decay d: 1 - d^n after n steps; in bfloat16 it would stop at the first step's half ulp."""
    module, ema = Weight(dtype), EMA(decay=0.999, inv_gamma=1e-9)
    ema.on_fit_start(SimpleNamespace(optimizers=[]), module)
    module.weight.data.fill_(1)
    for step in range(1, 1001):
        ema.update(module, step)
    average = ema.weights["weight"]
    assert average.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert average.double().mean().item() == pytest.approx(1 - 0.999**1000, rel=1e-3)
    assert ema.weights.keys() == {"weight"}, "buffers are not averaged"


def test_an_average_of_an_earlier_version_becomes_wide():
    module, ema = Weight(torch.bfloat16), EMA()
    ema.load_state_dict({"step": 5, "weights": {"weight": torch.ones(3, dtype=torch.bfloat16)}})
    ema.on_fit_start(SimpleNamespace(optimizers=[]), module)
    assert ema.weights["weight"].dtype == torch.float32


def test_replaced_weights_keep_their_dtype_and_the_parameters_come_back():
    module = Weight(torch.bfloat16)
    before, third = module.weight, torch.full((3,), 1 / 3)
    with replaced(module, {"weight": third}):
        assert torch.equal(module.weight, third)
        assert trainable(module).keys() == {"weight"}
    assert module.weight is before
    with pytest.raises(AttributeError), replaced(module, {"wait": third}):
        pass


def test_a_run_in_bfloat16_exports_its_average_in_float32(base, tmp_path):
    for number in range(4):
        random_image(SIZE, SIZE, seed=number).save(tmp_path / f"{number}.png")
    model, ema = Diffusion(base=str(base), image_size=SIZE, lora=LoRA(rank=2)), EMA()
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        precision="bf16-true",
        use_distributed_sampler=False,
        callbacks=[ema, Checkpoint()],
        logger=False,
        default_root_dir=str(tmp_path),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.warns(UserWarning, match="bf16-true .* use bf16-mixed"):
        trainer.fit(model, ImageDataModule(str(tmp_path), size=SIZE, batch_size=2, val_count=1))
    assert {weight.dtype for weight in trainable(model).values()} == {torch.bfloat16}
    exported = load_file(tmp_path / "checkpoints" / "step=2-ema" / "adapter_model.safetensors")
    averages = sorted(float(w.double().norm()) for w in ema.weights.values())
    assert sorted(float(w.double().norm()) for w in exported.values()) == averages
    rounded = sum(not torch.equal(w, w.bfloat16().float()) for w in exported.values())
    assert rounded > len(exported) / 3, "values that bfloat16 cannot hold"
    last = load_file(tmp_path / "checkpoints" / "step=2" / "adapter_model.safetensors")
    assert {w.dtype for w in last.values()} == {torch.float32}


def test_a_frozen_base_in_bfloat16_is_sampled_in_the_dtype_of_the_adapter(base):
    """As in training: images and timesteps are float32, and autocast rounds within the network."""
    model = Diffusion(base=str(base), image_size=SIZE, lora=LoRA(rank=2), execution=Execution(base_dtype="bfloat16"))
    model.configure_model()
    assert next(model.network.parameters()).dtype == torch.bfloat16
    seen = []
    model.model.network.register_forward_pre_hook(lambda _, words: seen.extend(words))
    image = torch.zeros(1, 3, SIZE, SIZE)
    sampler = choose_sampler(model, steps=3, solver="ddim", spacing="trailing", eta=None)
    with KeyedNoise(0, [0]) as noise:
        inpaint(model, sampler, image, torch.ones(1, 1, SIZE, SIZE), [""], noise=noise)
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    assert 999 in seen[1]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_a_denoiser_does_not_round_timesteps(dtype, expected):
    seen = []

    def network(x, times, *, index):
        seen.append(times)
        return SimpleNamespace(sample=x)

    level = Uniform(linear_betas()).noise(torch.tensor([999]))
    estimate = UNetDenoiser(network).denoise(torch.zeros(1, 3, 2, 2, dtype=dtype), level)
    assert (seen[0].dtype, seen[0].item(), estimate.x0.dtype) == (expected, 999, dtype)


def test_timesteps_are_not_rounded_to_the_dtype_of_the_weights(base):
    """bfloat16 has 8 bits: of 0..999 it holds fewer than half of the numbers."""
    model = Diffusion(base=str(base), image_size=SIZE, lora=LoRA(rank=2), seed=1)
    model.configure_model()
    seen = []
    hook = lambda network, words, named: seen.append(named["timestep"])  # noqa: E731
    model.network.to(torch.bfloat16).register_forward_pre_hook(hook, with_kwargs=True)
    batch = {"image": torch.zeros(16, 3, SIZE, SIZE, dtype=torch.bfloat16), "position": torch.arange(16)}
    torch.set_default_dtype(torch.bfloat16)
    try:
        model.losses(batch, "train")
    finally:
        torch.set_default_dtype(torch.float32)
    (times,) = seen
    assert times.dtype == torch.float32
    assert not torch.equal(times, times.bfloat16().float())
    assert math.isfinite(times.sum().item())
