"""A training step never waits for an accelerator: no value goes to the host, and none comes from its ordinary memory."""

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_waits import count_graphs, count_synchronisations, mark_all
from benchmarks.gpu_work import Options, Setting, TrainingStep
from rad.models.lora import LoRA
from rad.training.diffusion import Diffusion
from tests.tiny_pipelines import write_pipeline


@pytest.fixture(scope="module", params=["pixels", "latents"])
def step(request, tmp_path_factory):
    setting = Setting("nature32", 32, 3, "cpu", gpu.TINY)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        step = TrainingStep(setting, setting.network(), "float32", Options(fused=True))
    if request.param == "latents":
        folder = tmp_path_factory.mktemp("latent")
        write_pipeline(folder, "latent")
        module = Diffusion(str(folder), image_size=16, lora=LoRA(rank=2))
        module.configure_model()
        step.prepare(module, fused=True)
    return step


@pytest.mark.spread(2)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_step_never_waits(step, accumulate):
    step.step()
    batches = []
    for _ in range(accumulate):
        batches.append(step.batch())
        step.steps += 1
    for batch in batches:
        mark_all(batch["image"], batch["draws"])
    mark_all(step.module, step.optimizer, step.ema.weights)
    before = [weight.detach().clone() for weight in step.weights.values()]
    counts = count_synchronisations(lambda: step.optimise(*batches), "cpu", before=1)
    assert dict(counts) == {}
    assert any(not torch.equal(a, b) for a, b in zip(before, step.weights.values(), strict=True))


def test_the_steps_of_other_optimisers_wait_for_one_check():
    setting = Setting("nature32", 32, 3, "cpu", gpu.TINY)
    step = TrainingStep(setting, setting.network(), "float32", Options())
    step.step()
    batch = step.batch()
    mark_all(batch["image"], batch["draws"], step.module, step.optimizer, step.ema.weights)
    counts = count_synchronisations(lambda: step.optimise(batch), "cpu", before=1)
    ((kind, place),) = counts
    assert (kind, counts.total()) == ("read", 1)
    assert "guards.py" in place


@pytest.mark.slow
def test_noising_network_and_loss_are_one_graph(step):
    graphs, reasons = count_graphs(step.module.losses, step.batch(), "train")
    assert (graphs, reasons) == (1, [])
    expected = step.module.losses(step.batch(), "train")[0].total
    plain, step.module.compiled_losses = (
        step.module.compiled_losses,
        torch.compile(step.module.compute_losses, backend="eager", fullgraph=True),
    )
    found = step.module.losses(step.batch(), "train")[0].total
    step.module.compiled_losses = plain
    assert torch.equal(found, expected)
