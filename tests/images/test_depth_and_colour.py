"""Pixels of other ranges and colour spaces: the right 8 bits, a profile that keeps their meaning, or an error."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from rad.images import open_image
from rad.images.colour import ADOBE_RGB, ColourSpace, to_profile
from tests.images.test_formats import png

GREY = np.random.default_rng(0).integers(0, 65536, (9, 12), dtype=np.uint16)
COLOURS = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
GREY[0, :2] = 0, 65535


def tiff(pixels: np.ndarray, **options) -> BytesIO:
    file = BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file


def eight(values: np.ndarray, white: int) -> np.ndarray:
    """RGB of grey values, rounded to 8 bits."""
    return np.dstack([np.rint(values * 255.0 / white).astype(np.uint8)] * 3)


def most(value: int) -> dict:
    return {"extratags": [(281, "H", 1, value, True)]}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (tiff(GREY), eight(GREY, 65535)),
        (tiff(GREY, byteorder=">"), eight(GREY, 65535)),
        (tiff(GREY, photometric="miniswhite"), eight(65535 - GREY, 65535)),
        (tiff(GREY >> 4, **most(4095)), eight(GREY >> 4, 4095)),
        (tiff(GREY >> 4, photometric="miniswhite", **most(4095)), eight(4095 - (GREY >> 4), 4095)),
        (tiff((GREY >> 8).astype(np.uint8), photometric="miniswhite"), eight(255 - (GREY >> 8), 255)),
        (BytesIO(png(GREY)), eight(GREY, 65535)),
        (BytesIO(png(GREY, {b"sBIT": b"\x0c"})), eight(GREY, 65535)),
        (BytesIO(png(GREY >> 4, {b"sBIT": b"\x0c"})), eight(GREY >> 4, 4095)),
        (BytesIO(b"P5 12 9 4095\n" + (GREY >> 4).astype(">u2").tobytes()), eight(GREY >> 4, 4095)),
        (BytesIO(png(COLOURS.astype(np.uint16) * 257)), COLOURS),
        (tiff(COLOURS.astype(np.uint16) * 257, photometric="rgb"), COLOURS),
    ],
)
def test_grey_of_any_range_is_scaled_to_8_bits(file: BytesIO, expected: np.ndarray) -> None:
    assert np.abs(np.asarray(open_image(file)).astype(int) - expected).max() == 0


def test_packed_12_bits_reach_white() -> None:
    values = np.array([[0, 4095, 2048, 100]], np.uint16)
    packed = np.packbits(np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:])
    head = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed.tobytes()
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    assert np.array_equal(open_image(BytesIO(head + body + bytes(4))), eight(values, 4095))


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        ((GREY >> 8).astype(np.int32), {}, "32-bit"),
        ((GREY >> 8).astype(np.uint32), {}, "32-bit"),
        ((GREY >> 1).astype(np.int16), {}, "signed"),
        ((GREY >> 9).astype(np.int8), {}, "signed"),
        (GREY.astype(np.float32), {}, "float"),
        (COLOURS.astype(np.uint16), {"photometric": "rgb", **most(4095)}, "maximum of 4095"),
    ],
)
def test_pixels_without_an_agreed_range_are_refused(
    pixels: np.ndarray, options: dict, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.tif"
    file.write_bytes(tiff(pixels, **options).getvalue())
    with pytest.raises(ValueError, match=f"^cannot read image [^\n]*{message}[^\n]*$"):
        open_image(file)


@pytest.mark.parametrize("pixels", [GREY >> 8, GREY >> 4, COLOURS.astype(np.uint16), COLOURS.astype(np.uint16) * 16])
def test_16_bits_that_are_nearly_black_cause_a_warning(pixels: np.ndarray) -> None:
    for file in (BytesIO(png(pixels)), tiff(pixels, photometric="minisblack" if pixels.ndim == 2 else "rgb")):
        with pytest.warns(UserWarning, match="less than a sixteenth of its range"):
            open_image(file)


def converted(image: Image.Image, colours: np.ndarray | None = None) -> np.ndarray:
    """The image, or `colours` in its colour space, in sRGB."""
    profile = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
    pixels = image if colours is None else Image.fromarray(colours)
    return np.asarray(
        ImageCms.profileToProfile(pixels, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    ).astype(int)


def encoded(light: np.ndarray) -> np.ndarray:
    """Values of sRGB of linear light in [0,1]."""
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(int)


def test_a_linear_png_keeps_its_pixels_and_its_colours(tmp_path: Path) -> None:
    image = open_image(BytesIO(png(COLOURS, {b"gAMA": struct.pack(">I", 100000)})))
    assert np.array_equal(image, COLOURS)
    image.save(tmp_path / "b.png")
    again = open_image(tmp_path / "b.png")
    assert np.array_equal(again, COLOURS)
    assert np.abs(converted(again) - encoded(COLOURS / 255)).max() <= 1
    grey = open_image(BytesIO(png(COLOURS[..., 0], {b"gAMA": struct.pack(">I", 100000)})))
    assert np.abs(converted(grey)[..., 0] - encoded(COLOURS[..., 0] / 255)).max() <= 1


# Colours of other spaces, and the pure red, the pure green and a grey of sRGB that they equal.
SRGB = np.array([[(255, 0, 0), (0, 255, 0), (128, 128, 128)]])
IN_P3 = np.array([[(234, 51, 35), (117, 251, 76), (128, 128, 128)]], np.uint8)
IN_ADOBE = np.array([[(219, 0, 0), (144, 255, 60), (127, 127, 127)]], np.uint8)
P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def avif(primaries: int, transfer: int) -> BytesIO:
    file = BytesIO()
    try:
        Image.fromarray(COLOURS).save(file, "AVIF", quality=100)
    except (KeyError, OSError):
        pytest.skip("this Pillow has no AVIF")
    content = bytearray(file.getvalue())
    place = content.index(b"colrnclx") + 8
    content[place : place + 4] = struct.pack(">HH", primaries, transfer)
    return BytesIO(content)


def test_display_p3_by_chromaticities_by_cicp_and_by_the_box_of_an_avif() -> None:
    files = [
        BytesIO(png(COLOURS, {b"gAMA": struct.pack(">I", 45455), b"cHRM": P3})),
        BytesIO(png(COLOURS, {b"cHRM": P3})),
        BytesIO(png(COLOURS, {b"cICP": bytes([12, 13, 0, 1])})),
        tiff(
            COLOURS,
            photometric="rgb",
            extratags=[(319, "f", 6, (0.68, 0.32, 0.265, 0.69, 0.15, 0.06), True)],
        ),
        avif(12, 13),
    ]
    for number, file in enumerate(files):
        image = open_image(file)
        assert number == 4 or np.array_equal(image, COLOURS)
        assert np.abs(converted(image, IN_P3) - SRGB).max() <= 4, number


def test_hdr_and_unknown_spaces_are_refused() -> None:
    for transfer, message in ((16, "HDR .PQ"), (18, "HDR .HLG"), (99, "unknown")):
        for file in (BytesIO(png(COLOURS, {b"cICP": bytes([9, transfer, 0, 1])})), avif(9, transfer)):
            with pytest.raises(ValueError, match=f"^cannot read image [^\n]*{message}[^\n]*$"):
                open_image(file)
    for chromaticities in (bytes(32), struct.pack(">8I", 31270, 32900, *3 * (30000, 30000))):
        with pytest.raises(ValueError, match="impossible primaries"):
            open_image(BytesIO(png(COLOURS, {b"cHRM": chromaticities})))


def jpeg(colour_space: int, interoperability: str = "", mode: str = "RGB") -> BytesIO:
    exif, file = Image.Exif(), BytesIO()
    exif.get_ifd(0x8769)[0xA001] = colour_space
    if interoperability:
        exif.get_ifd(0x8769)[0xA005] = {1: interoperability}
    Image.fromarray(COLOURS).convert(mode).save(file, "JPEG", exif=exif)
    return file


def test_adobe_rgb_by_exif_becomes_a_profile() -> None:
    for file in (jpeg(0xFFFF, "R03"), jpeg(2)):
        image = open_image(file)
        assert np.array_equal(image, Image.open(file))
        assert np.abs(converted(image, IN_ADOBE) - SRGB).max() <= 2
    with pytest.warns(UserWarning, match="'uncalibrated' and no profile"):
        assert open_image(jpeg(0xFFFF)).info == {}


def test_srgb_by_any_name_adds_no_profile() -> None:
    srgb = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    for chunks in (
        {b"gAMA": struct.pack(">I", 45455)},
        {b"gAMA": struct.pack(">I", 45455), b"cHRM": srgb},
        {b"sRGB": b"\0", b"gAMA": struct.pack(">I", 100000)},
        {b"cICP": bytes([1, 13, 0, 1])},
        {b"gAMA": bytes(4)},
        {b"sBIT": b"\5\6\5"},
    ):
        image = open_image(BytesIO(png(COLOURS, chunks)))
        assert image.info == {}, chunks
        assert np.array_equal(image, COLOURS)
    for file in (jpeg(1), jpeg(1, "R98"), avif(1, 13), avif(2, 2), avif(1, 1)):
        assert open_image(file).info == {}


def test_a_profile_in_the_file_comes_first() -> None:
    profile = to_profile(ADOBE_RGB)
    content = b"profile\0\0" + zlib.compress(profile)
    image = open_image(BytesIO(png(COLOURS, {b"iCCP": content, b"gAMA": struct.pack(">I", 100000), b"cHRM": P3})))
    assert image.info == {"icc_profile": profile}
    image.info["icc_profile"] = to_profile(ColourSpace())
    assert np.abs(converted(image) - COLOURS).max() <= 1, "the profile of sRGB changes nothing"


def test_lab_and_inverted_cmyk() -> None:
    """L* 53.6 without colour is the grey 128 of sRGB; Photoshop stores CMYK inverted in JPEG, which Pillow turns back."""
    lab = np.zeros((4, 4, 3), np.uint8) + np.array([round(53.585 * 2.55), 0, 0], np.uint8)
    assert np.abs(np.asarray(open_image(tiff(lab, photometric="cielab"))).astype(int) - 128).max() <= 1
    cmyk, file = Image.new("CMYK", (8, 8), (0, 0, 0, 0)), BytesIO()
    cmyk.save(file, "JPEG", quality=100)
    assert open_image(file).getpixel((4, 4)) == (255, 255, 255)
