"""Calls of one inpainter from several threads equal calls one after another, bit for bit."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from rad.inpainting.inpainter import Inpainter
from rad.methods.blended_latent import BlendedLatent
from rad.models.loaded_model import PLAIN, Condition
from rad.models.weights import weights_hash
from tests.conftest import SIZE, box_hole, random_image
from tests.tiny_pipelines import write_pipeline

IMAGE, HOLE = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 12)
BLEND = BlendedLatent(reconstruct="weights", iterations=2)


@pytest.fixture(scope="module")
def inpainters(models, tmp_path_factory):
    """Of the adapter on pixels, with gradient checkpointing, and of a text-to-image model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rad.models.loaded_model.CHECKPOINTED_SIZE", SIZE)
        pixels = Inpainter.from_pretrained(models / "adapter")
    assert pixels.model.network.is_gradient_checkpointing
    text = Inpainter.from_pretrained(write_pipeline(tmp_path_factory.mktemp("stable"), "stable"))
    return {"pixels": pixels, "text": text}


def fill(inpainter, method, seed):
    condition = PLAIN if inpainter.model.text is None else Condition("a boat", guidance=2.0)
    if seed % 2 and inpainter.model.text is not None:
        condition = replace(condition, prompt=f"a red house {seed}")
    result = inpainter(IMAGE, HOLE, method=method, steps=3, seed=seed, condition=condition)
    return np.asarray(result.images[0]).tobytes()


def in_threads(inpainter, calls):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda call: fill(inpainter, *call), calls))


def in_asyncio(inpainter, calls):
    async def gathered():
        return await asyncio.gather(*(asyncio.to_thread(fill, inpainter, *call) for call in calls))

    return asyncio.run(gathered())


@pytest.mark.parametrize("run", [in_threads, in_asyncio])
@pytest.mark.parametrize(
    ("kind", "methods"),
    [("pixels", ["rad", "ddnm", "dps", "repaint", "gradpaint"]), ("text", ["pilot", "replacement", "dps", BLEND])],
)
def test_calls_at_a_time_equal_calls_one_after_another(inpainters, kind, methods, run):
    inpainter, calls = inpainters[kind], [(method, seed) for seed in range(3) for method in methods]
    model = inpainter.model
    modules = [model.network, *([] if model.adapted is None else [model.adapted]), *model.frozen_modules()]
    before = [weights_hash(module.state_dict()) for module in modules]
    expected = [fill(inpainter, *call) for call in calls]
    assert len(set(expected)) == len(expected)
    assert run(inpainter, calls) == expected
    assert [weights_hash(module.state_dict()) for module in modules] == before
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_both_networks_move_and_share_what_the_adapter_leaves(inpainters):
    model = inpainters["pixels"].model
    assert model.adapted is not None
    model.to(torch.device("cpu"))
    shared = {id(parameter) for parameter in model.network.parameters()}
    names = {name for name, parameter in model.adapted.named_parameters() if id(parameter) not in shared}
    assert "conv_in.weight" in names
    assert not any("norm" in name for name in names)
