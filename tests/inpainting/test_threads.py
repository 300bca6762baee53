"""Calls of one inpainter from several threads equal calls one after another, bit for bit."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.utils import logging
from PIL import Image

from rad.inpainting.inpainter import Inpainter
from rad.methods.blended_latent import BlendedLatent
from rad.methods.own import load
from rad.models.loaded_model import PLAIN, Condition
from rad.models.text_to_image.folders import quietly
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


def fill(inpainter, method, seed, on_step=None):
    condition = PLAIN if inpainter.model.text is None else Condition("a boat", guidance=2.0)
    if seed % 2 and inpainter.model.text is not None:
        condition = replace(condition, prompt=f"a red house {seed}")
    result = inpainter(IMAGE, HOLE, method=method, steps=3, seed=seed, condition=condition, on_step=on_step)
    return np.asarray(result.images[0]).tobytes()


def in_threads(inpainter, calls):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda call: fill(inpainter, *call), calls))


def in_threads_with_previews(inpainter, calls):
    def looked_at(call):
        previews = []
        filled = fill(inpainter, *call, on_step=lambda progress: previews.extend(progress.previews()))
        assert previews
        return filled

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(looked_at, calls))


def in_asyncio(inpainter, calls):
    async def gathered():
        return await asyncio.gather(*(asyncio.to_thread(fill, inpainter, *call) for call in calls))

    return asyncio.run(gathered())


@pytest.mark.spread(1)
@pytest.mark.parametrize("run", [in_threads_with_previews, in_threads, in_asyncio])
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


def test_threads_may_share_an_image_that_is_not_loaded_yet(inpainters, tmp_path):
    IMAGE.save(tmp_path / "a.png")
    Image.fromarray((HOLE[0].numpy() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    inpainter = inpainters["pixels"]
    for _ in range(8):
        with (
            Image.open(tmp_path / "a.png") as image,
            Image.open(tmp_path / "mask.png") as mask,
            ThreadPoolExecutor(8) as pool,
        ):
            results = pool.map(
                lambda _, *pair: inpainter(*pair, steps=1).images[0].tobytes(), range(8), [image] * 8, [mask] * 8
            )
            assert len(set(results)) == 1


@pytest.mark.usefixtures("forget_methods")
def test_threads_that_load_a_method_get_one_class(tmp_path):
    file = tmp_path / "slow.py"
    file.write_text(
        "import time\nfrom dataclasses import dataclass\nfrom rad.sampling.method import SamplingMethod\ntime.sleep(0.1)\n\n\n"
        "@dataclass(frozen=True)\nclass Slow(SamplingMethod):\n    pass\n"
    )
    with ThreadPoolExecutor(4) as pool:
        kinds = list(pool.map(load, [f"{file}:Slow"] * 4))
    assert all(kind is kinds[0] for kind in kinds)


def test_threads_leave_the_log_level_of_diffusers_as_it_was():
    before = logging.get_verbosity()

    def work(seconds):
        with quietly():
            time.sleep(seconds)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, [0.02, 0.05, 0.01]))
    assert logging.get_verbosity() == before != logging.ERROR


def test_prompts_are_encoded_again_after_a_move(inpainters):
    model = inpainters["text"].model
    first = model.text.single("a boat")
    assert model.text.single("a boat") is first
    model.to("cpu")
    assert model.text.single("a boat") is not first
