"""size_policy "zoom": the region, exact known pixels, no leak of the hole, and the equality with a scaled crop."""

import numpy as np
import pytest
from PIL import Image

from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.resize import max_pool
from rad.inpainting.canvas.zoom import zoom_region, zoomed
from rad.inpainting.inpainter import Inpainter
from tests.conftest import SIZE, box_hole, random_image


@pytest.fixture(scope="module")
def rad(adapter):
    return Inpainter.from_pretrained(adapter, device="cpu")


@pytest.mark.parametrize(
    ("image", "holes", "size", "margin", "expected"),
    [
        ((100, 80), (40, 30, 48, 36), (16, 16), None, (36, 25, 52, 41)),  # margin 4: half of 8
        ((100, 80), (40, 30, 42, 32), (16, 16), None, (38, 28, 44, 34)),  # margin 2: an eighth of 16
        ((100, 80), (40, 30, 48, 36), (16, 16), 1, (39, 28, 49, 38)),
        ((100, 80), (40, 30, 48, 36, 60, 50, 62, 52), (16, 16), 0, (40, 30, 62, 52)),  # all holes together
        ((100, 80), (96, 0, 100, 4), (16, 16), 4, (92, 0, 100, 8)),  # the margin ends at the edge
        ((100, 80), (90, 0, 100, 4), (16, 16), 0, (90, 0, 100, 10)),  # shifted into the image
        ((100, 80), (0, 0, 90, 80), (16, 16), 5, (0, 0, 95, 95)),  # wider than the image: ends beyond its edge
        ((100, 80), (40, 30, 48, 40), (16, 32), 0, (40, 27, 48, 43)),  # the model's aspect ratio
        ((100, 80), (), (16, 16), None, None),
    ],
)
def test_region(image, holes, size, margin, expected):
    assert zoom_region(box_hole(*image, *holes).numpy(), size, margin) == expected


@pytest.mark.parametrize("side", [8, SIZE, 40])  # enlarged, as it is, reduced
def test_known_pixels_do_not_depend_on_the_hole(side):
    hole = box_hole(side, side, side // 4, side // 4, side // 2, side // 2).numpy()
    first = np.random.default_rng(0).uniform(-1, 1, (3, side, side)).astype(np.float32)
    second = np.where(hole > 0, -first, first)
    results = [zoomed(pixels, hole, (SIZE, SIZE)) for pixels in (first, second)]
    known = max_pool(hole, (SIZE, SIZE))[0] == 0
    assert np.array_equal(results[0][:, known], results[1][:, known])
    assert 0 < known.mean() < 1
    assert np.abs(results[0]).max() <= 1


@pytest.mark.parametrize("content", [False, True])
def test_a_layout_keeps_the_content_of_the_hole_only_when_asked(content):
    image, hole = np.asarray(random_image(24, 30)), box_hole(24, 30, 8, 9, 14, 15).numpy()
    other = np.where(hole[0, ..., None] > 0, 255 - image, image)
    layout = Layout((32, 32), "zoom", content=content)
    first, second = (
        layout.canvases(Image.fromarray(pixels), hole, "a", samples=1)[0].pixels for pixels in (image, other)
    )
    assert np.array_equal(first, second) != content


def test_grey_pixels_keep_their_content():
    hole, pixels = box_hole(8, 8, 2, 2, 5, 5).numpy(), np.random.default_rng(0).random((3, 8, 8), np.float32)
    grey, known, unknown = (zoomed(pixels, share * hole, (SIZE, SIZE)) for share in (0.5, 0, 1))
    assert np.array_equal(grey, known)
    assert not np.array_equal(unknown, known)


def test_constant_images_stay_constant():
    hole, pixels = box_hole(8, 8, 2, 2, 5, 5).numpy(), np.full((3, 8, 8), 0.25, np.float32)
    pixels[:, 2:5, 2:5] = -1
    assert np.allclose(zoomed(pixels, hole, (SIZE, SIZE)), 0.25, atol=1e-6)
    assert not zoomed(pixels, np.ones_like(hole), (SIZE, SIZE)).any()


@pytest.mark.parametrize("box", [(20, 30, 24, 34), (10, 12, 40, 45), (0, 0, 60, 70)])
def test_results_fill_the_hole_and_keep_all_other_pixels(rad, box):
    image, hole = random_image(60, 70), box_hole(60, 70, *box)
    result = rad(image, hole, steps=2, size_policy="zoom", num_samples=2, seed=3)
    known = hole[0].numpy() == 0
    for filled in result.images:
        assert np.array_equal(np.asarray(filled)[known], np.asarray(image)[known])
    changed = np.asarray(image).copy()
    changed[~known] = 99
    again = rad(Image.fromarray(changed), hole, steps=2, size_policy="zoom", num_samples=2, seed=3)
    assert all(
        np.array_equal(np.asarray(a)[~known], np.asarray(b)[~known])
        for a, b in zip(result.images, again.images, strict=True)
    )
    assert not np.array_equal(*map(np.asarray, result.images))
    assert result.nfe == 4


def test_zoom_equals_resize_of_the_region(rad):
    """Where the region is larger than the model, the policy "resize" of the region alone has equal results."""
    image, hole = random_image(60, 70), box_hole(60, 70, 10, 12, 30, 32)
    top, left, bottom, right = zoom_region(hole.numpy(), (SIZE, SIZE))
    assert bottom - top == right - left == 40
    zoom = rad(image, hole, steps=2, size_policy="zoom").images[0]
    part = rad(image.crop((left, top, right, bottom)), hole[:, top:bottom, left:right], steps=2, size_policy="resize")
    expected = image.copy()
    expected.paste(part.images[0], (left, top))
    assert np.array_equal(np.asarray(zoom), np.asarray(expected))


def test_previews_and_empty_masks(rad):
    image, hole, sizes = random_image(30, 40), box_hole(30, 40, 5, 5, 9, 9), []
    known = hole[0].numpy() == 0

    def on_step(progress):
        preview = progress.previews()[0]
        assert np.array_equal(np.asarray(preview)[known], np.asarray(image)[known])
        sizes.append(preview.size)

    rad(image, hole, steps=2, size_policy="zoom", on_step=on_step)
    assert sizes == [(40, 30)] * 2
    with pytest.warns(UserWarning, match="empty|nothing|black"):
        result = rad(image, box_hole(30, 40), size_policy="zoom")
    assert result.nfe == 0
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(image))


def test_plan_agrees_with_the_canvas():
    hole = box_hole(30, 40, 5, 5, 9, 9).numpy()
    layout = Layout((SIZE, SIZE), "zoom")
    planned, windows = layout.plan(hole)
    (canvas,) = layout.canvases(random_image(30, 40), hole, "a", samples=1)
    assert list(canvas.windows) == windows
    assert np.array_equal(canvas.hole, planned)
    assert planned.shape == (1, SIZE, SIZE)
    assert canvas.job_name(windows[0]) == "a"
