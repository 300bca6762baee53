"""The two command lines: written files, exit codes, one line for an error and no traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from rad.cli import main as cli
from rad.cli.sample.fill import check_known, write_image
from rad.cli.sample.prepare import count_windows
from rad.console import Progress
from rad.diffusion.denoiser import UNetDenoiser
from rad.diffusion.schedules import linear_betas
from rad.images.codecs import open_image
from rad.inpainting.filling import WindowFiller
from rad.inpainting.inpainter import Inpainter
from rad.lock import locked
from rad.models.base import save_base
from rad.training import Diffusion
from tests.conftest import SIZE, box_hole, random_image
from tests.tiny_networks import small_unet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("RAD_DEBUG", raising=False)


@pytest.fixture
def sample(adapter, capsys):
    """sample.py in this process: (exit code, lines of stdout, stderr)."""

    def call(*arguments, **options):
        named = {"checkpoint": adapter, "image": "in", "mask": "masks", "output": "out", "steps": 1, **options}
        words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
        code = cli.sample([*words, *arguments])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err

    return call


def assert_one_error(err: str, *parts: str) -> None:
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    assert err.rstrip("\n").endswith(errors[0]), "the error is the last thing said"
    assert all(part in errors[0] for part in parts), errors[0]


def save(path, image):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def mask_image(hole):
    return Image.fromarray(np.uint8(255 * hole[0].numpy()))


HOLE = box_hole(SIZE, SIZE, 3, 4, 11, 12)


def make_inputs(names=("a.png", "b.png"), size=(SIZE, SIZE)):
    for number, name in enumerate(names):
        save(f"in/{name}", random_image(*size, seed=number))
        save(Path("masks") / Path(name).with_suffix(".png"), mask_image(box_hole(*size, 3, 4, 11, 12 + number)))


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def hidden(folder="out"):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# ---- sample.py: what is written ------------------------------------------------------------------


def test_one_image(sample):
    make_inputs()
    code, out, err = sample(image="in/a.png", mask="masks/a.png", output="deep/er/result.png")
    assert (code, out) == (0, ["deep/er/result.png"])
    assert "Traceback" not in err
    assert "error" not in err
    known = (HOLE[0] == 0).numpy()
    result, image = read("deep/er/result.png"), np.asarray(open_image("in/a.png"))
    assert np.array_equal(result[known], image[known])
    assert (result != image)[~known].mean() > 0.9
    assert hidden("deep") == ["er/result.png"], "no temporary file is left"


def test_it_is_the_inpainter_with_the_file_name_as_identity(sample, adapter):
    make_inputs()
    sample(image="in/b.png", mask="masks/b.png", output="out.png", steps=2, seed=5)
    expected = Inpainter.from_pretrained(adapter)("in/b.png", "masks/b.png", names=["b.png"], steps=2, seed=5)
    assert np.array_equal(read("out.png"), np.asarray(expected.images[0]))


def grey():
    return random_image(SIZE, SIZE).convert("L"), {}


def rgba():
    image = random_image(SIZE, SIZE).convert("RGBA")
    image.putalpha(random_image(SIZE, SIZE, seed=1).convert("L"))
    return image, {}


def palette():
    return random_image(SIZE, SIZE).quantize(7), {}


def deep_grey():
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)), {}


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return random_image(SIZE, SIZE), {"exif": exif}


@pytest.mark.parametrize("kind", [grey, rgba, palette, deep_grey, rotated])
def test_known_pixels_of_the_file_are_those_of_the_decoded_input(sample, kind):
    image, options = kind()
    Path("in").mkdir()
    image.save("in/x.png", **options)
    save("masks/x.png", mask_image(HOLE))
    assert sample()[0] == 0
    known = (HOLE[0] == 0).numpy()
    assert np.array_equal(read("out/x.png")[known], np.asarray(open_image("in/x.png"))[known])


@pytest.mark.spread(3)
@pytest.mark.parametrize("policy", ["resize", "crop"])
@pytest.mark.parametrize("size", [(25, 33), (9, 11), (30, 8)])
def test_images_of_another_size(sample, policy, size):
    make_inputs(["a.jpg"], size)
    assert sample(size_policy=policy)[0] == 0
    known = (box_hole(*size, 3, 4, 11, 12)[0] == 0).numpy()
    result, image = read("out/a.png"), np.asarray(open_image("in/a.jpg"))
    assert result.shape == image.shape
    assert np.array_equal(result[known], image[known])


def test_the_same_call_writes_the_same_bytes(sample):
    make_inputs()
    sample(output="one", num_samples=2)
    sample(output="two", num_samples=2)
    sample(output="other", num_samples=2, seed=1)
    assert hidden("one") == hidden("two") == ["a-0.png", "a-1.png", "b-0.png", "b-1.png"]
    for name in hidden("one"):
        content = Path("one", name).read_bytes()
        assert content == Path("two", name).read_bytes()
        assert content != Path("other", name).read_bytes()
    assert Path("one/a-0.png").read_bytes() != Path("one/a-1.png").read_bytes()


def test_one_image_with_samples_raw_and_mask(sample):
    make_inputs()
    code, out, _ = sample("--raw", "--save_mask", image="in/a.png", mask="masks/a.png", output="r.png", num_samples=2)
    assert code == 0
    assert out == ["r-0.png", "r-1.png"]
    files = sorted(path.name for path in Path(".").glob("r*"))
    assert files == ["r-0-raw.png", "r-0.png", "r-1-raw.png", "r-1.png", "r-mask.png"]
    with Image.open("r-mask.png") as mask:
        assert np.array_equal(np.asarray(mask), np.asarray(mask_image(HOLE)))


def test_folders_keep_their_shape_and_names_with_dots(sample):
    make_inputs(["a.png", "sub/b.v2.JPG", "sub/deep/c.webp"])
    assert sample()[0] == 0
    assert hidden() == ["a.png", "sub/b.v2.png", "sub/deep/c.png"]


def test_zips_are_read_and_cannot_write_outside_the_output(sample, tmp_path):
    make_inputs(["a.png", "sub/b.png"])
    absolute = str(tmp_path / "stolen.png")
    with zipfile.ZipFile("in.zip", "w") as images, zipfile.ZipFile("masks.zip", "w") as masks:
        for name, entry in (("a", "a.png"), ("sub/b", "sub/b.png"), ("a", absolute), ("a", "../../up.png")):
            images.writestr(zipfile.ZipInfo(entry), Path(f"in/{name}.png").read_bytes())
            masks.writestr(zipfile.ZipInfo(entry), Path(f"masks/{name}.png").read_bytes())
    assert sample(image="in.zip", mask="masks.zip", batch_size=1)[0] == 0
    assert hidden() == sorted(["a.png", "sub/b.png", absolute.lstrip("/")])
    assert not Path(absolute).exists()
    assert not np.array_equal(read("out/a.png"), read("out" + absolute)), "another name has other noise"
    sample(output="plain", batch_size=1)
    assert Path("plain/a.png").read_bytes() == Path("out/a.png").read_bytes()


def test_a_generator_draws_the_mask_by_seed_and_name(sample):
    make_inputs(["a.png", "b.png"])
    assert sample("--save_mask", mask="box", output="one")[0] == 0
    assert sample("--save_mask", mask="box", image="in/b.png", output="two")[0] == 0
    with Image.open("one/a-mask.png") as a, Image.open("one/b-mask.png") as b, Image.open("two/b-mask.png") as again:
        assert np.asarray(b).mean() == 255 / 4, "a box of half the side"
        assert np.array_equal(np.asarray(b), np.asarray(again))
        assert not np.array_equal(np.asarray(a), np.asarray(b))


def test_the_polarity_is_that_of_the_file(sample):
    make_inputs(["a.png"])
    save("inverted/a.png", mask_image(1 - HOLE))
    sample(output="one")
    _, _, err = sample(mask="inverted", output="two", mask_polarity="white_is_known")
    assert "inverted" not in err.replace("masks", "")
    assert np.array_equal(read("one/a.png"), read("two/a.png"))
    assert "looks inverted" in sample(mask="inverted", output="three")[2]


def test_the_number_of_network_calls_is_printed_beforehand(sample, monkeypatch):
    make_inputs(["a.png", "b.png"], (25, 33))
    calls = []
    estimate = UNetDenoiser.denoise

    def counting(self, x, noise):
        calls.append(len(x))
        return estimate(self, x, noise)

    monkeypatch.setattr(UNetDenoiser, "denoise", counting)
    code, _, err = sample(size_policy="crop", num_samples=3, steps=2, margin=5, batch_size=4)
    assert code == 0
    assert f": {sum(calls)} network calls" in err
    assert f"{sum(calls)} of {sum(calls)} network calls" in err
    assert sum(calls) > 2 * 3 * 2


def test_finished_files_are_skipped_unless_overwritten(sample):
    make_inputs()
    sample()
    Path("out/b.png").unlink()
    before = Path("out/a.png").stat().st_mtime_ns
    code, out, err = sample()
    assert (code, out) == (0, ["out/b.png"])
    assert "skipped 1 of 2 images" in err
    assert Path("out/a.png").stat().st_mtime_ns == before
    code, out, err = sample()
    assert (code, out) == (0, [])
    assert "skipped 2 of 2 images, finished before\n" in err
    code, out, _ = sample("--overwrite")
    assert (code, out) == (0, ["out/a.png", "out/b.png"])
    code, out, _ = sample("--raw")
    assert (code, out) == (0, ["out/a.png", "out/b.png"]), "what was asked for is not all there"
    assert hidden() == ["a-raw.png", "a.png", "b-raw.png", "b.png"]


def test_a_batch_size_does_not_change_the_files_beyond_rounding(sample):
    make_inputs([f"{i}.png" for i in range(5)])
    sample(output="one", batch_size=1)
    sample(output="four", batch_size=4)
    for name in hidden("one"):
        assert np.abs(read(f"one/{name}") - read(f"four/{name}")).max() <= 1


# ---- sample.py: failures -------------------------------------------------------------------------


def test_some_failures_are_listed_and_the_others_written(sample):
    make_inputs(["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"])
    Path("in/b.png").write_bytes(b"no image")
    content = Path("in/c.png").read_bytes()
    Path("in/c.png").write_bytes(content[: len(content) // 2])
    Path("masks/d.png").unlink()
    save("masks/e.png", Image.new("L", (SIZE + 1, SIZE)))
    Path("masks/f.png").write_bytes(b"no mask")
    code, out, err = sample()
    assert (code, out) == (3, ["out/a.png"])
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[1].strip() for line in failed] == [f"in/{name}.png" for name in "bcdef"]
    assert failed[0].count("in/b.png") == 1
    assert "no mask for d.png" in failed[2]
    assert f"{SIZE + 1}x{SIZE}" in failed[3]
    assert err.splitlines()[-1] == "5 of 6 images failed"
    assert "Traceback" not in err
    assert hidden() == ["a.png"]


@pytest.mark.parametrize("kind", ["in", "masks"])
def test_an_image_that_is_damaged_after_planning_is_one_failure(sample, monkeypatch, kind):
    make_inputs(["a.png", "b.png", "c.png"])

    def counted(*arguments):
        result = count_windows(*arguments)
        Path(kind, "b.png").write_bytes(b"no image")
        return result

    monkeypatch.setattr("rad.cli.sample.run.count_windows", counted)
    code, out, err = sample(batch_size=1)
    assert (code, out) == (3, ["out/a.png", "out/c.png"])
    (failed,) = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert failed.startswith("failed: in/b.png by ")
    assert err.splitlines()[-1] == "1 of 3 images failed"


def test_a_damaged_mask_in_a_zip_is_one_failure(sample):
    make_inputs()
    with zipfile.ZipFile("masks.zip", "w") as masks:
        masks.write("masks/a.png", "a.png")
        masks.write("masks/b.png", "b.png")
    content = bytearray(Path("masks.zip").read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255  # of a.png: its checksum no longer fits
    Path("masks.zip").write_bytes(content)
    code, out, err = sample(mask="masks.zip")
    assert (code, out) == (3, ["out/b.png"])
    assert "Traceback" not in err


def test_failures_without_a_result_exit_with_2(sample):
    make_inputs()
    Path("masks/a.png").unlink()
    Path("masks/b.png").write_bytes(b"")
    code, out, err = sample()
    assert (code, out) == (2, [])
    assert err.count("failed: ") == 2
    code, _, err = sample(mask="box", image="in/a.png", output="x.png", size_policy="crop", margin=50)
    assert code == 2
    assert "margin" in err


def test_an_unwritable_output_is_a_failure(sample):
    make_inputs(["a.png", "sub/b.png"])
    Path("out").mkdir()
    Path("out/sub").write_text("a file")
    code, out, err = sample()
    assert (code, out) == (3, ["out/a.png"])
    assert "cannot be written" in err


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"steps": 0}, ["steps", "1000"]),
        ({"steps": 1001}, ["steps", "1000"]),
        ({"steps": "many"}, ["--steps", "many"]),
        ({"eta": 2}, ["eta", "1 (DDPM)"]),
        ({"num_samples": 0}, ["--num_samples"]),
        ({"batch_size": -1}, ["--batch_size"]),
        ({"method": "magic"}, ["magic", "replacement"]),
        ({"precision": "fp8"}, ["fp8", "bf16"]),
        ({"size_policy": "stretch"}, ["stretch", "crop"]),
        ({"mask": "scribble"}, ["scribble", "box", "perlin"]),
        ({"mask": "empty"}, ["no images in empty"]),
        ({"mask": "twice"}, ["a.jpg", "a.png"]),
        ({"image": "nowhere"}, ["nowhere"]),
        ({"image": "empty"}, ["no images in empty"]),
        ({"image": "twins"}, ["twice", "out/a.png"]),
        ({"image": "broken.zip"}, ["broken.zip"]),
        ({"image": "in/a.png", "output": "result.jpg"}, ["result.jpg", "PNG"]),
        ({"image": "in/a.png", "output": "in/a.png"}, ["write over the input in/a.png"]),
        ({"image": "in/a.png", "output": "in"}, ["write over the input in/a.png"]),
        ({"image": "in/a.png", "mask": "masks/a.png", "output": "masks/a.png"}, ["write over the input masks/a.png"]),
        ({"output": "in"}, ["--output in"]),
        ({"output": "in/results"}, ["input of the next run"]),
        ({"output": "in/a.png"}, ["--output in/a.png"]),
        ({"output": "file/deep"}, ["there is a file"]),
        ({"device": "nonsense"}, ["nonsense", "cpu"]),
        ({"device": "meta"}, ["meta"]),
        ({"checkpoint": "nowhere"}, ["nowhere"]),
        ({"checkpoint": "runs/x/checkpoints/step=3.ckpt"}, ["step=3.ckpt", "does not exist", "models beside it: none"]),
        ({"checkpoint": "empty"}, ["empty"]),
        ({"base": "nowhere"}, ["nowhere"]),
        ({"colour": "blue"}, ["--colour"]),
    ],
)
def test_unusable_options_give_one_line_and_exit_2(sample, options, parts):
    make_inputs()
    Path("empty").mkdir()
    Path("file").write_text("")
    Path("broken.zip").write_bytes(b"PK\x03\x04 broken")
    save("twins/a.png", random_image(SIZE, SIZE))
    save("twins/a.jpg", random_image(SIZE, SIZE))
    shutil.copytree("twins", "twice")
    code, out, err = sample(**options)
    assert (code, out) == (2, [])
    assert_one_error(err, *parts)
    assert not Path("out").exists()


def test_raw_and_mask_files_do_not_collide_with_other_images_either(sample):
    make_inputs(["x.png", "x-raw.png"])
    code, _, err = sample("--raw")
    assert code == 2
    assert_one_error(err, "twice", "x-raw.png")


def test_a_mask_beside_its_image_is_not_overwritten(sample):
    make_inputs(["x.png"])
    shutil.copy("masks/x.png", "x-mask.png")
    before = Path("x-mask.png").read_bytes()
    code, _, err = sample(
        "--save_mask", image="in/x.png", mask="x-mask.png", output="x.png", mask_polarity="white_is_known"
    )
    assert code == 2
    assert_one_error(err, "write over the input x-mask.png")
    assert Path("x-mask.png").read_bytes() == before


def test_a_base_model_is_for_the_other_methods(sample, base, adapter):
    make_inputs(["a.png"])
    code, _, err = sample(checkpoint=base)
    assert code == 2
    assert_one_error(err, "needs an adapter", "replacement")
    assert sample(checkpoint=base, method="replacement", output="one")[0] == 0
    assert sample(method="replacement", output="two")[0] == 0
    assert Path("one/a.png").read_bytes() == Path("two/a.png").read_bytes()


def test_several_methods_write_a_folder_each_on_equal_noise_and_a_sheet(sample):
    make_inputs()
    code, out, err = sample("--method", "rad", "replacement", "mean", "--set", "replacement.corrections=1", steps=2)
    assert code == 0, err
    names = ("rad", "replacement", "mean")
    assert out == [f"out/{name}/{image}.png" for name in names for image in "ab"] + ["out/methods.png"]
    assert "replacement with 2 steps (ddpm, even): 8 network calls" in err
    assert "replacement: 8 NFE" in err
    assert "peak memory" in err
    assert sample(output="alone", steps=2)[0] == 0
    assert Path("alone/a.png").read_bytes() == Path("out/rad/a.png").read_bytes()
    with Image.open("out/methods.png") as sheet:
        side = 128  # images are shown at this size at least, 16x16 ones by whole pixels
        assert sheet.size == (5 * (side + 4) + 4, 18 + 2 * (side + 4))
        cells = [
            np.asarray(sheet)[18 : 18 + side : 8, 4 + i * (side + 4) : 4 + i * (side + 4) + side : 8] for i in range(5)
        ]
    given = np.asarray(Image.open("in/a.png"))
    hole = HOLE[0].numpy() > 0
    assert np.array_equal(cells[4], given)
    assert np.array_equal(cells[0][~hole], given[~hole])
    assert (cells[0][hole] == 128).all()
    for cell, name in zip(cells[1:4], names, strict=True):
        assert np.array_equal(cell, np.asarray(Image.open(f"out/{name}/a.png")))
    again = sample("--method", "rad", "replacement", "mean", "--set", "replacement.corrections=1", steps=2)
    assert again[:2] == (0, [])
    assert "replacement: skipped 2 of 2 images" in again[2]


def test_a_budget_sets_and_reports_the_steps(adapter, capsys):
    make_inputs(["a.png"])
    words = f"--checkpoint {adapter} --image in --mask masks --output out --method replacement --budget_nfe 7"
    assert cli.sample([*words.split(), "--set", "replacement.corrections=1"]) == 0
    err = capsys.readouterr().err
    assert "replacement: 3 steps for a budget of 7: 6 network calls, 0 VJP" in err
    assert cli.sample([*words.split(), "--strength", "0.5", "--overwrite"]) == 0
    assert "replacement: 15 steps for a budget of 7: 7 network calls, 0 VJP" in capsys.readouterr().err
    assert cli.sample([*words.split(), "--steps", "3", "--overwrite"]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--set rad.speed=2", ["rad has no setting 'speed'"]),
        ("--set repaint.jump_length=2", ["'repaint' is not among those of --method"]),
        ("--method replacement --set replacement.ratio=-1", ["ratio is -1", "0 or more"]),
        ("--method rad replacement --output out.png", ["several methods", "folder"]),
    ],
)
def test_bad_settings_of_methods_give_one_line_and_exit_2(sample, words, parts):
    make_inputs()
    code, out, err = sample(*words.split())
    assert (code, out) == (2, [])
    assert_one_error(err, *parts)


def test_the_sheet_is_an_output_like_the_others(sample):
    make_inputs(["methods.png"])
    before = Path("in/methods.png").read_bytes()
    code, _, err = sample("--method", "rad", "mean", image="in/methods.png", mask="masks/methods.png", output="in")
    assert code == 2
    assert_one_error(err, "write over the input", "in/methods.png")
    assert Path("in/methods.png").read_bytes() == before
    Path("out/methods.png").mkdir(parents=True)
    code, _, err = sample("--method", "rad", "mean")
    assert code == 2
    assert_one_error(err, "out/methods.png", "is a folder")


def test_a_lost_contact_sheet_is_rewritten_without_failed_images(sample):
    make_inputs()
    assert sample("--method", "mean", "rad")[0] == 0
    Path("out/methods.png").unlink()
    assert sample("--method", "mean", "rad")[:2] == (0, ["out/methods.png"])
    Path("in/b.png").write_text("no image")
    code, out, err = sample("--method", "mean", "rad", output="other")
    assert (code, out) == (3, ["other/mean/a.png", "other/rad/a.png", "other/methods.png"])
    assert "1 of 2 images failed" in err
    with Image.open("other/methods.png") as sheet:
        assert sheet.height == 18 + 132
    code, out, err = sample("--method", "mean", "rad", "--overwrite")
    assert code == 3, "what an earlier run left of b is not counted as made"
    assert "out/rad/b.png" not in out
    assert "1 of 2 images failed" in err


def test_a_finished_image_that_cannot_be_read_any_more_is_kept(sample):
    make_inputs()
    assert sample()[0] == 0
    Path("out/a.png").unlink()
    Path("in/b.png").unlink()
    Path("in/b.png").symlink_to("missing.png")
    assert sample()[:2] == (0, ["out/a.png"])


def test_options_given_twice_add_up(sample):
    make_inputs(["a.png"])
    assert sample("--method", "rad", "--method", "mean")[1] == ["out/rad/a.png", "out/mean/a.png", "out/methods.png"]
    code, _, err = sample("--set", "rad.speed=1", "--set", "rad.depth=2", output="other")
    assert code == 2
    assert_one_error(err, "no setting 'speed'")


@pytest.mark.parametrize("words", ["--set nonsense", "--steps 0", "--eta 2", "--budget_nfe 9", "--margin -1"])
def test_bad_settings_are_reported_even_if_all_files_exist(sample, words):
    make_inputs(["a.png"])
    assert sample()[0] == 0
    code, _, err = sample(*words.split())
    assert code == 2
    assert_one_error(err, "--")


@pytest.mark.slow
def test_m2s_needs_a_coarse_model_whose_size_divides(sample, base, tmp_path):
    make_inputs(["a.png"])
    for size in (8, 12):
        save_base(tmp_path / f"coarse{size}", small_unet(size=size), betas=linear_betas(), half=False)
    options = ["--method", "m2s", "mean", "--set", "m2s.trips=0", f"m2s.coarse={tmp_path}/coarse8"]
    assert sample(*options, steps=9)[1] == ["out/m2s/a.png", "out/mean/a.png", "out/methods.png"]
    options[-1] = f"m2s.coarse={tmp_path}/coarse12"
    code, out, err = sample(*options, steps=9, output="other")
    assert (code, out) == (2, [])
    assert_one_error(err, "12x12", "divides: 1, 2, 4, 8")


def test_a_budget_that_covers_only_a_part_warns(adapter, capsys):
    make_inputs(["a.png"])
    words = f"--checkpoint {adapter} --image in --mask masks --output out --method repaint mean --budget_nfe 30"
    assert cli.sample(words.split()) == 0
    err = capsys.readouterr().err
    assert "repaint: 10 steps for a budget of 30: 10 network calls, 0 VJP; 11 steps would cost 101" in err
    assert "mean: 0 network calls" in err


def test_written_known_pixels_are_compared_with_the_input(tmp_path):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 9, 9)
    changed = np.array(image)
    changed[4, 4] ^= 255
    Image.fromarray(changed).save("inside.png")
    check_known(Path("inside.png"), image, hole[0].numpy())
    changed[12, 12, 0] ^= 1
    Image.fromarray(changed).save("outside.png")
    with pytest.raises(AssertionError, match=r"known pixels differ in outside\.png"):
        check_known(Path("outside.png"), image, hole[0].numpy())


def test_the_list_of_methods_needs_nothing_else(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.sample(["--list_methods"])
    assert stopped.value.code == 0
    assert "replacement" in capsys.readouterr().out


def test_settings_without_effect_are_reported(sample):
    make_inputs(["a.png"])
    assert "--margin has no effect" in sample(margin=2)[2]
    assert "--mask_polarity has no effect" in sample("--overwrite", mask="box", mask_polarity="white_is_known")[2]
    assert "warning" not in sample("--overwrite", size_policy="crop", margin=2)[2]


def test_too_little_memory_for_one_window_gives_one_line(sample, monkeypatch):
    make_inputs(["a.png"])

    def fails(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")

    monkeypatch.setattr(WindowFiller, "_fill_batch", fails)
    code, _, err = sample()
    assert code == 2
    assert_one_error(err, "memory", "bf16")


def test_an_interrupt_keeps_what_is_finished(sample, monkeypatch):
    make_inputs()
    original = WindowFiller._fill_batch
    batches = []

    def interrupted(self, *arguments):
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(WindowFiller, "_fill_batch", interrupted)
    code, out, err = sample(batch_size=1)
    assert (code, out) == (130, ["out/a.png"])
    assert err.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in err
    assert hidden() == ["a.png"]


def test_a_file_that_exists_is_always_whole(tmp_path, monkeypatch):
    def fails(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    write_image(tmp_path / "x.png", random_image(4, 4))
    before = (tmp_path / "x.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        write_image(tmp_path / "x.png", random_image(4, 4, seed=1))
    assert (tmp_path / "x.png").read_bytes() == before


def test_debugging_shows_the_traceback(sample, monkeypatch):
    monkeypatch.setenv("RAD_DEBUG", "1")
    with pytest.raises(ValueError, match="nowhere"):
        sample(image="nowhere")


def test_progress_is_ten_lines_at_most(capsys):
    with Progress(1000) as progress:
        for done in range(0, 1001, 8):
            progress.update(done)
    assert len(capsys.readouterr().err.splitlines()) == 10


def test_sampling_leaves_gradients_as_they_were(sample):
    make_inputs(["a.png"])
    sample()
    assert torch.is_grad_enabled()


# ---- train.py ------------------------------------------------------------------------------------


@pytest.fixture
def config(base):
    """A run of two steps in c.yaml; returns its content."""
    make_inputs(["a.png", "b.png", "c.png"])
    content = {
        "model": {"base": str(base), "lora": {"rank": 2, "alpha": 2}},
        "data": {"path": "in", "val_count": 0, "size": SIZE, "batch_size": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "rad.training.EMA"},
                {"class_path": "rad.training.Checkpoint", "init_args": {"every_n_train_steps": 1}},
            ],
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(content))
    return content


@pytest.fixture
def train(capsys):
    def call(*arguments):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code = cli.train(arguments)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return code, capsys.readouterr().err

    return call


def test_a_run_its_folder_and_its_end_to_end_use(config, train, sample):
    code, err = train("--config", "c.yaml")
    assert code == 0, err
    folder = Path("runs/c")
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["lora"]["rank"] == 2
    assert any(folder.glob("events.*"))
    assert {"step=1.ckpt", "step=1", "step=2.ckpt", "step=2", "step=2-ema", "last.ckpt"} <= {
        path.name for path in (folder / "checkpoints").iterdir()
    }
    assert sample(checkpoint=folder / "checkpoints" / "step=2-ema")[0] == 0

    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    code, err = train("--config", "c.yaml")
    assert code == 2
    assert_one_error(err, "earlier run", "--ckpt_path last", "--name")
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before

    code, err = train("--config", "runs/c/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3")
    assert code == 0, err
    assert (folder / "checkpoints" / "step=3").is_dir(), "a saved configuration belongs to its run"
    assert not (folder / "checkpoints" / "step=4.ckpt").exists()

    (folder / "checkpoints" / "step=1.ckpt").write_bytes(before[: len(before) // 2])
    code, err = train("--config=c.yaml", "--name=other", "--ckpt_path", "runs/c/checkpoints/step=1.ckpt")
    assert code == 2
    assert_one_error(err, "damaged")
    assert not Path("runs/other").exists()


def test_a_second_run_of_a_name_is_refused(config, train):
    with locked(Path("runs/c")):
        code, err = train("--config", "c.yaml")
        assert code == 2
        assert_one_error(err, f"runs/c is in use by process {os.getpid()} on ", "another --name")
        assert not (Path("runs/c/config.yaml")).exists()
    before = os.umask(0o007)
    try:
        assert train("--config", "c.yaml", "--trainer.max_steps", "1")[0] == 0
    finally:
        os.umask(before)
    assert not list(Path("runs/c").glob(".rad*"))
    adapter = Path("runs/c/checkpoints/step=1-ema")
    assert adapter.stat().st_mode & 0o777 == 0o770
    assert {path.stat().st_mode & 0o777 for path in (*adapter.iterdir(), *adapter.parent.glob("*.ckpt"))} == {0o660}


@pytest.mark.slow
def test_a_resumed_run_keeps_its_optimiser(config, train):
    code, err = train("--config", "c.yaml", "--model.optimizer.lr", "0.01")
    assert code == 0, err
    resume = ("--config", "c.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3", "--model.optimizer.lr")
    code, err = train(*resume, "0.01", "--model.optimizer", "torch.optim.SGD")
    assert code == 2
    assert_one_error(err, "AdamW", "SGD")
    code, err = train(*resume, "0.001")
    assert code == 0, err
    assert (
        "resumed at step 2; changed since the checkpoint: learning rate 0.01 -> 0.001, trainer.max_steps 2 -> 3" in err
    )
    restored = Diffusion.load_from_checkpoint("runs/c/checkpoints/step=3.ckpt", weights_only=True)
    assert restored.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.001


def test_a_model_trained_as_a_whole_is_for_rad_alone(config, train, sample, base):
    code, err = train("--config", "c.yaml", "--model.lora", "null", "--model.optimizer.lr", "0.01")
    assert code == 0, err
    whole = Path("runs/c/checkpoints/step=2")
    assert json.loads((whole / "rad_config.json").read_text())["process"] == "region_aware"
    make_inputs()
    assert sample(checkpoint=whole)[0] == 0
    code, _, err = sample("--overwrite", checkpoint=whole, method="ddnm")
    assert code == 2
    assert_one_error(err, "ddnm", "unconditional_share", str(base))
    with pytest.raises(ValueError, match="has no effect"):
        Inpainter.from_pretrained(whole, base=base)
    inpainter = Inpainter.from_pretrained(whole)
    assert inpainter.model.adapted is None
    assert inpainter.model.info.size == (SIZE, SIZE)
    filled = np.asarray(Image.open("out/a.png"))
    again = inpainter("in/a.png", "masks/a.png", steps=1, names=["a.png"]).images[0]
    assert np.array_equal(filled, np.asarray(again))


@pytest.mark.slow
def test_the_printed_configuration_trains_under_any_name(config, train, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.train(["--config", "c.yaml", "--print_config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["data"]["size"] == SIZE
    Path("printed.yaml").write_text(printed)
    code, err = train("--config", "printed.yaml", "--name", "fresh", "--trainer.max_steps", "1")
    assert code == 0, err
    assert Path("runs/fresh/checkpoints/last.ckpt").exists()
    assert not Path("runs/c").exists()
    code, err = train("--config", "c.yaml", "--config", "printed.yaml", "--trainer.max_steps", "1")
    assert code == 0, err
    assert Path("runs/c/checkpoints/last.ckpt").exists(), "the printed configuration holds its name"


@pytest.mark.spread(8)
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--config"]),
        (["--config"], ["configuration"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "rad_nature32.yaml"]),
        (["--config", "c.yaml", "--model.colour", "blue"], ["--model.colour"]),
        (["--config", "c.yaml", "--config", "unknown.yaml"], ["modle"]),
        (["--config", "broken.yaml"], ["parsing config"]),
        (["--config", "c.yaml", "--config", "empty.yaml"], ["model.process.phase2 is empty"]),
        (["--config", "no_trainer.yaml"], ["trainer is empty"]),
        (["--config", "c.yaml", "--config", "no_rank.yaml"], ["model.lora.rank is empty"]),
        (["--config", "c.yaml", "--model.process.phase2", "much"], ["model.process.phase2", "much"]),
        (["--config", "c.yaml", "--model.process.phase2", "7"], ["phase2"]),
        (["--config", "c.yaml", "--model.base", "/nowhere"], ["/nowhere"]),
        (["--config", "c.yaml", "--data.path", "nowhere"], ["nowhere"]),
        (["--config", "c.yaml", "--data.val_count", "3"], ["val_count"]),
        (["--config", "c.yaml", "--trainer.accelerator", "tpu"], ["--help"]),
        (["--config", "c.yaml", "--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
        (["--config", "c.yaml", "--ckpt_path", "last"], ["holds no checkpoint", "auto"]),
        (["--config", "c.yaml", "--name="], ["--name"]),
        (["--config", "c.yaml", "--optimizer", "SGD"], ["--optimizer"]),
        (["--config", "c.yaml", "--model.lora.rank", "0"], ["error: lora.rank is 0"]),
        (
            ["--config", "c.yaml", "--model.process", "tdpaint"],
            ["error: model.process is a group", "--model.process.SETTING"],
        ),
        (["--config", "c.yaml", "--model.optimizer", "torch.optim.Foo"], ['"model.optimizer": module', "Foo"]),
        (["--config", "c.yaml", "--config", "plateau.yaml"], ["ReduceLROnPlateau", "optimiser steps"]),
    ],
)
def test_untrainable_settings_give_one_line_and_exit_2(config, train, arguments, parts):
    Path("unknown.yaml").write_text("modle:\n  base: x\n")
    Path("broken.yaml").write_text("model: [1\n")
    Path("empty.yaml").write_text("model:\n  process:\n    phase2:\n")
    Path("no_trainer.yaml").write_text(yaml.safe_dump({**config, "trainer": None}))
    plateau = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}
    Path("plateau.yaml").write_text(yaml.safe_dump({"model": {"lr_scheduler": plateau}}))
    Path("no_rank.yaml").write_text("model:\n  lora:\n    rank:\n")
    code, err = train(*arguments)
    assert code == 2, err
    assert_one_error(err, *parts)
    assert not list(Path(".").rglob("*.ckpt"))


def test_a_bare_name_is_found_in_configs(tmp_path):
    assert cli.find_config("rad_nature32.yaml") == str(ROOT / "configs" / "rad_nature32.yaml")
    Path("configs").mkdir()
    Path("configs/rad_nature32.yaml").write_text("seed_everything: 0\n")
    assert cli.find_config("rad_nature32.yaml") == "configs/rad_nature32.yaml", "the working folder goes first"
    Path("rad_nature32.yaml").write_text("seed_everything: 0\n")
    assert cli.find_config("rad_nature32.yaml") == "rad_nature32.yaml", "a file as given goes before all"


def test_a_run_has_the_name_of_its_configuration_by_default():
    Path("x.yaml").write_text("seed_everything: 0\n")
    resolve = cli.resolve_train_arguments
    assert resolve(["--config=x.yaml", "--a", "1"]) == ["--name", "x", "--config", "x.yaml", "--a", "1"]
    assert resolve(["-c", "x.yaml", "--name", "y"]) == ["--name", "x", "--config", "x.yaml", "--name", "y"]
    assert resolve(["--help"]) == ["--help"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_that_ships_is_valid(path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.train(["--config", path.name, "--print_config"])
    assert stopped.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == path.stem


def test_the_configuration_of_the_base_that_ships_builds_it():
    config = yaml.safe_load((ROOT / "configs/base_nature32.yaml").read_text())
    shipped = load_file(ROOT / "checkpoints/base-nature32/unet/diffusion_pytorch_model.safetensors")
    built = UNet2DModel(**config["model"]["scratch"]["unet"]).state_dict()
    assert {name: value.shape for name, value in built.items()} == {
        name: value.shape for name, value in shipped.items()
    }


# ---- as programs, from another folder ------------------------------------------------------------


def program(name, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [sys.executable, str(ROOT / name), *map(str, arguments)], environment


@pytest.mark.slow
def test_sample_as_a_program(adapter):
    make_inputs(["a.png"])
    options = {"checkpoint": adapter, "image": "in", "mask": "masks", "output": "out", "steps": 1}
    command, environment = program("sample.py", *(word for name in options for word in (f"--{name}", options[name])))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "out/a.png\n"), done.stderr
    assert "warn" not in done.stderr.lower()


def test_train_as_a_program_without_a_configuration():
    command, environment = program("train.py")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert_one_error(done.stderr, "--config")


@pytest.mark.slow
def test_train_as_a_program_is_stopped_by_ctrl_c(config):
    command, environment = program("train.py", "--config", "c.yaml", "--trainer.max_steps", 100000)
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a shell's background jobs ignore it
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as running:
        try:
            deadline = time.monotonic() + 240
            while not Path("runs/c/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            err = running.communicate(timeout=240)[1]
        finally:
            running.kill()
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted")
    assert json.loads(next(Path("runs/c/checkpoints").glob("step=*/rad_config.json")).read_text())["trained_steps"] >= 1
