"""Image files to 8-bit RGB images: colour, orientation, bit depth. Loads no torch."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from rad.images.colour import is_uncalibrated, named_space, to_profile
from rad.images.formats import read_file
from rad.images.remote import Unreachable

_BITS, _WHITE_IS_ZERO, _MOST, _SAMPLE_FORMAT = 258, 262, 281, 339  # tags of TIFF


@contextmanager
def naming_errors(name: str) -> Iterator[None]:
    """Every error becomes a ValueError of one line that names the image; `Unreachable` stays."""
    try:
        yield
    except Unreachable:
        raise
    except Exception as error:  # damaged input makes Pillow and zipfile raise almost anything
        if isinstance(error, Image.DecompressionBombError):
            reason = f"{str(error).partition(',')[0]} (rad sample --max_megapixels, PIL.Image.MAX_IMAGE_PIXELS)"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"cannot read image {name}: {reason.splitlines()[0]}") from error


@contextmanager
def images_up_to(megapixels: float) -> Iterator[None]:
    """Set Pillow's global limit: larger images are refused, smaller ones cause no warning. For commands."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, int(megapixels * 500_000)  # Pillow refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_image(file: str | Path | IO[bytes], *, name: str | None = None) -> Image.Image:
    """The first frame of the image in a path or binary stream, converted by `to_rgb`.

    Warns, once in a process, of 16-bit images that are nearly black, and of colours that EXIF calls uncalibrated.
    `name` identifies the image in errors; None: the path or the stream's own name.
    Raises ValueError if the file is missing, truncated, no image or too large for Pillow, and as `to_rgb`.
    """
    with naming_errors(name or str(getattr(file, "name", file))):
        image = read_file(file)
        rgb = to_rgb(image)
    remarks = (
        (_is_dark, "a 16-bit image uses less than a sixteenth of its range: scale it if its values have 8 or 12 bits"),
        (
            is_uncalibrated,
            "an image has EXIF's colour space 'uncalibrated' and no profile: its colours are taken for sRGB",
        ),
    )
    for applies, remark in remarks:
        if applies(image):
            warnings.warn(remark, stacklevel=1)  # without the image's name, so that Python shows it once
    return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, upright by its EXIF orientation.

    16-bit grey is divided by 257 (65535 -> 255), or scaled from the range in the file; of 16-bit
    colours the high byte stays. Alpha is dropped, not composited. An RGB profile stays in `info["icc_profile"]`, which Pillow
    writes into a PNG; a colour space that a file names otherwise becomes a profile there (`rad.images.colour`). Grey and CMYK
    profiles are converted to sRGB.

    Raises ValueError for pixels without an agreed range (float, signed, 32 bits), HDR, or a damaged profile of grey or CMYK.
    """
    check_samples(image)
    profile = image.info.get("icc_profile") or b""
    named = named_space(image)
    if not profile and named is not None and not named.is_srgb() and image.mode not in ("CMYK", "LAB"):
        profile = to_profile(named)
    space = profile[16:20]
    levels = _black_and_white(image) if image.mode.startswith("I") else None
    image = ImageOps.exif_transpose(image)
    if levels is not None:  # Pillow's own conversion of 16 bits clips at 255
        image = _to_8_bits(image, *levels)
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    if (image.mode, space) in (("L", b"GRAY"), ("CMYK", b"CMYK")):
        image = _to_srgb(image, profile)
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB is the same, with a warning
        image = image.convert("RGBA")
    keep = space == b"RGB " and image.mode != "CMYK"
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.info = {"icc_profile": profile} if keep else {}
    return image


def check_samples(image: Image.Image) -> None:
    """Raise ValueError for pixels without an agreed range: float, signed, 32 bits, or TIFF colours with a maximum."""
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range: convert it to 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS, (1,)))
    if bits <= 16 and any(kind == 2 for kind in tags.get(_SAMPLE_FORMAT, ())):
        raise ValueError("signed pixels have no agreed range: convert it to 8 or 16 bits without sign")
    if bits > 16 or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("32-bit pixels have no agreed range: convert it to 8 or 16 bits")
    if len(tags.get(_BITS, ())) > 1 and 16 in tags[_BITS] and _most(tags) < 65535:
        raise ValueError(f"16-bit colours with a maximum of {_most(tags)} cannot be read: scale them to 65535")


def _most(tags: "dict[int, tuple[int, ...]]") -> int:
    """The value of white: MaxSampleValue, or 2**bits - 1."""
    most = tags.get(_MOST, 0)
    most = max(most) if isinstance(most, tuple) else int(most)
    return most or 2 ** max(tags.get(_BITS, (16,))) - 1


def _black_and_white(image: Image.Image) -> tuple[int, int]:
    """Values of black and white in the pixels of a grey file of more than 8 bits.

    White is 65535, or the value in BitsPerSample or MaxSampleValue of TIFF, or sBIT of a PNG that was not scaled to 16 bits.
    """
    if tags := getattr(image, "tag_v2", None):
        white = _most(tags)
        return (white, 0) if tags.get(_WHITE_IS_ZERO) == 0 else (0, white)  # Pillow inverts 8 bits, but not 16
    significant = 2 ** image.info.get("significant_bits", 16) - 1
    return 0, significant if np.asarray(image).max(initial=0) <= significant else 65535


def _to_8_bits(image: Image.Image, black: int, white: int) -> Image.Image:
    """An image of mode I or I;16 in mode L, by one rounding: `black` becomes 0, `white` 255."""
    values = np.clip(np.asarray(image).astype(np.int64), min(black, white), max(black, white))
    return Image.fromarray(np.uint8(np.rint((values - black) * 255 / (white - black))))


def _is_dark(image: Image.Image) -> bool:
    """Whether a file of 16 bits fills less than a sixteenth of its range: its values may have 8 or 12 bits."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I"):
        return 0 < np.asarray(image).max(initial=0) <= max(_black_and_white(image)) // 16
    sixteen = image.info.get("bits") == 16 or 16 in tags.get(_BITS, ())
    return sixteen and image.mode in ("RGB", "RGBA") and np.asarray(image)[..., :3].max(initial=0) < 16


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    from PIL import ImageCms

    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(f"its colour profile cannot be used ({error}): save it as sRGB") from error
    assert converted is not None
    return converted
