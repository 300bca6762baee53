"""Image files to tensors and back: colour, orientation, bit depth, one rounding to 8 bits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rad.images.colour import is_uncalibrated, named_space, to_profile
from rad.images.depth import black_and_white, check_samples, is_dark, to_8_bits
from rad.images.formats import read_file


@contextmanager
def naming_errors(name: str) -> Iterator[None]:
    """Every error becomes a ValueError of one line that names the image."""
    try:
        yield
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
        (is_dark, "a 16-bit image uses less than a sixteenth of its range: scale it if its values have 8 or 12 bits"),
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

    16-bit grey is divided by 257 (65535 -> 255), or scaled from the range in the file (`rad.images.depth`); of 16-bit
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
    levels = black_and_white(image) if image.mode.startswith("I") else None
    image = ImageOps.exif_transpose(image)
    if levels is not None:  # Pillow's own conversion of 16 bits clips at 255
        image = to_8_bits(image, *levels)
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


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3,H,W) float32 in [0, 1]; value v of 8 bits becomes v / 255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)


def to_uint8(image: Tensor) -> Image.Image:
    """(3,H,W) in [0, 1] as an 8-bit RGB image: clamped, times 255, rounded once (ties to even)."""
    return Image.fromarray(round_to_uint8(image.detach()).cpu().permute(1, 2, 0).contiguous().numpy())


def round_to_uint8(image: Tensor) -> Tensor:
    """Values in [0, 1] as uint8, rounded as in `to_uint8`."""
    return image.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)


def blank(image: Tensor, hole: Tensor) -> Image.Image:
    """The image (3,H,W) in [0,1] with its hole (1,H,W) in mid-grey, 0.5."""
    return to_uint8(torch.lerp(image, torch.full_like(image, 0.5), hole))
