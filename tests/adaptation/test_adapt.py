"""Adaptation to one image: it fits the known pixels, and leaves the model, other images and other threads as they are."""

import copy
import json
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rad.adaptation import CROPS, adapt
from rad.adaptation.crops import Crops
from rad.adaptation.run import compute_loss
from rad.cli import main as cli
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import hybrid_loss
from rad.diffusion.processes import region_aware
from rad.diffusion.step import noised
from rad.evaluation.run_log import read_costs
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.result import Cancelled
from tests.conftest import SIZE, box_hole, random_image

HOLE = box_hole(40, 48, 6, 8, 18, 30)
FILL = {"size_policy": "crop", "steps": 2, "names": "a", "seed": 3}


@pytest.fixture(scope="module")
def stripes():
    values = np.where((np.arange(48) // 3) % 2, 230, 40).astype(np.uint8)
    return np.repeat(np.tile(values, (40, 1))[..., None], 3, 2)


@pytest.fixture(scope="module")
def inpainter(adapter):
    return Inpainter.from_pretrained(adapter, device="cpu")


def weights(inpainter):
    return {name: w.clone() for name, w in inpainter.model.sampled_network(adapter=True).state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(w, other[name]) for name, w in one.items())


def test_content_of_the_hole_changes_nothing(inpainter, stripes):
    other = np.where(HOLE[0].numpy()[..., None] > 0, 255 - stripes, stripes)
    one, two = (adapt(inpainter, image, HOLE, steps=2, name="a") for image in (stripes, other))
    assert one.losses == two.losses
    assert same(weights(one.inpainter), weights(two.inpainter))
    assert one.passes == 2 * CROPS


@pytest.mark.slow
def test_model_stays_as_it_is_and_draws_are_keyed(inpainter, stripes):
    network, base = weights(inpainter), {n: w.clone() for n, w in inpainter.model.network.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    adapted = adapt(inpainter, stripes, HOLE, steps=2, name="a")
    assert torch.equal(torch.rand(1), expected), "the global generator is not used"
    assert same(weights(inpainter), network)
    assert same(inpainter.model.network.state_dict(), base)
    assert not any(w.requires_grad for w in inpainter.model.sampled_network(adapter=True).parameters())
    assert not any(w.requires_grad for w in adapted.inpainter.model.sampled_network(adapter=True).parameters())
    assert adapted.inpainter.model.sampled_network(adapter=False) is inpainter.model.network
    for keys in ({"name": "b"}, {"name": "a", "seed": 1}):
        assert not same(weights(adapt(inpainter, stripes, HOLE, steps=2, **keys).inpainter), weights(adapted.inpainter))
    with torch.inference_mode(), torch.device("meta"):
        again = adapt(inpainter, stripes, HOLE, steps=2, name="a")
    assert same(weights(again.inpainter), weights(adapted.inpainter))


@pytest.mark.slow
def test_unsuitable_models_and_inputs_are_errors(inpainter, base, stripes):
    with pytest.raises(ValueError, match="is a base model: give a model of RAD"):
        adapt(Inpainter.from_pretrained(base, device="cpu"), stripes, HOLE)
    with pytest.raises(ValueError, match="compile is 'default'"):
        adapt(Inpainter(inpainter.model, compile="default"), stripes, HOLE)
    with pytest.raises(ValueError, match="too little of the image is known"):
        adapt(inpainter, stripes, torch.ones_like(HOLE))
    with pytest.raises(ValueError, match="image has 2 images"):
        adapt(inpainter, [stripes, stripes], HOLE)
    with pytest.raises(ValueError, match="steps is 0"):
        adapt(inpainter, stripes, HOLE, steps=0)


def test_models_of_latents_are_refused(inpainter, stripes):
    latent = copy.copy(inpainter.model)
    latent.autoencoder = object()
    with pytest.raises(ValueError, match="works on latents: leave it out"):
        adapt(Inpainter(latent), stripes, HOLE)


@torch.no_grad()
def losses_of(inpainter, batches):
    network = inpainter.model.sampled_network(adapter=True)
    return [compute_loss(network, inpainter.model, batch, torch.device("cpu")).item() for batch in batches]


def crops(stripes):
    return Crops(stripes.transpose(2, 0, 1), HOLE.numpy(), (SIZE, SIZE), seed=9, name="b")


def test_training_lowers_the_loss_of_the_crops_that_it_sees(inpainter, stripes, monkeypatch):
    batch = crops(stripes).draw(0, 2)
    monkeypatch.setattr(Crops, "draw", lambda *_: batch)
    losses = adapt(inpainter, stripes, HOLE, steps=3, name="a").losses
    assert all(after < before for before, after in pairwise(losses))


@torch.no_grad()
def test_the_loss_is_that_of_a_step_to_the_next_level(inpainter, stripes):
    batch, process = crops(stripes).draw(0, 4), region_aware(inpainter.model.base_process)
    t = (batch.level * 1000).long()
    t[0], regions = 0, NoiseRegions.binary(batch.hole)
    batch = replace(batch, level=(t + 0.5) / 1000)
    now, previous = (process.noise(time, regions) for time in (t, t - 1))
    x = noised(batch.x0, now, noise=batch.eps)
    output = inpainter.model.sampled_network(adapter=True)(x, timestep=now.timesteps.float(), index=now.index).sample
    terms = {"x0": batch.x0, "x": x, "eps": batch.eps, "now": now, "previous": previous, "pixels": batch.counted}
    expected = hybrid_loss(output, **terms, vlb_weight=1e-3, weight_limit=15.0)
    assert (expected.vlb > 0).all()
    found = compute_loss(inpainter.model.sampled_network(adapter=True), inpainter.model, batch, torch.device("cpu"))
    torch.testing.assert_close(found, expected.total.mean(), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_loss_falls_on_other_crops_of_the_image(inpainter, stripes):
    done = []
    adapted = adapt(inpainter, stripes, HOLE, steps=60, name="a", on_step=done.append)
    assert done == [CROPS * (step + 1) for step in range(60)]
    batches = [crops(stripes).draw(step, CROPS) for step in range(8)]
    before, after = (losses_of(each, batches) for each in (inpainter, adapted.inpainter))
    assert np.mean(after) < 0.8 * np.mean(before)


@pytest.mark.slow
def test_inpainter_is_unaffected_during_and_after_an_adaptation(inpainter, stripes):
    expected, during, running = np.array(inpainter(stripes, HOLE, **FILL).images[0]), [], threading.Event()

    def train():
        adapt(inpainter, stripes, HOLE, steps=30, name="a", on_step=lambda _: running.set())

    thread = threading.Thread(target=train)
    thread.start()
    running.wait(60)
    while thread.is_alive():
        during.append(np.array(inpainter(stripes, HOLE, **FILL).images[0]))
    thread.join()
    assert during
    assert all(
        np.array_equal(image, expected) for image in [*during, np.array(inpainter(stripes, HOLE, **FILL).images[0])]
    )

    def stop(_):
        raise Cancelled

    with pytest.raises(Cancelled):
        adapt(inpainter, stripes, HOLE, steps=5, name="a", on_step=stop)
    assert np.array_equal(np.array(inpainter(stripes, HOLE, **FILL).images[0]), expected)


@pytest.mark.slow
def test_rad_sample_adapts_each_image_by_itself(adapter, stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.fromarray(stripes).save("in/a.png")
    random_image(40, 48).save("in/b.png")
    random_image(40, 48, seed=1).save("in/full.png")
    Path("masks").mkdir()
    for name, hole in (("a", HOLE), ("b", HOLE), ("full", torch.ones_like(HOLE))):
        Image.fromarray(np.uint8(255 * hole[0].numpy())).save(f"masks/{name}.png")

    def sample(*more, image="in/a.png", mask="masks/a.png"):
        words = (
            f"--checkpoint {adapter} --image {image} --mask {mask} --size_policy crop --device cpu --seed 3 --steps 2"
        )
        code = cli.sample([*words.split(), *more])
        return code, capsys.readouterr().err

    def pixels(path):
        with Image.open(path) as image:
            return np.array(image)

    code, err = sample("--output", "one.png", "--adapt", "3")
    assert code == 0, err
    assert f"network calls and {3 * CROPS} training passes" in err
    assert f"s in training and sampler, {3 * CROPS} training passes" in err
    with Image.open("one.png") as image:
        assert json.loads(image.info["rad"])["adapt_steps"] == 3
    inpainter = Inpainter.from_pretrained(adapter, device="cpu")
    adapted = adapt(inpainter, "in/a.png", "masks/a.png", steps=3, seed=3, name="a.png").inpainter
    expected = adapted("in/a.png", "masks/a.png", **{**FILL, "names": "a.png"}).images[0]
    assert np.array_equal(pixels("one.png"), np.array(expected))
    code, err = sample("--output", "one.png")
    assert code == 2
    assert "adapt_steps 3" in err

    labels = ("rad,adapt=3", "rad")
    code, err = sample("--output", "all", "--report", "--method", *labels, image="in", mask="masks")
    assert code == 3, err
    assert "full.png: too little of the image is known" in err
    assert np.array_equal(pixels("all/masks/rad,adapt=3/a.png"), np.array(expected))
    code, err = sample("--output", "plain", image="in", mask="masks")
    for name in ("a", "b"):
        assert np.array_equal(pixels(f"all/masks/rad/{name}.png"), pixels(f"plain/{name}.png")), "not adapted"
    costs = {label: read_costs(Path("all/masks", label, "costs.csv")) for label in labels}
    assert [costs["rad,adapt=3"][name]["training"] for name in ("a", "b")] == [3 * CROPS] * 2
    assert [costs["rad"][name]["training"] for name in ("a", "b")] == [0, 0]

    for words, message in (
        (
            ("--method", "rad", "mean", "--adapt", "3"),
            "mean: --adapt trains RAD's network, which method 'mean' does not use",
        ),
        (("--size_policy", "zoom", "--adapt", "3"), "--size_policy zoom scales it: give --size_policy crop"),
        (("--method", "rad,adapt=-1"), "adapt is '-1'; allowed are 0 to 100000"),
    ):
        code, err = sample("--output", "wrong", *words)
        assert code == 2
        assert message in err
