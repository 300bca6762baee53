"""Mixtures draw their parts by weight; damage has a size in pixels, independent of the image's size."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy import ndimage

from rad.masks import MaskGenerator, Mixture, Part
from rad.masks.damage import Polylines, Text
from rad.masks.sets import read_set, write_set
from rad.masks.shapes import Box, CenterBox, Everything, Extreme, Half, Halves, make, photos


def generators(count, seed=0):
    return [torch.Generator().manual_seed(10_000 * seed + index) for index in range(count)]


# --- mixtures ---


def test_parts_come_as_often_as_their_weights_ask():
    parts = {1.0: Part(Everything(), weight=0.5), 0.5: Part(Half(), weight=2), 0.25: Part(CenterBox(), weight=1.5)}
    count = 4000
    shares = Mixture(tuple(parts.values()))(generators(count), 8, 8).mean((1, 2, 3))
    for area, part in parts.items():
        expected = part.weight / 4
        deviation = math.sqrt(expected * (1 - expected) / count)
        assert (shares == area).float().mean().item() == pytest.approx(expected, abs=4 * deviation)


@pytest.mark.parametrize("size", [(32, 32), (33, 46)])
def test_a_batch_equals_its_images_even_where_holes_are_drawn_again(size):
    mixture = Mixture((Part(Polylines(), 1, (0.05, 0.1)), Part(Box((0.1, 0.9)), 2, (0.2, 0.4)), Part(Text(), 1)))
    batch = mixture(generators(40), *size)
    assert batch.shape == (40, 1, *size)
    assert torch.equal(batch, torch.cat([mixture([generator], *size) for generator in generators(40)]))
    assert torch.equal(batch[7:], mixture(generators(40)[7:], *size))


def test_holes_outside_the_range_are_drawn_again_from_the_same_stream():
    mixture, again = Mixture((Part(Box((0.1, 1.0)), area_range=(0.3, 0.5)),)), 0
    for generator, other in zip(generators(50), generators(50), strict=True):
        hole = mixture([generator], 20, 30)
        assert 0.3 <= hole.mean() <= 0.5
        torch.rand((), generator=other, dtype=torch.float64)  # the choice of the part
        drawn = Box((0.1, 1.0))([other], 20, 30)
        while not 0.3 <= drawn.mean() <= 0.5:
            drawn, again = Box((0.1, 1.0))([other], 20, 30), again + 1
        assert torch.equal(hole, drawn)
    assert again > 50


def test_the_ends_of_an_area_range_count_as_inside():
    assert Mixture((Part(Half(), area_range=(0.5, 0.5)),))(generators(1), 8, 8).mean() == 0.5
    assert Mixture((Part(Everything(), area_range=(1.0, 1.0)),))(generators(1), 7, 9).mean() == 1


def test_a_range_out_of_reach_names_the_part():
    mixture = Mixture((Part(Everything(), weight=1e-9), Part(Half(), area_range=(0.6, 0.9))))
    with pytest.raises(ValueError, match=r"part 2 of 2, Half\(\): 100 holes of 8x8 .*area_range=\(0.6, 0.9\)"):
        mixture(generators(1), 8, 8)


def test_yaml_makes_a_mixture():
    parts = [
        {"weight": 0.4, "generator": {"class_path": "rad.masks.damage.Polylines", "init_args": {"width": [3, 9]}}},
        {
            "generator": {"class_path": "rad.masks.shapes.Box", "init_args": {"side": [0.2, 0.75]}},
            "area_range": [0.05, 0.5],
        },
        {"generator": {"class_path": "rad.masks.shapes.Everything"}},
    ]
    expected = Mixture((Part(Polylines(width=(3, 9)), 0.4), Part(Box((0.2, 0.75)), 1, (0.05, 0.5)), Part(Everything())))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--masks", type=MaskGenerator)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # new name, old name
    for name in ("rad.masks.Mixture", "rad.masks.mixture.Mixture"):
        config = parser.parse_object({"masks": {"class_path": name, "init_args": {"parts": parts}}})
        assert instantiate(config).masks == expected
        again = parser.parse_string(parser.dump(config))  # as a resumed run reads it
        assert instantiate(again).masks == expected
    named = parser.parse_object({"masks": {"class_path": "rad.masks.shapes.photos"}})
    assert instantiate(named).masks == photos()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mixture(()), r"parts=\(\)"),
        (lambda: Part(Half(), weight=0), "weight=0"),
        (lambda: Part(Half(), weight=float("nan")), "weight=nan"),
        (lambda: Part(Half(), weight=float("inf")), "weight=inf"),
        (lambda: Part(Half(), area_range=(0.5, 0.4)), r"area_range=\(0.5, 0.4\)"),
        (lambda: Part(Half(), area_range=(0.5, 1.4)), r"area_range=\(0.5, 1.4\)"),
        (lambda: Polylines(width=(0.5, 2.0)), r"width=\(0.5, 2.0\)"),
        (lambda: Polylines(strokes=(3, 1)), r"strokes=\(3, 1\)"),
        (lambda: Polylines(segments=(1, 10**6)), "segments=.*<= 100"),
        (lambda: Polylines(length=(0.0, 0.5)), r"length=\(0.0, 0.5\)"),
        (lambda: Polylines(turn=181.0), "turn=181"),
        (lambda: Text(size=(2, 9)), r"size=\(2, 9\)"),
        (lambda: Text(lines=(0, 1)), r"lines=\(0, 1\)"),
        (lambda: Text(margin=(0, 99)), r"margin=\(0, 99\)"),
        (lambda: Box(side=(0.5, 0.2)), r"side=\(0.5, 0.2\)"),
        (lambda: Extreme(side=(0.5, 1.2)), r"side=\(0.5, 1.2\)"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- damage ---


@pytest.mark.parametrize("width", [1.0, 2.0, 3.0, 6.5])
def test_a_straight_stroke_is_as_wide_as_asked(width):
    """Pixel centres at most half a width from the line: across it they span at most the width, and all but a pixel of it."""
    spans = []
    for hole in Polylines((1, 1), (width, width), (1, 1), (0.2, 0.4))(generators(100), 160, 160)[:, 0].numpy():
        if hole[[0, -1]].any() or hole[:, [0, -1]].any():  # the border may cut it lengthwise
            continue
        places = np.argwhere(hole).astype(float)
        across = np.linalg.svd(places - places.mean(0), full_matrices=False)[2][1]
        spans.append(np.ptp(places @ across))
    assert len(spans) > 30
    assert max(spans) <= width + 0.3
    assert min(spans) >= width - 1.3
    assert np.mean(spans) > width - 0.8


def test_widths_lie_between_both_ends_and_do_not_scale_with_the_image():
    """The area of a stroke is its length times its width, and only the length scales with the image."""
    drawn = {
        (size, width): Polylines(width=(width, width))(generators(200), size, size).sum().item()
        for size in (64, 128)
        for width in (1.0, 3.0)
    }
    assert drawn[128, 1.0] / drawn[64, 1.0] == pytest.approx(2, rel=0.1)
    assert drawn[128, 3.0] / drawn[128, 1.0] == pytest.approx(3, rel=0.1)
    mixed = Polylines(width=(1.0, 3.0))(generators(200), 128, 128).sum().item()
    assert mixed / drawn[128, 1.0] == pytest.approx(2, rel=0.15)


def test_a_stroke_is_the_set_of_pixels_near_its_segments():
    """Against the definition, one pixel at a time, with a corner in the middle."""
    from rad.masks.damage import _near

    vertices, radius = np.array([[2.0, 3.5], [9.3, 4.1], [6.0, 15.0]]), 1.7
    expected = np.zeros((18, 12), dtype=bool)
    for row in range(18):
        for column in range(12):
            for a, b in pairwise(vertices):
                place = np.array([column, row])
                along = np.clip(np.dot(place - a, b - a) / np.dot(b - a, b - a), 0, 1)
                expected[row, column] |= np.linalg.norm(place - a - along * (b - a)) <= radius
    assert np.array_equal(_near(vertices, radius, 18, 12), expected)


def test_thin_strokes_have_no_gaps_and_no_hole_is_empty():
    for count in (1, 3):
        holes = Polylines((count, count), (1.0, 1.0), turn=0.0)(generators(200), 40, 60)[:, 0].numpy()
        parts = [ndimage.label(hole, np.ones((3, 3)))[1] for hole in holes]
        assert min(parts) >= 1
        assert max(parts) <= count
    for masks in (Polylines(), Text()):
        for size in ((1, 1), (1, 9), (9, 2)):
            assert masks(generators(20), *size).amax((1, 2, 3)).min() == 1


def test_letters_have_one_size_in_every_image():
    for size in (12, 24):
        for side in (32, 96, 200):
            holes = Text((size, size), (1, 1), (0, 0))(generators(60), side, side)[:, 0]
            heights = [int(rows.nonzero().max() - rows.nonzero().min()) + 1 for rows in holes.any(2)]
            assert max(heights) <= 1.1 * size
            whole = [height for height in heights if height >= 0.6 * size]
            assert len(whole) > 20
    thick = Text((12, 12), (2, 2), (1, 1))(generators(60), 64, 64).mean()
    thin = Text((12, 12), (2, 2), (0, 0))(generators(60), 64, 64).mean()
    assert thick > 1.5 * thin


def test_halves_are_the_four_sides():
    for height, width in ((6, 8), (5, 7)):
        drawn = {hole.numpy().tobytes() for hole in Halves()(generators(60), height, width)}
        rows, columns = (height + 1) // 2, (width + 1) // 2
        right, bottom = np.zeros((2, height, width), dtype=np.float32)
        right[:, width - columns :], bottom[height - rows :] = 1, 1
        assert drawn == {side.tobytes() for side in (right, right[:, ::-1].copy(), bottom, bottom[::-1].copy())}


def test_sides_of_boxes_are_drawn_apart_and_reach_both_ends():
    holes = Box((0.2, 0.75))(generators(600), 20, 40)[:, 0]
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), (rows * columns).float())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 15, 8, 30)
    together = torch.stack([rows, columns]).double()
    assert abs(torch.corrcoef(together)[0, 1]) < 4 / math.sqrt(600)
    assert torch.equal(Extreme((0.2, 0.75))(generators(9), 20, 40), 1 - Box((0.2, 0.75))(generators(9), 20, 40))
    assert torch.equal(Box((0.5, 0.5))(generators(9), 20, 40).sum((1, 2, 3)), torch.full((9,), 200.0))


# --- the mixture for photographs ---


@pytest.mark.spread(1)
@pytest.mark.parametrize("size", [32, 64, 96])
def test_damage_of_photographs_is_mostly_thin(size):
    shares = make("photos")(generators(1200), size, size).mean((1, 2, 3))
    assert shares.min() > 0
    assert shares.median() < 0.2
    assert (shares > 0.2).float().mean() > 0.1


def test_a_set_of_a_mixture_has_a_manifest(tmp_path):
    write_set(tmp_path / "set", "photos", size=(32, 32), count=4, seed=0)
    again = write_set(tmp_path / "set", "photos", size=(32, 32), count=6, seed=0)
    assert read_set(tmp_path / "set").hash == again.hash
    parts = json.loads((tmp_path / "set" / "manifest.json").read_text())["settings"]["parts"]
    assert parts[3] == {
        "generator": {"class_path": "rad.masks.shapes.Halves", "init_args": {}},
        "weight": 5,
        "area_range": [0.0, 1.0],
    }
    assert parts[0]["generator"]["init_args"]["width"] == [1.0, 3.0]
