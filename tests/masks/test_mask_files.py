"""Mask files as people save them: transparency, paint, labels, deep values, JPEG, pages. Read right, or refused in a line."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from rad.inpainting import Inpainter
from rad.masks.files import load_mask, read_mask
from rad.masks.reading.format import MaskFormat, MaskWarning
from rad.masks.reading.hole import dilate

SIDE = 48
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[10:30, 7:27] = True
GREY = np.where(HOLE, 255, 0).astype(np.uint8)


def photograph(seed: int = 0) -> np.ndarray:
    """A smooth picture of many colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


PHOTO = photograph()


def painted(base: np.ndarray | int, colour: int | tuple[int, int, int]) -> Image.Image:
    pixels = np.full((SIDE, SIDE, 3), base, np.uint8) if isinstance(base, int) else base.copy()
    pixels[HOLE] = colour
    return Image.fromarray(pixels)


def with_alpha(pixels: np.ndarray, alpha: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels).convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    return image


def palette(*colours: int) -> Image.Image:
    image = Image.fromarray(HOLE.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def file(image: Image.Image, kind: str = "PNG", **settings: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream


def load(stream: io.BytesIO, *, image: np.ndarray | None = None, **options: object):
    return load_mask(
        stream, MaskFormat(**options), image=None if image is None else Image.fromarray(image), name="m.png"
    )


READ = {
    "0 and 255": (file(Image.fromarray(GREY)), ""),
    "0 and 1": (file(Image.fromarray(HOLE.astype(np.uint8))), "0 and 1, are black and white"),
    "7 and 90": (file(Image.fromarray(np.where(HOLE, 90, 7).astype(np.uint8))), "7 and 90, are"),
    "1 bit": (file(Image.fromarray(HOLE)), ""),
    "16 bits": (file(Image.fromarray(GREY.astype(np.uint16) * 257)), ""),
    "16 bits, 0 and 255": (file(Image.fromarray(GREY.astype(np.uint16))), "0 and 255, are"),
    "int32": (file(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "0 and 255, are"),
    "float": (file(Image.fromarray(HOLE.astype(np.float32)), "TIFF"), ""),
    "float, 0 and 255": (file(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "0 and 255, are"),
    "white is zero": (file(Image.fromarray(GREY), "TIFF", tiffinfo={262: 0}), ""),
    "white is zero, 1 bit": (file(Image.fromarray(HOLE), "TIFF", compression="group4"), ""),
    "white is zero, 16 bits": (
        file(Image.fromarray(65535 - GREY.astype(np.uint16) * 257), "TIFF", tiffinfo={262: 0}),
        "",
    ),
    "CMYK": (file(Image.fromarray(GREY).convert("RGB").convert("CMYK"), "TIFF"), ""),
    "JPEG": (file(Image.fromarray(GREY), "JPEG", quality=50), "split at a half"),
    "resampled": (
        file(Image.fromarray(GREY).resize((2 * SIDE, 2 * SIDE)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)),
        "split at a half",
    ),
    "label colour": (file(palette(0, 0, 0, 128, 0, 0)), "its colour (128, 0, 0) is white"),
    "label of little colour": (file(palette(0, 0, 0, 192, 128, 128)), "its colour (192, 128, 128)"),
    "palette without colours": (file(palette(0, 0, 0, 0, 0, 0)), "0 and 1, are"),
    "red on black": (file(painted(0, (255, 0, 0))), "its colour (255, 0, 0)"),
    "red on black, JPEG": (file(painted(0, (255, 0, 0)), "JPEG", quality=90), "is white"),
    "red strokes": (file(with_alpha(flat((255, 0, 0)), GREY)), "its opaque part is the hole"),
    "black strokes": (file(with_alpha(flat((0, 0, 0)), GREY)), "its opaque part"),
    "white strokes": (file(with_alpha(flat((255, 255, 255)), GREY)), "its opaque part"),
    "half opaque strokes": (file(with_alpha(flat((255, 0, 0)), GREY // 2)), "its opaque part"),
    "erased hole": (file(with_alpha(PHOTO, 255 - GREY)), "its transparent part is the hole"),
}


@pytest.mark.parametrize("name", READ)
def test_a_mask_is_the_hole_that_was_drawn(name: str):
    stream, message = READ[name]
    loaded = load(stream)
    assert loaded.hole.shape == (1, SIDE, SIDE)
    assert np.array_equal(loaded.hole[0].numpy(), HOLE), loaded.notes
    assert not loaded.warnings
    assert message in "; ".join(loaded.notes) if message else not loaded.notes


@pytest.mark.parametrize("colour", [(255, 0, 0), (255, 255, 255), (128, 128, 128)])
def test_paint_on_a_copy_of_the_image_is_the_hole(colour: tuple[int, int, int]):
    loaded = load(file(painted(PHOTO, colour)), image=PHOTO)
    assert np.array_equal(loaded.hole[0].numpy(), HOLE)
    assert loaded.notes == ["the part that differs from the image is the hole"]


def test_an_erased_part_of_any_size_is_the_hole_of_its_image():
    stream = file(with_alpha(PHOTO, GREY))
    assert np.array_equal(load(stream, image=PHOTO).hole[0].numpy(), ~HOLE)
    with pytest.raises(ValueError, match="not certain which part"):
        load(stream)


def test_white_paint_in_a_grey_photograph():
    grey = np.asarray(Image.fromarray(PHOTO // 2).convert("L").convert("RGB"))
    loaded = load(file(painted(grey, 255).convert("L")), image=grey)
    assert np.array_equal(loaded.hole[0].numpy(), HOLE)


LABELS = HOLE.astype(np.uint8)
LABELS[40:44] = 2
IGNORED = np.where(LABELS == 2, 255, LABELS).astype(np.uint8)
TWO_COLOURS = np.array(painted(0, (255, 0, 0)))
TWO_COLOURS[40:44] = 0, 128, 0
WHITE_SKY = PHOTO.copy()
WHITE_SKY[:20] = 255

REFUSED = {
    "labels": (file(Image.fromarray(LABELS)), {}, "--mask_threshold 0 to fill all"),
    "labels and 255": (file(Image.fromarray(IGNORED)), {}, "--mask_threshold"),
    "labels as soft": (file(Image.fromarray(LABELS)), {"soft": True}, "as of labels"),
    "one grey": (file(Image.new("L", (SIDE, SIDE), 1)), {}, "one value, 1 of 255"),
    "two colours": (file(Image.fromarray(TWO_COLOURS)), {}, "not certain which part"),
    "red on white": (file(painted(255, (255, 0, 0))), {}, "not certain which part"),
    "white on blue": (file(painted(np.full((SIDE, SIDE, 3), (0, 0, 200), np.uint8), 255)), {}, "not certain"),
    "photograph": (file(Image.fromarray(PHOTO)), {}, "--mask_channel"),
    "another photograph": (file(Image.fromarray(photograph(1))), {"image": PHOTO}, "--mask_channel"),
    "soft photograph": (file(Image.fromarray(PHOTO)), {"soft": True}, "--mask_channel"),
    "grey photograph": (file(Image.fromarray(PHOTO).convert("L")), {}, "--soft_mask"),
    "the image itself": (file(Image.fromarray(PHOTO)), {"image": PHOTO}, "the image itself"),
    "paint of the sky's colour": (file(painted(WHITE_SKY, 255)), {"image": WHITE_SKY}, "another colour"),
    "erased black page": (file(with_alpha(flat((0, 0, 0)), 255 - GREY)), {}, "not certain which part"),
    "transparent": (file(with_alpha(flat((255, 255, 255)), 0 * GREY)), {}, "transparent everywhere"),
    "no alpha": (file(Image.fromarray(GREY)), {"channel": "alpha"}, "no transparency"),
    "inverted alpha": (file(with_alpha(PHOTO, 255 - GREY)), {"polarity": "white_is_known"}, "--mask_channel alpha"),
    "LAB": (file(Image.new("LAB", (SIDE, SIDE)), "TIFF"), {}, "mode LAB"),
    "float greys": (file(Image.fromarray(PHOTO[..., 0].astype(np.float32)), "TIFF"), {}, "white is 1"),
    "8 bits in 16": (file(Image.fromarray(PHOTO[..., 0].astype(np.uint16))), {}, "of 65535"),
    "not a number": (file(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), {}, "finite"),
    "feathered": (file(Image.fromarray(GREY).filter(ImageFilter.GaussianBlur(8))), {}, "--soft_mask"),
    "another size": (file(Image.new("L", (2 * SIDE, 2 * SIDE))), {"image": PHOTO}, "--mask_resize nearest"),
    "another shape": (
        file(Image.new("L", (2 * SIDE, SIDE))),
        {"image": PHOTO, "resize": "nearest"},
        "not 48x48; give the mask that belongs",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clearly_a_mask_is_refused_in_a_line(name: str):
    stream, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=r"^m\.png: ") as caught:
        load(stream, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chosen_channel_and_threshold_need_no_message():
    photo = file(Image.fromarray(PHOTO))
    for number, channel in enumerate(("red", "green", "blue")):
        loaded = load(photo, channel=channel, threshold=0.25)
        assert np.array_equal(loaded.hole[0].numpy(), PHOTO[..., number] > 0.25 * 255)
        assert not loaded.notes
    white = file(Image.fromarray(PHOTO[..., 0]))
    assert np.array_equal(load(white, threshold=1.0).hole[0].numpy(), PHOTO[..., 0] == 255)
    assert np.array_equal(load(white, threshold=0.0).hole[0].numpy(), PHOTO[..., 0] > 0)
    erased = load(file(with_alpha(PHOTO, 255 - GREY)), channel="alpha", polarity="white_is_known")
    assert np.array_equal(erased.hole[0].numpy(), HOLE)
    assert not erased.notes
    red_on_white = load(file(painted(255, (255, 0, 0))), channel="green", polarity="white_is_known")
    assert np.array_equal(red_on_white.hole[0].numpy(), HOLE)


def test_a_threshold_counts_for_two_values_that_use_the_range():
    grey, labels = GREY // 2, GREY // 255
    assert np.array_equal(load(file(Image.fromarray(grey)), threshold=0.4).hole[0].numpy(), HOLE)
    assert not load(file(Image.fromarray(grey)), threshold=0.6).hole.any()
    assert np.array_equal(load(file(Image.fromarray(labels)), threshold=0.5).hole[0].numpy(), HOLE)
    several = load(file(Image.fromarray(LABELS)), threshold=0)  # as its error advises
    assert np.array_equal(several.hole[0].numpy(), LABELS > 0)


def test_soft_masks_keep_grey_values():
    stream = file(Image.fromarray(PHOTO).convert("L"))
    loaded = load(stream, soft=True)
    assert torch.equal(loaded.hole[0], torch.from_numpy(np.asarray(Image.open(stream)) / 255).float())
    assert "is grey, and filled only in part" in loaded.warnings[0]


def test_other_sizes_and_dilation():
    double = Image.fromarray(GREY).resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    assert np.array_equal(load(file(double), image=PHOTO, resize="nearest").hole[0].numpy(), HOLE)
    odd = double.resize((2 * SIDE + 1, 2 * SIDE))  # within a pixel of the image's aspect ratio
    assert load(file(odd), image=PHOTO, resize="nearest").hole.shape == (1, SIDE, SIDE)
    grown = np.zeros_like(HOLE)
    grown[7:33, 4:30] = True
    assert np.array_equal(load(file(Image.fromarray(GREY)), dilate=3).hole[0].numpy(), grown)
    assert np.array_equal(
        load(file(Image.fromarray(255 - GREY)), polarity="white_is_known", dilate=3).hole[0].numpy(), grown
    )
    dot = np.zeros((5, 9), np.float32)
    dot[2, 3] = 0.5
    assert np.array_equal(dilate(dot, 1)[1:4, 2:5], np.full((3, 3), 0.5))
    assert dilate(dot, 1).sum() == 4.5
    assert dilate(dot, 10**12).min() == 0.5


@pytest.mark.parametrize(
    ("grey", "message"),
    [(0 * GREY, "it is empty"), (0 * GREY + 255, "it is full"), (255 - GREY, "looks inverted")],
)
def test_likely_mistakes_are_warnings(grey: np.ndarray, message: str):
    assert message in load(file(Image.fromarray(grey))).warnings[0]
    with pytest.warns(MaskWarning, match=message):
        read_mask(file(Image.fromarray(grey)))


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_the_first_of_several_pages_is_read(kind: str):
    pages = file(Image.fromarray(GREY), kind, save_all=True, append_images=[Image.fromarray(255 - GREY)])
    loaded = load(pages)
    assert np.array_equal(loaded.hole[0].numpy(), HOLE)
    assert loaded.warnings == ["it has 2 pages, of which the first is used"]


@pytest.mark.parametrize(
    "options",
    [
        {"polarity": "white"},
        {"channel": "green channel"},
        {"resize": "bilinear"},
        {"threshold": 1.5},
        {"threshold": "0.5"},
        {"threshold": True},
        {"threshold": float("nan")},
        {"threshold": 0.5, "soft": True},
        {"dilate": -1},
        {"dilate": 1.5},
        {"soft": "yes"},
    ],
)
def test_options_are_checked(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        MaskFormat(**options)


def test_numbers_of_numpy_are_options():
    assert MaskFormat(threshold=np.float32(0.5), dilate=np.int64(2)) == MaskFormat(threshold=0.5, dilate=2)


def test_the_inpainter_reads_masks_as_the_files_say(adapter):
    rad = Inpainter.from_pretrained(adapter)
    side = rad.size[0]
    photo = Image.fromarray(PHOTO[:side, :side])
    hole = torch.from_numpy(HOLE[:side, :side]).float()[None]
    cutout = with_alpha(np.asarray(photo), 255 - GREY[:side, :side])
    large = Image.fromarray(GREY[:side, :side] // 255).resize((2 * side, 2 * side), Image.Resampling.NEAREST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, grown = (rad(photo, mask, steps=1).images[0] for mask in (hole, dilate(hole[0].numpy(), 2)))
    with pytest.warns(MaskWarning, match="transparent part is the hole"):
        assert rad(photo, cutout, steps=1).images[0] == expected
    with pytest.warns(MaskWarning, match="two values, 0 and 1"):
        assert rad(photo, large, steps=1, mask_resize="nearest", mask_dilate=2).images[0] == grown
    with pytest.warns(MaskWarning, match="it is empty"):
        assert rad(photo, 0 * hole, steps=1).nfe == 0
    with pytest.raises(ValueError, match="the image itself"):
        rad(photo, photo)
    with pytest.raises(ValueError, match="mask_channel has no effect"):
        rad(photo, hole, mask_channel="red")
