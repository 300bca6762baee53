"""Training data of the adaptation: keyed crops that hold no content of the hole."""

import numpy as np
import pytest
import torch

from rad.adaptation.crops import Crops, find_places
from tests.conftest import box_hole, random_image

PIXELS = np.array(random_image(40, 50)).transpose(2, 0, 1)
HOLE = box_hole(40, 50, 5, 8, 22, 30).numpy()


def crops(pixels=PIXELS, hole=HOLE, **keys):
    return Crops(pixels, hole, (16, 16), **{"seed": 3, "name": "a", **keys})


def test_loss_counts_known_pixels_in_the_random_hole_alone():
    for step in range(4):
        batch = crops().draw(step, 8)
        assert ((batch.counted == 1) <= (batch.hole == 1)).all()
        marked = Crops(np.where(HOLE > 0, 255, PIXELS // 2).astype(np.uint8), 0 * HOLE, (16, 16), seed=3, name="a")
        marked.places = crops().places
        inside = marked.draw(step, 8).x0.amin(1, keepdim=True) == 1  # the same crops, with white for the hole
        assert inside.any()
        assert (batch.hole[inside] == 1).all(), "the network sees noise in the hole of the image"
        assert (batch.counted[inside] == 0).all()
        assert batch.counted.sum() > 0
        assert inside.float().mean((1, 2, 3)).max() <= 0.5


def test_content_of_the_hole_does_not_enter():
    other = np.where(HOLE > 0, 255 - PIXELS, PIXELS)
    assert (other != PIXELS).any()
    for step in range(4):
        one, two = crops().draw(step, 8), crops(other).draw(step, 8)
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in vars(one))


def test_known_pixels_are_those_of_the_image_flipped_half_the_time():
    batch = crops().draw(0, 64)
    signed, flipped = torch.from_numpy(PIXELS.astype(np.float32)) / 127.5 - 1, 0
    for x0, hole, counted in zip(batch.x0, batch.hole, batch.counted, strict=True):
        known = (hole == 0) | (counted == 1)
        found = []
        for image in (signed, signed.flip(2)):
            windows = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
            found.append(bool(((windows == x0) | ~known).all((2, 3, 4)).any()))
        assert sum(found) == 1
        flipped += found[1]
    assert 16 < flipped < 48


def test_draws_are_keyed_by_seed_name_and_step():
    first = crops().draw(5, 8)
    assert torch.equal(crops().draw(5, 8).eps, first.eps)
    for other in (crops(seed=4).draw(5, 8), crops(name="b").draw(5, 8), crops().draw(6, 8)):
        assert not torch.equal(other.eps, first.eps)
        assert not torch.equal(other.hole, first.hole)
        assert not torch.equal(other.level, first.level)


def test_places_have_enough_known_pixels():
    hole = (np.random.default_rng(0).random((1, 30, 26)) < 0.5).astype(np.float32)
    places = {tuple(place) for place in find_places(hole, (8, 6)).tolist()}
    for top in range(23):
        for left in range(21):
            known = (hole[0, top : top + 8, left : left + 6] == 0).sum()
            assert ((top, left) in places) == (known >= 24)


def test_too_few_known_pixels_are_an_error():
    assert find_places(box_hole(16, 16, 0, 0, 8, 16).numpy(), (16, 16)).tolist() == [[0, 0]]
    soft = 0.5 * box_hole(16, 16, 0, 0, 9, 16).numpy()
    with pytest.raises(ValueError, match=r"a window of 16x16 pixels with at least 50% known pixels.* the best has 43%"):
        find_places(soft, (16, 16))
    with pytest.raises(ValueError, match="the best has 31%"):
        find_places(np.zeros((1, 8, 10), np.float32), (16, 16))
