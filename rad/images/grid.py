"""Contact sheets: many images in one, in rows and columns with labels."""

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from rad.images.tensors import to_tensor, to_uint8

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
    from torchvision.utils import make_grid

    columns, pitch, grey = max(map(len, rows)), cell_size + padding, background / 255
    below = [[_wrap(text, cell_size) for text in row] for row in captions] or [[]] * len(rows)
    caption_height = LINE * max((_count_lines(text) for row in below for text in row), default=0)
    tiles = []
    for images, texts in zip(rows, below, strict=True):
        for column in range(columns):
            tile = Image.new("RGB", (cell_size, cell_size + caption_height), (background,) * 3)
            image = images[column] if column < len(images) else None
            if image is not None:
                image = _fit(image, cell_size)
                tile.paste(image)
            if column < len(texts):
                _write(tile, (0, image.height + 1 if image else 0), texts[column])
            tiles.append(to_tensor(tile))
    if len(tiles) == 1:  # make_grid would add no padding
        grid = torch.nn.functional.pad(tiles[0], [padding] * 4, value=grey)
    else:
        grid = make_grid(torch.stack(tiles), nrow=columns, padding=padding, pad_value=grey)

    labels = [_wrap(text, cell_size) for text in column_labels]
    title = _wrap(title, grid.shape[2] - 2 * padding)
    title_height = LINE * _count_lines(title)
    head = title_height + LINE * max(map(_count_lines, labels), default=0)
    top = max(0, head - padding)  # the grid begins with its own padding
    sheet = Image.new("RGB", (grid.shape[2], top + grid.shape[1]), (background,) * 3)
    sheet.paste(to_uint8(grid), (0, top))
    _write(sheet, (padding, 1), title)
    for column, text in enumerate(labels):
        _write(sheet, (padding + column * pitch, title_height + 1), text)
    return sheet


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
