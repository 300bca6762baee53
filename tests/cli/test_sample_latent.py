"""sample.py with latent and text-to-image models: whole runs, prompts, latent grid, feathering, records and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.options import read_options
from rad.cli.sample.workers import Setup
from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.models.loaded_model import Condition
from tests.conftest import box_hole, random_image
from tests.pipelines import SIDE, tiny_flux, tiny_ldm, tiny_sd3
from tests.tiny_stable import write_stable

HOLE = box_hole(SIDE, SIDE, 4, 5, 11, 12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {"ldm": tiny_ldm(root / "ldm", "kl"), "sd3": tiny_sd3(root / "sd3"), "flux": tiny_flux(root / "flux")}


@pytest.fixture
def sample(folders, base, tmp_path, monkeypatch, capsys):
    """sample.py on a.png and b.png: (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    Path("in").mkdir()
    for number, name in enumerate("ab"):
        random_image(SIDE, SIDE, seed=number).save(f"in/{name}.png")
    Image.fromarray(np.uint8(255 * HOLE[0].numpy())).save("mask.png")

    def call(model, *words, output="out", steps=2):
        place = {**folders, "pixels": base}[model]
        told = ["--checkpoint", place, "--image", "in", "--mask", "mask.png", "--output", output, "--steps", steps]
        code = cli.sample([str(word) for word in (*told, *words)])
        return code, capsys.readouterr().err

    return call


def read(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def made(*names, output="out"):
    return [read(f"{output}/{name}.png") for name in names]


@pytest.mark.parametrize(("model", "words"), [("ldm", ()), ("sd3", ("--prompt", "a cat")), ("flux", ("--size", SIDE))])
def test_whole_runs(sample, model, words):
    methods = ("--method", "replacement", "ddnm", "repaint", "--set", "repaint.jump_length=2", "repaint.resamplings=2")
    code, err = sample(model, *words, *methods, steps=4)
    assert code == 0, err
    results = {name: read(f"out/{name}/a.png") for name in ("replacement", "ddnm", "repaint")}
    given, known = read("in/a.png"), (HOLE[0] == 0).numpy()
    for image in results.values():
        assert np.array_equal(image[known], given[known])
        assert (image != given)[~known].mean() > 0.5
    assert not np.array_equal(results["replacement"], results["ddnm"])


def test_prompts_by_image(sample, folders):
    Path("prompts.json").write_text(json.dumps({"b.png": "a dog"}))
    words = ("--method", "ddnm", "--guidance", 2)
    assert sample("sd3", *words, "--prompt", "a cat", "--prompts", "prompts.json")[0] == 0
    inpainter = Inpainter.from_pretrained(folders["sd3"])
    told = [Condition("a cat", guidance=2.0), Condition("a dog", guidance=2.0)]
    expected = inpainter(
        ["in/a.png", "in/b.png"], "mask.png", method="ddnm", steps=2, names=["a.png", "b.png"], condition=told
    )
    for image, one in zip(made("a", "b"), expected.images, strict=True):
        assert np.array_equal(image, np.asarray(one))
    assert sample("sd3", *words, "--prompt", "a cat", output="same")[0] == 0
    assert np.abs(made("a", output="same")[0] - made("a")[0]).max() <= 1
    assert not np.array_equal(made("b", output="same")[0], made("b")[0])
    code, err = sample("sd3", *words, "--prompts", "prompts.json", output="other")
    assert code == 2
    assert "prompts.json has none for a.png: add it, or give --prompt" in err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a.png": 1}'])
def test_bad_files_of_prompts(sample, content):
    Path("prompts.json").write_text(content)
    code, err = sample("sd3", "--prompts", "prompts.json", "--method", "ddnm")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "--prompts prompts.json" in err


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("pixels", ("--prompt", "a cat"), "takes no text"),
        ("ldm", ("--negative_prompt", "a cat"), "takes no text"),
        ("ldm", ("--guidance", 3), "takes no text"),
        ("pixels", ("--grid", "nearest"), "there is no latent grid"),
        ("pixels", ("--dilate", 1), "there is no latent grid"),
        ("pixels", ("--encode_full",), "there is no latent grid or encoder"),
        ("ldm", ("--size", 32), "is not a flow model or a model of pixels, so size=32 has no effect"),
        ("pixels", ("--size", 33), "are 33x33; their sides must be multiples of"),
        ("sd3", ("--negative_prompt", "x", "--guidance", 1), "negative prompt has no effect with guidance 1"),
        ("sd3", ("--control_scale", 0.5), "takes no such image, so control_scale=0.5 has no effect: leave it out"),
        ("sd3", ("--guidance", -1), "--guidance -1.0: allowed are 0 or more"),
        ("flux", ("--negative_prompt", "x", "--size", 16), "takes no negative prompt"),
        ("ldm", ("--feather", -1), "--feather -1"),
    ],
)
def test_options_without_effect_are_refused_before_any_output(sample, model, words, message):
    code, err = sample(model, "--method", "ddnm", *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not Path("out").exists()


def test_a_prompt_for_methods_without_a_network_is_refused(sample):
    code, err = sample("sd3", "--method", "mean", "--prompt", "a cat")
    assert code == 2
    assert "a prompt has no effect on methods that use no network" in err


def test_the_latent_grid_and_the_encoder(sample):
    options = {"plain": (), "dilated": ("--dilate", 1), "bilinear": ("--grid", "bilinear"), "full": ("--encode_full",)}
    for name, words in options.items():
        assert sample("ldm", "--method", "replacement", *words, output=name)[0] == 0
    results = {name: made("a", output=name)[0] for name in options}
    assert not any(np.array_equal(results["plain"], results[name]) for name in ("dilated", "bilinear", "full"))


def test_feather_keeps_pixels_farther_away(sample):
    assert sample("ldm", "--method", "replacement", "--feather", 2)[0] == 0
    changed = (made("a")[0] != read("in/a.png")).any(2)
    near = np.zeros((SIDE, SIDE), bool)
    near[2:13, 3:14] = True
    assert not changed[~near].any()
    assert changed[near & (HOLE[0] == 0).numpy()].mean() > 0.5


def test_prompts_and_guides_are_recorded_and_must_agree(sample):
    Path("prompts.json").write_text(json.dumps({"a.png": "a cat", "b.png": "a dog"}))
    words = ("--mask", "box", "--prompts", "prompts.json", "--guidance", 2, "--dilate", 1)
    assert sample("sd3", "--method", "ddnm", *words)[0] == 0
    run = json.loads(Path("out/run.json").read_text())
    settings = run["settings"]["ddnm"]
    assert settings["dilate"] == 1
    assert "feather" not in settings
    assert run["options"]["guidance"] == 2
    assert run["options"]["prompts"].startswith("prompts.json, sha256 ")
    changes = {"ddnm": [words[:-2], (*words, "--feather", 1)], "--guidance": [(*words[:-3], 3, *words[-2:])]}
    for what, others in changes.items():
        for other in others:
            code, err = sample("sd3", "--method", "ddnm", *other)
            assert code == 2
            assert f"holds results of {what}" in err
    Path("prompts.json").write_text(json.dumps({"a.png": "a cat", "b.png": "a boat"}))
    code, err = sample("sd3", "--method", "replacement", *words)
    assert code == 2
    assert "holds results of --prompts" in err


def test_other_processes_load_the_same_model(folders):
    words = ["--checkpoint", folders["flux"], "--size", SIDE, "--image", "in", "--mask", "box", "--output", "out"]
    worker = Setup(read_options([str(word) for word in words]), {}, []).worker("cpu")
    assert worker.model.size == (SIDE, SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ldm", pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_every_method_runs_end_to_end(sample, folders, tmp_path, model):
    """All that a base model on latents can do, by one command; a report of failures would be exit code 1."""
    folders = folders if model != "sd" else {"sd": write_stable(tmp_path / "sd")}
    own = Inpainter.from_pretrained(folders[model]).model.base_process
    chosen = []
    for name, kind in METHODS.items():
        try:
            kind().process(own, "adm")
        except ValueError:
            continue
        usable = kind.weights in ("base", "none") and name not in ("m2s", "lama")
        if usable and (model == "sd" or not kind.needs_text):
            chosen.append(name)
    assert len(chosen) > 24
    told = [
        "--checkpoint",
        folders[model],
        "--image",
        "in",
        "--mask",
        "center",
        "--output",
        "all",
        "--size_policy",
        "resize",
    ]
    told += [
        "--steps",
        3,
        "--method",
        *chosen,
        "--set",
        "mcgdiff.particles=2",
        "vipaint.iterations=2",
    ]
    assert cli.sample([str(word) for word in (*told, *(() if model == "ldm" else ("--prompt", "a cat")))]) == 0
    for name in chosen:
        image, given = read(f"all/{name}/a.png"), read("in/a.png")
        changed = (image != given).any(2)
        assert changed.mean() > 0.05, name
        assert np.array_equal(image[0], given[0]), name
