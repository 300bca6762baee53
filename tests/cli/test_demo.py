"""The panel of `make demo`, from the shipped adapter, with two network calls per crop."""

import sys
from pathlib import Path

from PIL import Image

from rad.cli import demo

SHIPPED = str(Path(__file__).resolve().parents[2] / "checkpoints" / "rad-nature32")


def test_the_demo_writes_its_panel_and_prints_the_path_last(tmp_path, monkeypatch, capsys):
    panel = tmp_path / "panel.png"
    arguments = ["demo", "--adapter", SHIPPED, "--shipped", SHIPPED, "--output", str(panel), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert demo.main() == 0  # which checks the known pixels of the restored photograph
    assert capsys.readouterr().out.splitlines()[-1] == str(panel)
    with Image.open(panel) as image:
        image.load()
        assert image.width > 1024
        first, second = (
            image.getpixel((4 + column * (demo.TILE + 4) + demo.TILE // 2, 18 + demo.TILE // 2)) for column in (0, 1)
        )
        assert all(abs(value - 128) <= 1 for value in first), "the first tile shows its centre hole in grey"
        assert second != first


def test_held_out_crops_are_outside_the_training_set():
    from rad.data.module import ImageDataModule

    data = ImageDataModule("skimage", size=32, crop="random_scale", val_count=4)
    data.setup("fit")
    assert not {p.name for p in data.train_images} & {p.name for p in data.val_images}
    crops = demo.held_out_crops(4, size=32)
    assert crops.shape == (4, 3, 32, 32)
    assert 0 <= float(crops.min()) < 0.2
    assert 0.6 < float(crops.max()) <= 1
