"""Canvases in NumPy: components, pooling and rounding equal those of scikit-image and PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.measure import label, regionprops

from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.resize import max_pool, mean_pool, resize_bicubic
from rad.inpainting.canvas.windows import component_boxes


def holes():
    random = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.3, 0.41, 0.6, 0.95):
        for height, width in ((1, 9), (9, 1), (1, 1), (40, 33), (7, 120)):
            yield random.random((height, width)) < share
    spiral = np.zeros((41, 41), bool)
    for ring in range(0, 20, 2):
        spiral[ring, ring : -ring or None] = spiral[ring : -ring or None, -ring - 1] = True
        spiral[-ring - 1, ring : -ring or None] = spiral[ring + 2 : -ring or None, ring] = True
        spiral[ring + 2, ring : ring + 2] = True
    yield from (spiral, spiral.T, ~spiral, np.eye(30, dtype=bool), np.tile(np.eye(2, dtype=bool), (12, 12)))
    comb = np.zeros((30, 31), bool)  # teeth of several lengths that meet at the bottom
    comb[-1] = True
    for column in range(0, 31, 2):
        comb[column * 7 % 29 :, column] = True
    yield from (comb, comb[::-1], comb.T, np.zeros((5, 5), bool), np.ones((5, 5), bool))


@pytest.mark.parametrize("hole", list(holes()))
def test_boxes_of_components_equal_those_of_scikit_image_in_their_order(hole):
    expected = [region.bbox for region in regionprops(label(hole, connectivity=2))]
    assert [tuple(box) for box in component_boxes(hole).tolist()] == expected


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (7, 5)])
@pytest.mark.parametrize("shape", [(32, 32), (33, 50), (100, 31), (5, 7), (301, 260)])
def test_pooling_equals_pytorch_bit_for_bit(shape, size):
    image = np.random.default_rng(1).random((3, *shape), np.float32) * 2 - 1
    tensor = torch.from_numpy(image)
    np.testing.assert_array_equal(mean_pool(image, size), F.adaptive_avg_pool2d(tensor, size).numpy())
    np.testing.assert_array_equal(max_pool(image, size), F.adaptive_max_pool2d(tensor, size).numpy())


@pytest.mark.parametrize("size", [(100, 70), (20, 90), (9, 11)])
def test_bicubic_resizing_equals_pytorch_to_rounding(size):
    image = np.random.default_rng(2).random((3, 32, 32), np.float32) * 2 - 1
    expected = F.interpolate(torch.from_numpy(image)[None], size, mode="bicubic", antialias=True)[0].numpy()
    np.testing.assert_allclose(resize_bicubic(image, size), expected, atol=1e-5)


@pytest.mark.parametrize(("policy", "content", "value"), [("crop", True, 200), ("crop", False, 0), ("zoom", True, 200)])
def test_pixels_beyond_the_image_are_unknown_and_continue_its_edge_if_content_counts(policy, content, value):
    image, hole = Image.new("RGB", (6, 5), (200, 200, 200)), np.zeros((1, 5, 6), np.float32)
    hole[:, 1:4, 1:5] = 1
    (canvas,) = Layout((8, 8), policy, content=content, margin=3).canvases(image, hole, "a", samples=1)
    (window,) = canvas.windows
    pixels, remaining = canvas.cut(window)
    assert remaining[0, -1, -1] == 1
    np.testing.assert_allclose(pixels[:, -1, -1], value / 127.5 - 1, atol=1e-5)
    assert canvas.pixels.shape == (3, 8, 8)


def test_pixels_become_floats_and_return_as_in_pytorch():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, 0)
    hole = np.zeros((1, 16, 16), np.float32)
    hole[:, 3:9, 3:9] = 1
    (window,) = Layout((16, 16)).plan(hole)[1]
    canvas = Canvas("", 0, values, hole, [window])
    pixels, remaining = canvas.cut(window)
    np.testing.assert_array_equal(pixels, (torch.from_numpy(values).float() / 255 * 2 - 1).numpy())
    np.testing.assert_array_equal(remaining, hole)
    output = np.random.default_rng(3).random((3, 16, 16), np.float32) * 3 - 1.5
    canvas.paste(window, output)
    rounded = (torch.from_numpy(output) / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    np.testing.assert_array_equal(canvas.raw, rounded.numpy())
    np.testing.assert_array_equal(canvas.cut(window)[0][:, 3:9, 3:9], output[:, 3:9, 3:9])
    assert not canvas.unknown.any()
    assert not canvas.windows
