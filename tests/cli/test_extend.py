"""`rad sample --extend`, and its settings from a JSON file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.options import SampleOptions, read_options
from rad.cli.sample.request import read_request
from rad.inpainting.inpainter import Inpainter
from tests.conftest import SIZE, random_image


@pytest.fixture
def sample(tmp_path, monkeypatch, capsys, adapter):
    """`rad sample` in a folder with in/a.png and mask.png: (exit code, lines of stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    random_image(SIZE, SIZE, seed=1).save("in/a.png")
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[4:11, 3:12] = 255
    Image.fromarray(hole).save("mask.png")

    def call(*words: str, **options: object) -> tuple[int, list[str], str]:
        named = {"checkpoint": adapter, "image": "in/a.png", "output": "out.png", "steps": 1, **options}
        code = cli.sample([*(word for name, value in named.items() for word in (f"--{name}", str(value))), *words])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return call


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("mask", [(), ("--mask", "mask.png")])
def test_new_pixels_are_filled_as_by_the_inpainter(sample, adapter, mask):
    words = ("--extend", "5, 0,3,2", "--size_policy", "crop", "--raw", "--save_mask", "--num_samples", "2")
    code, _, err = sample(*words, *mask, output="out")
    assert code == 0, err
    given = mask[1] if mask else None
    result = Inpainter.from_pretrained(adapter)(
        "in/a.png", given, steps=1, extend=(5, 0, 3, 2), size_policy="crop", num_samples=2, names="a.png"
    )
    hole = np.ones((SIZE + 2, SIZE + 8), np.uint8) * 255
    hole[:SIZE, 5 : 5 + SIZE] = pixels("mask.png") if mask else 0
    assert np.array_equal(pixels("out/a-mask.png"), hole)
    for number in range(2):
        written = pixels(f"out/a-{number}.png")
        assert np.array_equal(written, np.asarray(result.images[number]))
        assert np.array_equal(pixels(f"out/a-{number}-raw.png"), np.asarray(result.raw[number]))
        known = hole[:SIZE, 5 : 5 + SIZE] == 0
        assert np.array_equal(written[:SIZE, 5 : 5 + SIZE][known], pixels("in/a.png")[known])
    request = read_request(Path("out/a-0.png"))
    assert request is not None
    assert request["extend"] == "5,0,3,2"


def test_a_generated_mask_is_that_of_the_image_before(sample):
    assert sample("--mask", "box", "--save_mask", output="plain")[0] == 0
    assert (
        sample("--mask", "box", "--save_mask", "--extend", "0,4,0,0", "--size_policy", "crop", output="large")[0] == 0
    )
    assert np.array_equal(pixels("large/a-mask.png")[4:], pixels("plain/a-mask.png"))


def test_another_extension_is_another_request(sample):
    assert sample("--mask", "mask.png", "--extend", "0,0,0,0")[0] == 0
    assert "extend" not in (read_request(Path("out.png")) or {})
    assert "finished before" in sample("--mask", "mask.png")[2]
    code, _, err = sample("--mask", "mask.png", "--extend", "1,0,0,0", "--size_policy", "crop")
    assert code == 2
    assert "another request (extend by default, now 1,0,0,0, size_policy error, now crop)" in err
    words = ("--mask", "mask.png", "--extend", "1,0,0,0", "--size_policy", "crop", "--overwrite")
    assert sample(*words)[0] == 0
    assert pixels("out.png").shape == (SIZE, SIZE + 1, 3)


def test_a_preview_shows_the_new_pixels(sample):
    code, out, _ = sample("--preview_masks", "--extend", "0,0,4,0")
    assert (code, out) == (0, ["out-overlay.png"])
    shown = pixels("out-overlay.png")
    assert np.array_equal(shown[:, :SIZE], pixels("in/a.png"))
    assert (shown[:, SIZE:] == (153, 0, 0)).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "nothing to fill: give --mask, or new pixels at the borders with --extend"),
        ("--extend 0,0,0,0", "nothing to fill"),
        ("--extend 1,2,3", "extension is '1,2,3'; give LEFT,TOP,RIGHT,BOTTOM"),
        ("--extend 4,0,0,0 --report", "--report scores results against the images, which --extend enlarges"),
        ("--extend 4,0,0,0", "the image is 20x16 and the model takes 16x16: use size_policy 'crop'"),
        ("--extend 60000,60000,0,0 --size_policy crop", "the extended image has 60016x60016 pixels"),
    ],
)
def test_unusable_extensions_are_errors(sample, words, message):
    code, out, err = sample(*words.split())
    assert (code, out) == (2, [])
    assert message in err


def test_a_json_file_of_all_settings_gives_the_same_file(sample, adapter):
    words = ["--mask", "mask.png", "--extend", "4,0,0,0", "--size_policy", "crop", "--set", "repaint.jump_length=2"]
    words += ["--method", "repaint", "--num_samples", "1", "--batch_size", "4"]
    assert sample(*words)[0] == 0
    named = ["--checkpoint", str(adapter), "--image", "in/a.png", "--output", "again.png", "--steps", "1"]
    settings = dataclasses.asdict(read_options([*named, *words]))
    assert settings.keys() == {field.name for field in dataclasses.fields(SampleOptions)}
    Path("settings.json").write_text(json.dumps(settings, indent=2))
    assert cli.sample(["--config", "settings.json"]) == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()


def test_a_settings_file_with_an_unknown_entry_is_an_error(sample, capsys):
    Path("settings.json").write_text(json.dumps({"mask": ["mask.png"], "sede": 1}))
    code, _, err = sample("--config", "settings.json")
    assert code == 2
    assert "sede" in err
    assert "did you mean seed?" in err
