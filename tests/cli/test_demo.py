"""The image of `make demo`, from the shipped adapter, with two network calls per image."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from rad.cli import demo
from rad.images.codecs import open_image

SHIPPED = str(Path(__file__).resolve().parents[2] / "checkpoints" / "rad-nature32")


@pytest.mark.parametrize("size", [128, pytest.param(512, marks=pytest.mark.slow)])
def test_demo_writes_its_panel_and_prints_the_path_last(size, tmp_path, monkeypatch, capsys):
    panel = tmp_path / "panel.png"
    monkeypatch.setattr(demo, "open_image", lambda path: open_image(path).resize((size, size)))
    arguments = ["demo", "--adapter", SHIPPED, "--shipped", SHIPPED, "--output", str(panel), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert demo.main() == 0  # which asserts that the known pixels of the restored photograph are unchanged
    assert capsys.readouterr().out.splitlines()[-1] == str(panel)
    with Image.open(panel) as image:
        image.load()
        assert image.width >= 2 * size
        grey = 128
        hole = image.getpixel((demo.GAP + demo.TILE // 2, demo.HEAD + demo.TILE // 2))
        assert all(abs(value - grey) <= 1 for value in hole), "the first tile shows its centre hole in grey"
        assert image.getpixel((demo.GAP + demo.TILE + demo.GAP + demo.TILE // 2, demo.HEAD + demo.TILE // 2)) != hole


def test_held_out_crops_are_not_in_the_training_data():
    from rad.data.module import ImageDataModule

    data = ImageDataModule("skimage", size=32, crop="random_scale", val_count=4)
    data.setup("fit")
    assert not {p.name for p in data.train_images} & {p.name for p in data.val_images}
    crops = demo.held_out_crops(4, size=32)
    assert crops.shape == (4, 3, 32, 32)
    assert 0 <= float(crops.min()) < 0.2
    assert 0.6 < float(crops.max()) <= 1
