"""Progress after every network call: previews that affect nothing, and cancelled runs that leave nothing behind."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rad.diffusion.schedules import linear_betas
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.result import Cancelled
from rad.methods.m2s import M2S
from rad.models.base import save_base
from tests.conftest import SIZE, box_hole, random_image
from tests.tiny_networks import small_unet
from tests.tiny_pipelines import write_pipeline

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "python.md"

IMAGE, HOLE = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 4, 13, 12)
KNOWN = (HOLE[0] == 0).numpy()


@pytest.fixture(scope="module")
def pixels(models):
    return Inpainter.from_pretrained(models / "adapter")


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    return Inpainter.from_pretrained(write_pipeline(tmp_path_factory.mktemp("stable"), "stable"))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coarse") / "base"
    save_base(folder, small_unet(size=SIZE // 2), betas=linear_betas(), half=False)
    return M2S(coarse=str(folder), trips=1)


def bits(images):
    return [np.asarray(image).tobytes() for image in images]


def watched(previews):
    """A callback that looks at every preview and appends it."""

    def on_step(progress):
        images = progress.previews()
        assert len(images) == len(progress.indices)
        previews.extend(images)

    return on_step


FAMILIES = ["rad", "repaint", "dps", "reddiff", "gradpaint", "grow", "copaint", "latent", "m2s"]
"""RAD, time travel, gradients, an own loop, calls between steps, samplers in a sampler, a line search, latents, two models."""


@pytest.fixture
def family(request, pixels, latent, coarse):
    name = request.param
    inpainter = latent if name == "latent" else pixels
    method = {"latent": "dps", "m2s": coarse}.get(name, name)

    def run(on_step=None, **options):
        return inpainter(IMAGE, HOLE, method=method, steps=3, num_samples=2, on_step=on_step, **options)

    run.model, run.cost = inpainter.model, inpainter.sampler(method, steps=3).cost
    return run


@pytest.mark.spread(3)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_previews_show_the_estimate_in_the_hole_and_change_nothing(family):
    plain, previews = family(), []
    random_state = torch.get_rng_state()
    result = family(watched(previews))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert bits(result.images) == bits(plain.images)
    assert bits(result.raw) == bits(plain.raw)
    assert len(previews) == 2 * (result.nfe // 2)
    assert all(np.array_equal(np.asarray(image)[KNOWN], np.asarray(IMAGE)[KNOWN]) for image in previews)
    assert len({np.asarray(image)[~KNOWN].tobytes() for image in previews}) > 2, "estimates differ from call to call"


def test_the_last_preview_of_a_reverse_process_is_the_result(pixels, latent):
    for inpainter, method in ((pixels, "rad"), (latent, "replacement")):
        previews = []
        result = inpainter(IMAGE, HOLE, method=method, steps=2, solver="ddim", on_step=watched(previews))
        assert bits(previews[-1:]) == bits(result.images)


def test_one_preview_decodes_its_own_windows_alone(latent, monkeypatch):
    height, width = latent.size
    image, hole = random_image(height, width), box_hole(height, width, 4, 4, 13, 12)
    decoded, decode = [], type(latent.model.autoencoder).decode

    def counted(self, z):
        decoded.append(len(z))
        return decode(self, z)

    monkeypatch.setattr(type(latent.model.autoencoder), "decode", counted)
    batches = []

    def on_step(progress):
        all_of_them = progress.previews()
        del decoded[:]
        batches.append(progress.indices)
        last = progress.indices[-1]
        assert bits([progress.preview(last)]) == bits(all_of_them[-1:])
        assert decoded == [1]
        with pytest.raises(ValueError, match=f"index is 5; allowed are {progress.indices[0]}"):
            progress.preview(5)

    latent(image, hole, method="replacement", steps=2, num_samples=5, batch_size=3, on_step=on_step)
    assert batches == [(0, 1, 2)] * 2 + [(3, 4)] * 2


@pytest.mark.parametrize("policy", ["crop", "resize"])
def test_previews_of_large_images_have_their_size_and_show_finished_windows(pixels, policy):
    image, hole = random_image(37, 50), box_hole(37, 50, 2, 3, 34, 47)
    known = (hole[0] == 0).numpy()
    progress, previews = [], []

    def on_step(state):
        progress.append((state.done, state.planned, state.indices))
        previews.extend(state.previews())

    result = pixels(image, hole, steps=1, size_policy=policy, num_samples=2, batch_size=3, on_step=on_step)
    planned = 2 * pixels.count_windows(hole, size_policy=policy)
    assert [(done, total) for done, total, _ in progress][-1] == (planned, planned)
    assert {index for *_, indices in progress for index in indices} == {0, 1}
    assert all(image.size == (50, 37) for image in previews)
    assert all(np.array_equal(np.asarray(each)[known], np.asarray(image)[known]) for each in previews)
    if policy == "crop":
        first, last = (np.asarray(image) for image in (previews[0], previews[-1]))
        assert (first[~known] == 128).all(axis=1).any(), "later windows are grey at first"
        assert np.array_equal(last, np.asarray(result.images[progress[-1][2][-1]]))


@pytest.mark.parametrize("method", ["mean", "biharmonic"])
def test_methods_without_network_calls_report_once(pixels, method):
    reports, previews = [], []

    def on_step(progress):
        reports.append((progress.done, progress.planned))
        previews.extend(progress.previews())

    result = pixels(IMAGE, HOLE, method=method, on_step=on_step)
    assert reports == [(0, 0)]
    assert bits(previews) == bits(result.images)


class Stop:
    """A callback that raises at call `last`, with the previews of that call in use."""

    def __init__(self, last, error=Cancelled):
        self.last, self.error, self.calls = last, error, 0

    def __call__(self, progress):
        self.calls += 1
        if self.calls == self.last:
            progress.previews()
            raise self.error


def state_of(model):
    modules = [module for network in model._modules() for module in network.modules()]
    return [(module.training, *(value._version for value in module.parameters(recurse=False))) for module in modules]


@pytest.mark.spread(3)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_cancelled_run_stops_at_once_and_leaves_nothing_behind(family):
    expected, before = family(), state_of(family.model)
    threads = threading.active_count()
    last = family.cost.nfe
    for number, error in ((1, Cancelled), (2, KeyboardInterrupt), (last, RuntimeError)):
        stop = Stop(number, error)
        with pytest.raises(error):
            family(stop)
        assert stop.calls == number
        assert threading.active_count() == threads
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert state_of(family.model) == before
    assert bits(family().images) == bits(expected.images)


def test_a_cancelled_run_gives_the_training_mode_back(models):
    inpainter = Inpainter.from_pretrained(models / "base")
    inpainter.model.network.train()
    with pytest.raises(Cancelled):
        inpainter(IMAGE, HOLE, method="ddnm", steps=2, on_step=Stop(1))
    assert inpainter.model.network.training


@pytest.mark.parametrize("second", ["repaint", "dps", "reddiff", "rad"])
def test_a_run_goes_on_while_another_thread_cancels(pixels, second):
    """Both take turns at each network call, so that the order is the same each time."""
    expected = pixels(IMAGE, HOLE, method=second, steps=4, seed=1)
    turn, problems = threading.Barrier(2, timeout=120), []

    def cancelled():
        def on_step(progress):
            turn.wait()
            progress.previews()
            if progress.done == 2:
                raise Cancelled

        try:
            pixels(IMAGE, HOLE, method="gradpaint", steps=5, on_step=on_step)
        except Cancelled as error:
            problems.append(error)

    thread = threading.Thread(target=cancelled)
    thread.start()
    calls = []

    def on_step(progress):
        calls.append(progress.previews())
        if len(calls) <= 2:
            turn.wait()

    result = pixels(IMAGE, HOLE, method=second, steps=4, seed=1, on_step=on_step)
    thread.join(120)
    assert len(problems) == 1
    assert len(calls) == result.nfe
    assert bits(result.images) == bits(expected.images)


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random_image(150, 200).save("photo.png")
    hole = box_hole(150, 200, 9, 9, 20, 20, 120, 170, 140, 190)  # two windows of four calls
    Image.fromarray((hole[0].numpy() * 255).astype(np.uint8)).save("mask.png")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), names)
    assert "8 of 8 network calls" in capsys.readouterr().out
    assert Image.open("preview-0.png").size == Image.open("filled.png").size == (200, 150)
    assert names["wider"].images[0].size == names["both"].images[0].size == (216, 158)
