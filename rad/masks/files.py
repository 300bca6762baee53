"""Mask files: read, write, compare, detect mistakes. Polarity is flipped only here."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from rad.images.atomic import replacing
from rad.images.formats import open_file
from rad.masks.reading.channels import find_channel
from rad.masks.reading.format import DEFAULT, MaskFormat, MaskWarning
from rad.masks.reading.values import to_white

MaskSource = str | Path | BinaryIO | Image.Image

WHITE_IS_ZERO = {"I;16", "I;16B", "F"}
"""Modes of TIFFs that Pillow leaves inverted."""


@dataclass(frozen=True)
class LoadedMask:
    """A hole (1,H,W) in [0,1], notes on how its file was read, and warnings of possible mistakes."""

    hole: Tensor
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_mask(
    source: MaskSource,
    format: MaskFormat = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    image: Image.Image | None = None,
) -> Tensor:
    """Read a mask from a file name, binary file or image. Warns as `load_mask` describes.

    Example:
        hole = read_mask("strokes.png", MaskFormat(channel="alpha", dilate=2))

    Args:
        size: required (height, width); `None` accepts any.
        image: the image to fill in RGB, which shows where a copy of it was painted over; its size is required.

    Returns (1,H,W) float32 in [0,1], 1 = fill; with `format.soft` also between. Raises FileNotFoundError, or ValueError for
    a file that is no image, has another size, or is not clearly a mask.
    """
    name = name_of(source)
    mask = load_mask(source, format, size=size, image=image, name=name)
    for message in mask.notes + mask.warnings:
        warnings.warn(f"{name}: {message}", MaskWarning, stacklevel=2)
    return mask.hole


def load_mask(
    source: MaskSource,
    format: MaskFormat = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    image: Image.Image | None = None,
    name: str | None = None,
) -> LoadedMask:
    """As `read_mask`, with messages in place of warnings.

    Notes name a choice of "auto", and values that are not plain black and white. Warnings name further pages, and what
    `check_hole` finds. `name` identifies the mask in errors.
    """
    name = name_of(source) if name is None else name
    decoded = _decode(source, name)
    size = (image.height, image.width) if image is not None else size
    picture = decoded.picture if size is None else fit(decoded.picture, size, format, name)
    reference = None if image is None else np.asarray(image)
    try:
        channel = find_channel(
            picture, format, reference=reference, white_is_zero=decoded.white_is_zero, lossy=decoded.lossy
        )
        white, message = to_white(
            channel.values, top=channel.top, threshold=format.threshold, soft=format.soft, lossy=decoded.lossy
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if decoded.halved and np.ptp(picture.getextrema()) == 0:
        raise ValueError(f"{name}: its 16-bit colours are alike in the 8 bits that are read: save it as grey")
    notes = [note for note in (channel.message, message) if note]
    more = [f"it has {decoded.pages} pages, of which the first is used"] if decoded.pages > 1 else []
    # Flipped in float64: the float32 of a grey is the same in both polarities.
    white = white.astype(np.float64) if format.soft else white
    hole = white if format.polarity == "white_is_fill" else 1 - white if format.soft else np.logical_not(white)
    filled = dilate(torch.from_numpy(hole.astype(np.float32))[None], format.dilate)
    return LoadedMask(filled, notes, more + check_hole(filled, format, white=not channel.message))


def read_written_mask(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """The hole (1,H,W) in a file of `write_mask`, exactly. Raises ValueError for another size."""
    picture = _decode(path, str(path)).picture
    picture = picture if size is None else fit(picture, size, DEFAULT, str(path))
    return torch.from_numpy((np.asarray(picture.convert("L")) / 255).astype(np.float32))[None]


def write_mask(path: str | Path, hole: Tensor) -> None:
    """Write a hole (1,H,W) in [0,1] atomically as 8-bit grey PNG, white = fill; creates missing folders."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: masks are written as PNG, which keeps every pixel; end the name in .png")
    if hole.ndim != 3 or hole.shape[0] != 1:
        raise ValueError(f"{path}: one hole of shape (1,H,W) is needed, not {tuple(hole.shape)}")
    if not ((hole >= 0) & (hole <= 1)).all():
        raise ValueError(f"{path}: a hole lies in [0,1], this one in [{hole.min():.3g},{hole.max():.3g}]")
    grey = (255 * hole[0].float()).round().to(torch.uint8).cpu().numpy()
    with replacing(Path(path)) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")


