"""Text, guiding images and their networks as options of sample.py."""

import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.options import GUIDES, read_options
from rad.cli.sample.plan import Job
from rad.cli.sample.runtimes.pytorch import condition_of, find_guides, load_inpainter
from rad.images.sources import ImageFile
from rad.inpainting.inpainter import Inpainter
from rad.methods.pilot import PILOT
from rad.models.loaded_model import PLAIN, Condition
from tests.conftest import random_image
from tests.tiny_stable import SIZE, make_unet, write_controlnet, write_ip_adapter, write_lora, write_stable

LEAST = ["--checkpoint", "model", "--image", "in", "--mask", "center", "--output", "out"]


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    place = tmp_path_factory.mktemp("stable")
    write_stable(place / "sd")
    write_controlnet(place / "control", make_unet())
    write_ip_adapter(place / "style", make_unet())
    write_lora(place / "lora.safetensors", make_unet())
    return place


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with two images and an image of guidance for each; without a network."""

    def refuse(*_, **__):
        raise AssertionError("a local path must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b")):
        for folder in ("in", "edges"):
            Path(folder).mkdir(exist_ok=True)
            random_image(SIZE, SIZE, seed=10 * number + len(folder)).save(f"{folder}/{name}.png")
    return tmp_path


def options(*words):
    return read_options([*LEAST, *words])


def job(name, prompt=""):
    return Job(ImageFile(f"{name}.png", Path(f"{name}.png")), name, None, [], [], None, prompt)


@pytest.fixture
def loaded(monkeypatch):
    """Arguments of the last call of `Inpainter.from_pretrained`, which loads nothing."""
    arguments = {}
    monkeypatch.setattr(Inpainter, "from_pretrained", lambda _, **given: arguments.update(given))
    return arguments


def sample(stable, *words):
    return cli.sample(["--checkpoint", str(stable / "sd"), *LEAST[2:], *words])


def test_without_options_there_is_no_condition_and_no_further_network(loaded):
    assert condition_of(options(), job("a"), {}) == PLAIN
    load_inpainter(options(), "cpu")
    assert loaded.items() >= {"controlnet": None, "t2i_adapter": None, "ip_adapter": None}.items()
    assert loaded["loras"] == []


def test_every_option_reaches_its_place(desk, loaded):
    words = ["--prompt", "a cat", "--negative", "dog", "--guidance", "2", "--controlnet", "c", "--t2i_adapter", "t"]
    words += ["--ip_adapter", "i", "--lora", "one", "two=0.5", "--lora", "odd=name=-1"]
    for number, kind in enumerate(GUIDES):
        words += [f"--{kind}_image", "edges" if kind == "control" else "in/a.png", f"--{kind}_scale", f"0.{number + 1}"]
    given = options(*words)
    edges, style = Image.open("edges/b.png"), Image.open("in/a.png")
    assert condition_of(given, job("b", given.prompt), find_guides(given)) == Condition(
        "a cat",
        "dog",
        2.0,
        control_image=edges.convert("RGB"),
        control_scale=0.1,
        adapter_image=style.convert("RGB"),
        adapter_scale=0.2,
        style_image=style.convert("RGB"),
        style_scale=0.3,
    )
    loras = [("one", 1.0), ("two", 0.5), ("odd=name", -1.0)]
    load_inpainter(given, "cpu")
    assert loaded.items() >= {"controlnet": "c", "t2i_adapter": "t", "ip_adapter": "i"}.items()
    assert loaded["loras"] == loras
    with pytest.raises(ValueError, match="--control_image edges has no image for c: expected one of the same name"):
        condition_of(given, job("c"), find_guides(given))


def test_a_missing_guide_costs_its_image_alone(desk, stable, capsys):
    Path("edges/a.png").rename("a.png")
    words = ["--method", "replacement", "--steps", "1", "--batch_size", "1"]
    guided = ["--controlnet", str(stable / "control"), "--control_image", str(desk / "edges")]
    assert sample(stable, *words, *guided) == 3
    assert "has no image for a: expected one of the same name" in capsys.readouterr().err
    assert not Path("out/a.png").exists()
    assert Path("out/b.png").is_file()
    Path("a.png").rename("edges/a.png")
    assert sample(stable, *words, *guided, "--overwrite") == 0, "a second run of this process lists the guides again"
    assert Path("out/a.png").is_file()


@pytest.mark.slow
def test_images_are_filled_as_the_inpainter_fills_them(desk, stable):
    lora = stable / "lora.safetensors"
    code = sample(
        stable,
        *["--method", "pilot", "--set", "pilot.interval=2", "pilot.iterations=1", "--steps", "3", "--prompt", "a cat"],
        *["--negative", "dog", "--guidance", "3", "--controlnet", str(stable / "control"), "--control_image", "edges"],
        *["--control_scale", "0.5", "--ip_adapter", str(stable / "style"), "--style_image", "in/b.png"],
        *["--lora", f"{lora}=0.5"],
    )
    assert code == 0
    inpainter = Inpainter.from_pretrained(
        stable / "sd",
        controlnet=stable / "control",
        ip_adapter=stable / "style" / "ip-adapter.safetensors",
        loras=[(lora, 0.5)],
    )
    style = Image.open("in/b.png").convert("RGB")
    wanted = [
        Condition(
            "a cat", "dog", 3.0, control_image=Image.open(f"edges/{name}.png"), control_scale=0.5, style_image=style
        )
        for name in "ab"
    ]
    from rad.masks.shapes import make
    from rad.rng import generator

    holes = [make("center")([generator(0, "mask", f"{name}.png")], SIZE, SIZE)[0] for name in "ab"]
    made = inpainter(
        ["in/a.png", "in/b.png"],
        holes,
        method=PILOT(interval=2, iterations=1),
        steps=3,
        names=["a.png", "b.png"],
        condition=wanted,
    )
    for name, image in zip("ab", made.images, strict=True):
        assert np.array_equal(np.array(Image.open(f"out/{name}.png")), np.array(image))


def test_results_of_different_texts_are_not_compared(desk, stable, capsys):
    words = ["--report", "--method", "replacement", "--steps", "1", "--limit", "1"]
    assert sample(stable, *words, "--prompt", "a cat") == 0
    assert sample(stable, *words, "--prompt", "bird") == 2
    assert "holds results of --prompt a cat, this is bird" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--control_image", "edges"], "--control_image edges needs --controlnet"),
        (["--style_image", "gone.png", "--ip_adapter", "x"], "--style_image gone.png: no such file or folder"),
        (["--lora", "a=b"], "'a=b': give PATH, or PATH=WEIGHT with a number"),
        (["--method", "rad"], "method 'rad' needs an adapter"),
        (["--controlnet", "gone"], "no ControlNetModel at gone"),
    ],
)
def test_mistakes_give_one_line(desk, stable, capsys, words, message):
    try:
        code = sample(stable, *words)
    except SystemExit as stopped:
        code = stopped.code
    told = capsys.readouterr().err
    assert code == 2
    assert message in told
    assert "Traceback" not in told


def test_pilot_and_prompts_need_text(desk, base, capsys):
    for words, message in (
        (["--method", "pilot"], "needs a text-to-image model with cross-attention"),
        (["--method", "replacement", "--prompt", "a cat"], "takes no text: leave the prompt out"),
        (["--method", "replacement", "--guidance", "3"], "takes no text: leave guidance out"),
        (["--method", "replacement", "--lora", "x"], "is not Stable Diffusion, so loras="),
    ):
        arguments = ["--checkpoint", str(base), *LEAST[2:], "--size_policy", "resize", "--steps", "1", *words]
        assert cli.sample(arguments) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "network call" not in shown, "nothing is counted before"
