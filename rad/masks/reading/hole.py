"""The hole in a mask file, as a NumPy array. Polarity is flipped only here. Loads no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rad.images.formats import open_file
from rad.masks.reading.channels import find_channel
from rad.masks.reading.format import DEFAULT, MaskFormat
from rad.masks.reading.values import to_white

MaskSource = str | Path | BinaryIO | Image.Image

Hole = NDArray[np.float32]
"""(H,W) in [0,1], 1 = fill."""

WHITE_IS_ZERO = {"I;16", "I;16B", "F"}
"""Modes of TIFFs that Pillow leaves inverted."""


@dataclass(frozen=True)
class LoadedHole:
    """A hole (H,W) in [0,1], notes on how its file was read, and warnings of possible mistakes."""

    hole: Hole
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load_hole(
    source: MaskSource,
    format: MaskFormat = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    image: Image.Image | None = None,
    name: str | None = None,
) -> LoadedHole:
    """Read a mask from a file name, binary file or image, with messages.

    Notes name a choice of "auto", and values that are not plain black and white. Warnings name further pages, and what
    `check_hole` finds.

    Args:
        size: required (height, width); None accepts any.
        image: the image to fill in RGB, which shows where a copy of it was painted over; its size is required.
        name: identifies the mask in errors; None: the file's.

    Raises FileNotFoundError, or ValueError for a file that is no image, has another size, or is not clearly a mask.
    """
    name = name_of(source) if name is None else name
    decoded = decode(source, name)
    size = (image.height, image.width) if image is not None else size
    mask_image = decoded.image if size is None else fit(decoded.image, size, format, name)
    reference = None if image is None else np.asarray(image)
    try:
        channel = find_channel(
            mask_image, format, reference=reference, white_is_zero=decoded.white_is_zero, lossy=decoded.lossy
        )
        white, message = to_white(
            channel.values, top=channel.top, threshold=format.threshold, soft=format.soft, lossy=decoded.lossy
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if decoded.halved and np.ptp(mask_image.getextrema()) == 0:
        raise ValueError(f"{name}: its 16-bit colours are alike in the 8 bits that are read: save it as grey")
    notes = [note for note in (channel.message, message) if note]
    more = [f"it has {decoded.pages} pages, of which the first is used"] if decoded.pages > 1 else []
    # Flipped in float64: the float32 of a grey is the same in both polarities.
    white = white.astype(np.float64) if format.soft else white
    hole = white if format.polarity == "white_is_fill" else 1 - white if format.soft else np.logical_not(white)
    filled = dilate(hole.astype(np.float32), format.dilate)
    return LoadedHole(filled, notes, more + check_hole(filled, format, white=not channel.message))


def dilate(hole: Hole, pixels: int) -> Hole:
    """The hole (H,W), grown by `pixels` in each direction (a square)."""
    if not pixels:
        return hole
    from scipy import ndimage

    for axis, length in enumerate(hole.shape):
        if reach := min(pixels, length):
            grown = ndimage.maximum_filter1d(hole, 2 * reach + 1, axis=axis, mode="constant", cval=0.0)
            hole = np.asarray(grown, np.float32)
    return hole


def check_hole(hole: Hole, format: MaskFormat, *, white: bool = True) -> list[str]:
    """Messages about a hole (H,W) that may be a mistake: empty, full, inverted (if `white` was read), or mostly grey."""
    share = float((hole > 0).mean())
    if share == 0:
        return ["it is empty: nothing is filled"]
    if bool((hole == 1).all()):
        return ["it is full: the whole image is filled"]
    messages = []
    if white and format.polarity == "white_is_fill" and looks_inverted(hole):
        messages.append(
            "it looks inverted (as masks for outpainting do): for white = known use --mask_polarity white_is_known"
        )
    grey = float(((hole > 0) & (hole < 1)).mean()) / share
    if format.soft and grey > 0.5:
        messages.append(f"{100 * grey:.0f} % of its hole is grey, and filled only in part")
    return messages


def looks_inverted(hole: Hole) -> bool:
    """Whether a hole (H,W) may have the wrong polarity; for warnings.

    True if more than half of the image and its whole outermost ring are hole, and some pixel is known. Outpainting masks
    also match. Inverted masks whose spots touch the border are not detected.
    """
    fill = hole > 0.5
    ring = np.concatenate([fill[0], fill[-1], fill[:, 0], fill[:, -1]])
    return bool(fill.mean() > 0.5 and ring.all() and not fill.all())


def name_of(source: object) -> str:
    """How messages call a mask: by its file."""
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or "the mask given")


@dataclass(frozen=True)
class Decoded:
    """The first page of a file, upright."""

    image: Image.Image
    white_is_zero: bool = False
    lossy: bool = False
    halved: bool = False
    pages: int = 1


def decode(source: MaskSource, name: str) -> Decoded:
    """Open a mask file. Errors as in `load_hole`."""
    try:
        if isinstance(source, Image.Image):
            return Decoded(ImageOps.exif_transpose(source))
        with open_file(source) as image:
            white_is_zero = image.mode in WHITE_IS_ZERO and getattr(image, "tag_v2", {}).get(262) == 0
            lossy, pages = image.format in ("JPEG", "MPO"), getattr(image, "n_frames", 1)
            halved = image.mode[0] not in "IF" and ";16" in str(getattr(image, "tile", ""))  # 16-bit colour
            return Decoded(ImageOps.exif_transpose(image), white_is_zero, lossy, halved, pages)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damaged input makes Pillow raise almost anything
        raise ValueError(f"{name}: not a readable image ({error}); give a PNG or another image file") from error


def fit(image: Image.Image, size: tuple[int, int], format: MaskFormat, name: str) -> Image.Image:
    """The mask's image in that (height, width). Raises ValueError for another size without `format.resize`, or another aspect."""
    height, width = size
    if image.size == (width, height):
        return image
    # Rounding one side of an equal aspect ratio moves it by less than a pixel, in either size.
    error = abs(image.width * height - image.height * width)
    similar = error <= max(image.width, image.height, width, height)
    if similar and format.resize == "nearest":
        return image.resize((width, height), Image.Resampling.NEAREST)
    raise ValueError(
        f"{name}: the mask is {image.width}x{image.height} (width x height), not {width}x{height}; "
        + ("give --mask_resize nearest, or " if similar else "")
        + "give the mask that belongs to the image"
    )
