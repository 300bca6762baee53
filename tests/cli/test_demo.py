"""`make demo`: training and held-out parts are disjoint, and the panel shows what the models fill."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rad.cli import demo

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "checkpoints" / "photos")


def test_training_parts_and_held_out_crops_are_disjoint(tmp_path, monkeypatch, capsys):
    positions = np.arange(400, dtype=np.uint16)
    image = Image.fromarray(np.broadcast_to((positions % 256).astype(np.uint8)[None, :, None], (200, 400, 3)).copy())
    monkeypatch.setattr(demo, "photograph", lambda file: image)
    monkeypatch.setattr(demo, "MATERIALS", ("one.png", "two.jpg"))
    monkeypatch.setattr(demo, "CROP", 96)
    assert demo.main(["--prepare", str(tmp_path / "images")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'images'}\n"
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["one.png", "two.png"]
    trained = Image.open(tmp_path / "images" / "one.png")
    assert trained.size == (280, 200)
    crops = demo.held_out_crops()
    assert [crop.size for crop in crops] == 2 * demo.EXAMPLES * [(96, 96)]
    for crop in crops:
        first = int(np.asarray(crop)[0, 0, 0]) + 256  # columns from 256 on
        assert first >= trained.width
        assert first + crop.width <= image.width


def test_the_restored_photographs_are_not_trained_on():
    assert not {damage.file for damage in demo.PHOTOGRAPHS} & set(demo.MATERIALS)


def test_make_demo_reads_the_checkpoint_that_its_configuration_writes():
    steps = yaml.safe_load((ROOT / "configs" / "rad_demo.yaml").read_text())["trainer"]["max_steps"]
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    assert re.findall(r"step=(\d+)-ema", recipe) == [str(steps)]


def test_psnr_counts_hole_pixels_only():
    original, result = Image.new("RGB", (4, 4), (100, 100, 100)), Image.new("RGB", (4, 4), (110, 110, 110))
    result.paste((255, 0, 0), (0, 0, 4, 2))
    hole = torch.zeros(1, 4, 4)
    hole[:, 2:] = 1
    assert demo.psnr([result], [original], [hole]) == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    assert demo.psnr([original], [original], [hole]) == np.inf


@pytest.mark.slow
def test_the_demo_writes_its_panel_and_prints_the_path_last(tmp_path, monkeypatch, capsys):
    photograph = demo.photograph
    monkeypatch.setattr(demo, "photograph", lambda file: photograph(file).crop((100, 100, 228, 228)))
    monkeypatch.setattr(demo, "CROP", 32)
    panel = tmp_path / "panel.png"
    monkeypatch.setattr(sys, "argv", ["demo", "--adapter", MODEL, "--model", MODEL, "--output", str(panel)])
    assert demo.main() == 0  # which checks the known pixels of the photographs
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == str(panel)
    before, after = re.findall(r"([\d.]+) dB (?:before|after)", output.err)[:2]
    assert before == after, "both are the same model"
    pixels = np.asarray(Image.open(panel))
    first, filled = (
        pixels[demo.LINE : demo.LINE + 128, :128],
        pixels[demo.LINE : demo.LINE + 128, 128 + demo.GAP :][:, :128],
    )
    original = np.asarray(demo.photograph(demo.PHOTOGRAPHS[0].file))
    changed = (first != original).any(-1)
    assert 0.01 < changed.mean() < 0.5
    assert (first[changed] == 255).all()
    assert (filled[~changed] == original[~changed]).all()
    assert (filled[changed] != 255).any()
