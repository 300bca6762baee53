"""Contact sheets: many images in one, in rows and columns with labels; images with their hole in a colour. Loads no torch."""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LINE, FONT_SIZE = 18, 13


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    title: str = "",
    cell_size: int = 128,
    padding: int = 4,
    background: int = 255,
) -> Image.Image:
    """RGB image of images in rows and columns, each at the top left of a square cell. Long labels wrap.

    A small image is enlarged by a whole factor without interpolation; a large image is reduced.

    Args:
        rows: at least one image in all; None, or the end of a short row, leaves a cell empty.
        column_labels, captions, title: texts above the columns, below the images, and above everything.
        cell_size, padding: side of a cell, and distance between cells and to the border, in pixels.
        background: grey value, 0 to 255.
    """
    columns, pitch = max(map(len, rows)), cell_size + padding
    below = [[_wrap(text, cell_size) for text in row] for row in captions] or [[]] * len(rows)
    caption_height = LINE * max((_count_lines(text) for row in below for text in row), default=0)
    labels = [_wrap(text, cell_size) for text in column_labels]
    width, height = padding + columns * pitch, padding + len(rows) * (pitch + caption_height)
    title = _wrap(title, width - 2 * padding)
    title_height = LINE * _count_lines(title)
    head = title_height + LINE * max(map(_count_lines, labels), default=0)
    top = max(padding, head)  # the labels take the place of the padding
    sheet = Image.new("RGB", (width, top - padding + height), (background,) * 3)
    for row, (images, texts) in enumerate(zip(rows, below, strict=True)):
        for column in range(columns):
            tile = Image.new("RGB", (cell_size, cell_size + caption_height), (background,) * 3)
            image = images[column] if column < len(images) else None
            if image is not None:
                image = _fit(image, cell_size)
                tile.paste(image)
            if column < len(texts):
                _write(tile, (0, image.height + 1 if image else 0), texts[column])
            sheet.paste(tile, (padding + column * pitch, top + row * (pitch + caption_height)))
    _write(sheet, (padding, 1), title)
    for column, text in enumerate(labels):
        _write(sheet, (padding + column * pitch, title_height + 1), text)
    return sheet


def blend(image: Image.Image, colour: tuple[float, float, float], weight: NDArray[np.float32]) -> Image.Image:
    """The RGB image with `weight` (H,W) in [0,1] of a colour in [0,1]; exact at both ends, rounded once."""
    pixels, share = np.asarray(image, np.float32) / np.float32(255), weight[..., None]
    end = np.array(colour, np.float32)
    blended = np.where(share < 0.5, pixels + share * (end - pixels), end - (end - pixels) * (1 - share))
    return Image.fromarray(np.rint(np.clip(blended, 0, 1) * np.float32(255)).astype(np.uint8))


def _fit(image: Image.Image, side: int) -> Image.Image:
    image = image.convert("RGB")
    if factor := side // max(image.size):
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _write(image: Image.Image, place: tuple[int, int], text: str) -> None:
    font = ImageFont.load_default(size=FONT_SIZE)
    for line in text.split("\n"):
        ImageDraw.Draw(image).text(place, line, fill="black", font=font)
        place = (place[0], place[1] + LINE)


def _wrap(text: str, width: int) -> str:
    if not text:
        return ""
    pixels = ImageFont.load_default(size=FONT_SIZE).getlength(text) / len(text)
    words = " ".join(text.replace(",", ", ").split())
    return "\n".join(textwrap.wrap(words, max(1, int(width / pixels))))


def _count_lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0
