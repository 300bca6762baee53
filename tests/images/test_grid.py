"""Contact sheets show every image unchanged in its cell, and labels where they belong."""

import numpy as np
import pytest
from PIL import Image

from rad.images import contact_sheet


def random_images(*sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def test_cells_show_whole_pixels_and_missing_images_leave_a_gap():
    square, wide = random_images((16, 16), (64, 32))
    sheet = np.asarray(contact_sheet([[square, None], [wide]], cell_size=64, padding=5, background=200))
    assert sheet.shape == (2 * 69 + 5, 2 * 69 + 5, 3)
    assert np.array_equal(sheet[5:69:4, 5:69:4], np.asarray(square)), "four times as large"
    assert np.array_equal(sheet[74:106, 5:69], np.asarray(wide))
    assert (sheet[:, 69:] == 200).all()
    assert (sheet[106:] == 200).all()


def test_a_large_image_fits_its_cell():
    (large,) = random_images((300, 150))
    sheet = np.asarray(contact_sheet([[large]], cell_size=64, padding=3, background=0))
    assert sheet.shape == (70, 70, 3)
    assert sheet[3:35, 3:67].mean() == pytest.approx(127.5, abs=5)
    assert sheet[36:].max() == 0


def test_labels_wrap_above_their_columns_and_captions_lie_below():
    images = random_images((32, 32), (32, 32))
    labels = ["rad", "repaint,steps=250,jump_length=10,jump_n_sample=10"]
    head = (
        contact_sheet([images], column_labels=labels, cell_size=96).height
        - contact_sheet([images], cell_size=96).height
    )
    assert head > 2 * 18, "the long label takes several lines"
    sheet = np.asarray(contact_sheet([images], column_labels=labels, cell_size=96))[: head + 4]
    ink = (sheet < 128).any((0, 2))
    assert ink[4:100].any()
    assert ink[104:200].any()
    assert not ink[:4].any()
    captioned = np.asarray(contact_sheet([images], captions=[["", "second"]], title="title", cell_size=96))
    assert captioned.shape[0] == 18 + 96 + 18 + 4
    assert (captioned[114:, 104:] < 128).any()
    assert (captioned[114:, :104] == 255).all()
    assert (captioned[:18] < 128).any()
