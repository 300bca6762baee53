"""How the network runs: memory format, dtype of the frozen base, precision of matrix products."""

from contextlib import nullcontext

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from rad.inpainting.inpainter import Inpainter
from rad.models.adapter import AdapterInfo
from rad.models.lora import LoRA, trainable
from rad.training.diffusion import Diffusion
from rad.training.execution import Execution
from tests.training.test_module import adamw, batch, data, fit, module


def test_channels_last_includes_the_adapter_and_the_input(world):
    model = module(world, execution=Execution(channels_last=True))
    convolutions = [layer for layer in model.network.modules() if isinstance(layer, nn.Conv2d)]
    lora = [layer.lora_A["default"] for layer in model.network.modules() if isinstance(layer, LoraLayer)]
    assert any(layer in convolutions for layer in lora)
    for layer in convolutions:
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    inputs = []
    model.model.network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.losses(batch(), "train")
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert not inputs[0].is_contiguous()


def test_a_base_in_bfloat16_trains_the_same_adapter_in_float32(world, tmp_path):
    plain, half = module(world), module(world, execution=Execution(base_dtype="bfloat16"))
    assert plain.model.hash == half.model.hash
    trained = trainable(half)
    assert trained.keys() == trainable(plain).keys()
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    layers = [layer for layer in half.network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    frozen = {layer.weight.dtype for layer in layers if not layer.weight.requires_grad}
    assert frozen == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = plain.losses(batch(), "train")[0].simple
    with torch.no_grad():
        found = half.losses(batch(), "train")[0].simple
    assert torch.equal(found, expected), "autocast rounds the same weights"
    fit(tmp_path, half, data(world), 2)
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in trained.values())
    folder = tmp_path / "checkpoints" / "step=2"
    assert AdapterInfo.read(folder).base_hash == plain.model.hash
    adapted = Inpainter.from_pretrained(folder).model.adapted
    assert {weight.dtype for weight in adapted.parameters()} == {torch.float32}


@pytest.mark.parametrize("fails", [False, True])
def test_the_precision_of_matrix_products_is_that_of_the_run(world, tmp_path, fails):
    class Watched(Diffusion):
        def training_step(self, batch, batch_idx):
            seen.append(torch.get_float32_matmul_precision())
            if fails:
                raise RuntimeError("the step fails")
            return super().training_step(batch, batch_idx)

    seen, before = [], torch.get_float32_matmul_precision()
    model = Watched(
        str(world / "base"),
        image_size=16,
        lora=LoRA(rank=2),
        optimizer=adamw(1e-3),
        execution=Execution(matmul_precision="medium"),
    )
    with pytest.raises(RuntimeError, match="the step fails") if fails else nullcontext():
        fit(tmp_path, model, data(world), 2)
    assert before != "medium"
    assert set(seen) == {"medium"}
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_dtype": "float16"}, "base_dtype is 'float16'"),
        ({"compile": "fastest"}, "compile is 'fastest'"),
        ({"matmul_precision": "low"}, "matmul_precision is 'low'"),
        ({"dynamic": True}, "no effect without execution.compile"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Execution(**settings)


def test_a_base_dtype_needs_frozen_weights():
    with pytest.raises(ValueError, match="base_dtype is 'bfloat16', which is for frozen weights"):
        Diffusion("base", execution=Execution(base_dtype="bfloat16"))


def test_compilation_takes_the_mode_and_the_sizes(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: calls.append(options) or function)
    for choice, mode in ((True, "default"), ("max-autotune", "max-autotune")):
        Execution(compile=choice, dynamic=True).compiled(len)
        assert calls.pop() == {"mode": mode, "dynamic": True}
    assert Execution().compiled(len) is len
    assert not calls