def same_mask(path: str | Path, hole: Tensor) -> bool:
    """Whether a mask file (white = fill) equals what `write_mask` writes for this hole."""
    return torch.equal(read_written_mask(path), hole.mul(255).round().div(255))


def dilate(hole: Tensor, pixels: int) -> Tensor:
    """The hole (1,H,W), grown by `pixels` in each direction (a square)."""
    for side, kernel in enumerate(((1, 0), (0, 1))):
        reach = min(pixels, hole.shape[side + 1])
        padding = (reach * kernel[0], reach * kernel[1])
        window = (2 * padding[0] + 1, 2 * padding[1] + 1)
        hole = F.max_pool2d(hole, window, stride=1, padding=padding) if reach else hole
    return hole


def check_hole(hole: Tensor, format: MaskFormat, *, white: bool = True) -> list[str]:
    """Messages about a hole (1,H,W) that may be a mistake: empty, full, inverted (if `white` was read), or mostly grey."""
    share = float((hole > 0).float().mean())
    if share == 0:
        return ["it is empty: nothing is filled"]
    if bool((hole == 1).all()):
        return ["it is full: the whole image is filled"]
    messages = []
    if white and format.polarity == "white_is_fill" and looks_inverted(hole):
        messages.append(
            "it looks inverted (as masks for outpainting do): for white = known use --mask_polarity white_is_known"
        )
    grey = float(((hole > 0) & (hole < 1)).float().mean()) / share
    if format.soft and grey > 0.5:
        messages.append(f"{100 * grey:.0f} % of its hole is grey, and filled only in part")
    return messages


def name_of(source: object) -> str:
    """How messages call a mask: by its file."""
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or "the mask given")


def looks_inverted(hole: Tensor) -> bool:
    """Whether a hole (1,H,W) may have the wrong polarity; for warnings.

    True if more than half of the image and its whole outermost ring are hole, and some pixel is known. Outpainting masks
    also match. Inverted masks whose spots touch the border are not detected.
    """
    fill = hole[0] > 0.5
    ring = torch.cat([fill[0], fill[-1], fill[:, 0], fill[:, -1]])
    return bool(fill.float().mean() > 0.5 and ring.all() and not fill.all())


@dataclass(frozen=True)
class _Decoded:
    """The first page of a file, upright."""

    picture: Image.Image
    white_is_zero: bool = False
    lossy: bool = False
    halved: bool = False
    pages: int = 1


def _decode(source: MaskSource, name: str) -> _Decoded:
    try:
        if isinstance(source, Image.Image):
            return _Decoded(ImageOps.exif_transpose(source))
        with open_file(source) as image:
            white_is_zero = image.mode in WHITE_IS_ZERO and getattr(image, "tag_v2", {}).get(262) == 0
            lossy, pages = image.format in ("JPEG", "MPO"), getattr(image, "n_frames", 1)
            halved = image.mode[0] not in "IF" and ";16" in str(getattr(image, "tile", ""))  # 16-bit colour
            return _Decoded(ImageOps.exif_transpose(image), white_is_zero, lossy, halved, pages)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damaged input makes Pillow raise almost anything
        raise ValueError(f"{name}: not a readable image ({error}); give a PNG or another image file") from error


def fit(picture: Image.Image, size: tuple[int, int], format: MaskFormat, name: str) -> Image.Image:
    """The picture in that (height, width). Raises ValueError for another size without `format.resize`, or another aspect."""
    height, width = size
    if picture.size == (width, height):
        return picture
    # Rounding one side of an equal aspect ratio moves it by less than a pixel, in either size.
    error = abs(picture.width * height - picture.height * width)
    similar = error <= max(picture.width, picture.height, width, height)
    if similar and format.resize == "nearest":
        return picture.resize((width, height), Image.Resampling.NEAREST)
    raise ValueError(
        f"{name}: the mask is {picture.height}x{picture.width} (height x width), not {height}x{width}; "
        + ("give --mask_resize nearest, or " if similar else "")
        + "give the mask that belongs to the image"
    )
