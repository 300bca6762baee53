"""Outpainting: `extend=` equals an image with new pixels and their hole, for every size policy; clear errors."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.inputs import Inputs
from rad.masks.reading.format import DEFAULT
from rad.models.loaded_model import Condition
from tests.conftest import SIZE, box_hole, random_image


@pytest.fixture(scope="module")
def rad(models):
    return Inpainter.from_pretrained(models / "adapter")


def padded(image, hole, extension):
    """The image and hole with new pixels, by NumPy."""
    left, top, right, bottom = extension
    sides = ((top, bottom), (left, right))
    pixels = np.pad(np.asarray(image), (*sides, (0, 0)))
    return Image.fromarray(pixels), np.pad(hole[0].numpy(), sides, constant_values=1)


@pytest.mark.parametrize(
    ("policy", "size", "extension"),
    [("crop", (20, 26), (7, 0, 19, 3)), ("resize", (20, 26), (0, 5, 4, 1)), ("error", (SIZE, 11), (2, 0, 3, 0))],
)
def test_an_extension_equals_an_image_with_new_pixels(rad, policy, size, extension):
    image, hole = random_image(*size), box_hole(*size, 4, 3, 9, 8)
    options = {"steps": 2, "size_policy": policy, "num_samples": 2, "names": "a"}
    result = rad(image, hole, extend=extension, **options)
    large, large_hole = padded(image, hole, extension)
    expected = rad(large, large_hole, **options)
    assert all(np.array_equal(one, other) for one, other in zip(result.images, expected.images, strict=True))
    left, top = extension[:2]
    for each in result.images:
        assert each.size == large.size
        inside = np.asarray(each)[top : top + size[0], left : left + size[1]]
        known = (hole[0] == 0).numpy()
        assert np.array_equal(inside[known], np.asarray(image)[known])
    assert not np.array_equal(result.images[0], result.images[1])


def test_without_a_mask_the_new_pixels_are_filled_alone(rad):
    image, empty = random_image(SIZE, 20), np.zeros((SIZE, 20), np.float32)
    alone = rad(image, extend=(0, 0, 9, 0), steps=2, size_policy="crop")
    with pytest.warns(UserWarning, match="empty"):
        expected = rad(image, empty, extend=(0, 0, 9, 0), steps=2, size_policy="crop")
    assert np.array_equal(alone.images[0], expected.images[0])
    assert np.array_equal(np.asarray(alone.images[0])[:, :20], np.asarray(image))
    assert np.asarray(alone.images[0])[:, 20:].std() > 1


def test_an_extension_of_zeros_is_none(rad):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 9, 9)
    plain, extended = (rad(image, hole, steps=2, extend=each).images[0] for each in (None, (0, 0, 0, 0)))
    assert np.array_equal(plain, extended)
    for nothing in (None, (0, 0, 0, 0), Extension()):
        with pytest.raises(ValueError, match=r"mask is None; give a mask, or extend=\(left, top, right, bottom\)"):
            rad(image, extend=nothing)


def test_generated_masks_are_drawn_for_the_image_before_its_extension(rad):
    image, extension = random_image(20, 26), (3, 2, 0, 9)
    inputs = Inputs.align(image, "wide", names="a", condition=Condition())
    (hole,) = inputs.read(DEFAULT, 5)
    options = {"names": "a", "seed": 5, "steps": 1, "size_policy": "crop"}
    drawn, given = (rad(image, mask, extend=extension, **options).images[0] for mask in ("wide", hole))
    assert np.array_equal(drawn, given)


def test_the_colour_profile_is_kept(rad):
    image = random_image(SIZE, 10)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = rad(image, extend=(0, 0, 6, 0), steps=1)
    assert result.images[0].info == result.raw[0].info == image.info


def test_guidance_images_are_extended_by_black():
    image, guide = random_image(8, 10), random_image(16, 20, seed=3)
    style = random_image(4, 4)
    condition = Condition(control_image=guide, adapter_image=guide, style_image=style)
    inputs = Inputs.align(image, None, names=None, condition=condition)
    extended, (hole,) = inputs.extended(Extension(1, 2, 3, 4), inputs.read(DEFAULT, 0))
    (condition,) = extended.conditions
    assert condition.style_image is style
    small = guide.resize((10, 8), Image.Resampling.LANCZOS)
    for each in (condition.control_image, condition.adapter_image):
        assert each.size == (14, 14) == extended.images[0].size
        assert np.array_equal(np.asarray(each)[2:10, 1:11], np.asarray(small))
        assert (np.asarray(each)[hole[0] == 1] == 0).all()


def test_texts_become_extensions():
    assert Extension.parse(" 1, 2,3,65536") == Extension(1, 2, 3, 65536)
    assert Extension.parse(str(Extension(5, 0, 7, 1))) == Extension(5, 0, 7, 1)
    assert not Extension.parse("0,0,0,0")
    for text in ("", "1,2,3", "1,2,3,4,5", "1,2,3,-4", "1,2,3,4.0", "1,2,3,four", "١,2,3,4", "1,2,,3", "9" * 99):
        with pytest.raises(ValueError, match="give LEFT,TOP,RIGHT,BOTTOM"):
            Extension.parse(text)
    with pytest.raises(ValueError, match="top of the extension is 65537; give a whole number from 0 to 65536"):
        Extension.parse("0,65537,0,0")


@pytest.mark.parametrize("extend", [(1, 2, 3), 5, "1,2,3,4", {"left": 1}])
def test_other_types_are_refused(rad, extend):
    with pytest.raises(ValueError, match=r"extend is .*; give \(left, top, right, bottom\) in pixels, or an Extension"):
        rad(random_image(SIZE, SIZE), extend=extend)
    for bad in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="left of the extension is"):
            rad(random_image(SIZE, SIZE), extend=(bad, 0, 0, 0))


def test_an_extended_image_above_pillows_limit_is_refused(rad, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    image = random_image(20, 20)
    assert Extension(20, 0, 10, 0).image(image).size == (50, 20)
    with pytest.raises(
        ValueError, match=r"the extended image has 51x20 pixels; allowed are 1,000 in all: extend by less"
    ):
        rad(image, extend=(20, 0, 11, 0), size_policy="crop")


def test_the_error_about_the_size_gives_the_extended_size(rad):
    with pytest.raises(ValueError, match="the image is 18x16 and the model takes 16x16: use size_policy 'crop'"):
        rad(random_image(SIZE, SIZE), extend=(2, 0, 0, 0))


def test_outpainting_loads_no_torch():
    code = "import sys, rad.inpainting.canvas.outpaint, rad.inpainting.result; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
