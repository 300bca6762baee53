"""Tutorials and how-to pages: their `rad` commands parse, and the code of five pages runs, with shortened options."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

from rad.cli.sample.options import read_options as sample_options
from rad.evaluation.__main__ import parser as evaluate_parser
from rad.studio.options import read_options as studio_options
from tests.pages import DOCS, blocks, commands, run_command, run_python

ROOT = DOCS.parent
TUTORIALS = ("compare-methods", "add-a-method", "train-on-a-cluster", "serve")
PAGES = [f"tutorials/{name}.md" for name in TUTORIALS] + [
    f"how-to/{name}.md" for name in ("draw-a-mask", "image-sizes", "reproducibility", "offline", "memory", "comfyui")
]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small photograph, `photo.png`, and `mask.png`."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((72, 48), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    hole = np.zeros((48, 72), np.uint8)
    hole[20:26, 10:40] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def check_fill(result: str, *, right: int = 0) -> None:
    """The result keeps photo.png outside mask.png, and has another fill inside; `right`: new pixels at the right."""
    photo, filled, hole = pixels("photo.png"), pixels(result), pixels("mask.png")[..., 0] == 255
    assert filled.shape == (photo.shape[0], photo.shape[1] + right, 3)
    inside = filled[:, : photo.shape[1]]
    assert np.array_equal(inside[~hole], photo[~hole])
    assert right or (inside[hole] != photo[hole]).any()


def test_every_command_parses():
    """`rad train` is parsed by a slow test; files that the pages only name do not exist here."""
    kinds = set()
    for page in PAGES:
        for kind, *words in commands(page):
            kinds.add(kind)
            words = words[: words.index(">")] if ">" in words else words
            if kind == "sample" and not {"--list_methods", "--config"} & set(words):
                words = [word for word in words if word != "--print_config"]
                options = sample_options([re.sub(r"^(\w+\.py:\w+|projection(?=@))", "mcg", word) for word in words])
                assert options.part or options.mask or options.extend
                assert options.baseline in (None, *options.method)
            elif kind == "evaluate":
                assert evaluate_parser().parse_args(words).results
            elif kind == "studio":
                assert studio_options(words).port == 7860
    assert {"sample", "evaluate", "studio", "train", "export"} <= kinds


@pytest.mark.slow
def test_training_commands_parse(capsys: pytest.CaptureFixture[str]):
    from rad.__main__ import main

    found = [words for page in PAGES for words in commands(page) if words[0] == "train"]
    assert len(found) > 5
    for words in found:
        if (ROOT / "configs" / words[2]).is_file():
            with pytest.raises(SystemExit) as stopped:
                main([*words, "--print_config"])
            assert stopped.value.code in (0, None), words
            assert "model:" in capsys.readouterr().out


@pytest.mark.slow
def test_methods_are_compared_and_the_table_is_printed(desk: Path, capsys: pytest.CaptureFixture[str]):
    page = "tutorials/compare-methods.md"
    create, other, table = blocks(page, "python")
    presets, equal, evaluate = commands(page)
    run_python(page, create)
    assert len(list((desk / "originals").iterdir())) == 12
    run_command([re.sub("^(rad|ddnm|diffpir)$", r"\1@2", word) for word in presets], "--limit", "6")
    run_command(equal, "--limit", "6", "--budget_nfe", "6")
    run_python(page, other)
    assert len(list((desk / "theirs").iterdir())) == 6
    for file in (desk / "theirs").iterdir():  # the other system has kept the known pixels
        known = pixels(desk / "presets" / "wide" / "masks" / file.name)[..., 0] == 0
        assert np.array_equal(pixels(file)[known], pixels(desk / "originals" / file.name)[known])
    from rad.evaluation.__main__ import main as evaluation

    shortened = [word.replace("presets/wide/rad", "presets/wide/rad@2") for word in evaluate[1:]]
    assert evaluation(shortened) in (0, 3)  # 3: --limit leaves originals without results
    assert "theirs" in (desk / "against-theirs" / "sets.csv").read_text()
    capsys.readouterr()
    run_python(page, table)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 2 * (5 + 4)  # two mask sets
    assert all("[" in row and row.endswith("dB |") for row in rows)


@pytest.mark.slow
def test_a_mask_is_drawn_and_a_painted_copy_is_read(desk: Path):
    page = "how-to/draw-a-mask.md"
    photo = Image.fromarray(skimage.data.chelsea()[:240, :360])
    photo.save("photo.png")
    for code in blocks(page, "python"):
        run_python(page, code)
    mask = pixels("mask.png")[..., 0]
    assert mask[41, 251] == mask[110, 200] == 255
    assert mask[0, 0] == 0
    assert (pixels("mask-labels.png")[40:60, 80:120] == 255).all()
    photo.save("photo.jpg", quality=92)
    marked = Image.open("photo.jpg")
    ImageDraw.Draw(marked).rectangle((100, 60, 140, 90), fill=(255, 0, 0))
    marked.save("marked.jpg", quality=85)
    for words in commands(page):
        run_command(words, "--steps", "1", "--save_mask")
    check_fill("filled.png")
    assert Path("preview/photo-overlay.png").is_file()
    hole = pixels("filled-marked-mask.png")[..., 0] == 255
    assert hole[60:91, 100:141].all()
    assert hole.sum() < 2 * 41 * 31


@pytest.mark.slow
def test_sizes(desk: Path):
    page = "how-to/image-sizes.md"
    for words in commands(page):
        run_command(words, "--steps", "1")
    for name in ("filled.png", "cropped.png", "zoomed.png", "pyramid.png", "large.png", "resized.png"):
        check_fill(name)
    assert pixels("larger.png").shape == (48, 88, 3)
    assert np.array_equal(pixels("larger.png")[:, :72], pixels("photo.png"))
    for code in blocks(page, "python"):
        names = run_python(page, code)
    assert names["wider"].size == (88, 48)


@pytest.mark.slow
def test_results_are_reproduced(desk: Path, capsys: pytest.CaptureFixture[str]):
    page = "how-to/reproducibility.md"
    first, again, printed, third = [words for words in commands(page) if words[0] == "sample"]
    for words in (first, again):
        run_command(words, "--steps", "1")
    capsys.readouterr()
    words = printed[: printed.index("--print_config") + 1]
    with pytest.raises(SystemExit):
        run_command([*words[:-1], "--steps", "1", "--print_config"])
    Path("fill.yaml").write_text(capsys.readouterr().out)
    run_command(third)
    read, compare = blocks(page, "python")
    assert run_python(page, read)["settings"]["seed"] == 0
    run_python(page, compare)
    assert "largest difference: 0\n" in capsys.readouterr().out
    assert np.array_equal(pixels("third.png"), pixels("first.png"))


@pytest.fixture
def address(desk: Path) -> Iterator[str]:
    """The address of `rad studio`, started by the page's first command on a free port."""
    page = "tutorials/serve.md"
    export, studio = commands(page)[:2]
    run_command([export[0], str(ROOT / export[1]), *export[2:]])
    words = [sys.executable, "-m", "rad", *studio, "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=_environment())
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().partition("/#token=")[0]
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(20)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_the_service_fills_as_on_the_page(address: str, capsys: pytest.CaptureFixture[str]):
    page = "tutorials/serve.md"
    local = "http://127.0.0.1:7860"
    (code,) = blocks(page, "python")
    assert local in code
    run_python(page, code.replace(local, address))
    assert re.search(r"done (\d+) of \1 network calls\n$", capsys.readouterr().out)
    check_fill("filled-by-api.png")
    curl = [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("curl")]
    assert len(curl) == 2
    for line in curl:
        subprocess.run(line.replace(local, address), shell=True, check=True, timeout=240)
    assert np.array_equal(pixels("filled.png"), pixels("filled-by-api.png"))
