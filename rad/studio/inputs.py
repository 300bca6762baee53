"""Images and masks of a request, decoded as by `rad sample`; results and masks as PNG."""

import re
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rad.images.codecs import naming_errors, open_image
from rad.images.formats import open_file
from rad.masks.reading.format import MaskFormat
from rad.masks.reading.hole import load_hole
from rad.studio.uploads import Refused

PREVIEW_SIDE = 512

CHUNK = "rad-settings"
"""Keyword of the text chunk in a PNG file: the settings, without names and prompts."""


@dataclass(frozen=True)
class ReadHole:
    """A hole (H,W) float32 in [0,1], its PNG, and messages about its file."""

    values: NDArray[np.float32]
    png: bytes
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def soft(self) -> bool:
        return bool(((self.values > 0) & (self.values < 1)).any())


def decode_image(data: bytes, *, megapixels: float, name: str = "image") -> Image.Image:
    """The RGB image in a file. Raises Refused: 413 for too many pixels, 422 for a file that cannot be read."""
    _check_pixels(data, megapixels, name)
    try:
        return open_image(BytesIO(data), name=name)
    except ValueError as error:
        raise _unreadable(error, name) from None


def read_hole(data: bytes, format: MaskFormat, *, megapixels: float, image: Image.Image | None = None) -> ReadHole:
    """The hole in a mask file, rounded to the 8 bits of its PNG. Raises Refused as `decode_image`."""
    _check_pixels(data, megapixels, "mask")
    try:
        mask = load_hole(BytesIO(data), format, image=image, name="mask")
    except ValueError as error:
        raise _unreadable(error, "mask") from None
    grey = np.rint(255 * mask.hole).astype(np.uint8)
    return ReadHole(as_hole(grey), encode(Image.fromarray(grey)), mask.notes, mask.warnings)


def as_hole(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The hole (H,W) in a mask of 8 bits, as `rad sample` reads it."""
    return np.divide(grey, 255, dtype=np.float64).astype(np.float32)


def read_written(png: bytes) -> NDArray[np.uint8]:
    """The pixels (H,W) of `ReadHole.png`."""
    with Image.open(BytesIO(png), formats=["PNG"]) as image:
        return np.array(image)


def empty_hole(image: Image.Image) -> ReadHole:
    """The hole of an outpainting without a mask."""
    grey = np.zeros((image.height, image.width), np.uint8)
    return ReadHole(grey.astype(np.float32), encode(Image.fromarray(grey)))


def encode(image: Image.Image, *, settings: str = "", compression: int = 6) -> bytes:
    """A PNG file; `settings` go into its text chunk. A colour profile in `info` is kept."""
    text, file = PngInfo(), BytesIO()
    if settings:
        text.add_text(CHUNK, settings)
    image.save(file, format="PNG", pnginfo=text, compress_level=compression)
    return file.getvalue()


def encode_preview(image: Image.Image) -> bytes:
    """A small PNG, quickly."""
    image = image.copy()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR)
    return encode(image, compression=1)


def without_paths(message: str) -> str:
    """A message whose absolute paths are cut to their last part."""
    return re.sub(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"()]+[/\\])+([^\s/\\'\"()]*)", r"\1", message)


def _unreadable(error: ValueError, name: str) -> Refused:
    """The message for a file of the field `name`, with names of fields in place of options."""
    message = str(error).replace(f"cannot read image {name}:", f"cannot read the {name}:")
    return Refused(422, message.removeprefix(f"{name}: ").replace("--", ""))


def _check_pixels(data: bytes, megapixels: float, name: str) -> None:
    try:
        with naming_errors(name), open_file(BytesIO(data)) as image:
            width, height = image.size
    except ValueError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise _too_large(f"the {name} has too many pixels", megapixels) from None
        raise _unreadable(error, name) from None
    if width * height > megapixels * 1e6:
        raise _too_large(f"the {name} has {width}x{height} pixels", megapixels)


def _too_large(problem: str, megapixels: float) -> Refused:
    return Refused(413, f"{problem}; this server takes up to {megapixels:g} megapixels: make it smaller")
