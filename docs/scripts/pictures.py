"""Photographs, damage and layout for the pictures of the documentation."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rad.masks.damage import Polylines
from rad.rng import generator

IMAGES = Path(__file__).resolve().parents[1] / "images"

Box = tuple[int, int, int, int]
GREY = (128, 128, 128, 255)
"""Colour of labels; readable on a white and on a black page."""


def photograph(file: str, box: Box | None = None) -> Image.Image:
    """A photograph of scikit-image, such as "coffee.png", cut to `box` (left, top, right, bottom)."""
    image = Image.open(Path(str(files("skimage"))) / "data" / file).convert("RGB")
    return image if box is None else image.crop(box)


def scratches(size: tuple[int, int], count: int, *, width: tuple[float, float], seed: int) -> Image.Image:
    """Mask of random scratches, `width` in pixels; white is the hole."""
    draw = Polylines(strokes=(count, count), width=width, segments=(2, 4), length=(0.15, 0.5), turn=40)
    return to_mask(draw([generator(seed, "scratches")], size[1], size[0])[0])


def letters(
    size: tuple[int, int], texts: Sequence[tuple[str, tuple[int, int], int]], *, margin: int = 0
) -> Image.Image:
    """Mask of texts, each with its place (left, top) and font size in pixels; `margin` pixels around the letters.

    With a margin the mask is black and white; without one it has the soft edges of the letters.
    """
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for text, place, height in texts:
        draw.text(place, text, fill=255, font=ImageFont.load_default(height), stroke_width=margin)
    return mask.point([0] * 41 + [255] * 215) if margin else mask


def polygons(size: tuple[int, int], shapes: Sequence[Sequence[tuple[int, int]]]) -> Image.Image:
    """Mask of filled polygons, each a list of (x, y)."""
    mask = Image.new("L", size)
    for shape in shapes:
        ImageDraw.Draw(mask).polygon(list(shape), fill=255)
    return mask


def to_mask(hole: Tensor) -> Image.Image:
    """A hole (1,H,W) in [0,1] as an image."""
    return Image.fromarray((255 * hole[0]).round().byte().numpy())


def painted(image: Image.Image, mask: Image.Image, colour: str = "white") -> Image.Image:
    """The image with `colour` in the hole."""
    return Image.composite(Image.new("RGB", image.size, colour), image, mask)


def marked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image with a red tint over the hole, weaker where the mask is grey."""
    tinted = Image.blend(image, Image.new("RGB", image.size, (255, 40, 40)), 0.55)
    return Image.composite(tinted, image, mask)


def grid(rows: Sequence[Sequence[Image.Image]], *, gap: int = 8) -> Image.Image:
    """Rows of images of one size on a transparent page."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    page = Image.new("RGBA", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), (0, 0, 0, 0))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            page.paste(image, (x * (width + gap), y * (height + gap)))
    return page


def labelled(page: Image.Image, labels: Sequence[str], *, size: int = 14) -> Image.Image:
    """The page with a label in the middle above each of its columns of equal width."""
    top = size + 8
    result = Image.new("RGBA", (page.width, page.height + top), (0, 0, 0, 0))
    result.paste(page, (0, top))
    draw, font = ImageDraw.Draw(result), ImageFont.load_default(size)
    for column, label in enumerate(labels):
        middle = (column + 0.5) * page.width / len(labels)
        draw.text((middle, size / 2 + 1), label, fill=GREY, font=font, anchor="mm")
    return result


def save(image: Image.Image, name: str, folder: Path = IMAGES, *, quality: int = 85) -> Path:
    """Write NAME as WebP into the folder, and report its size."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality, method=6)
    print(f"{path}: {image.width}x{image.height}, {path.stat().st_size / 1024:.0f} KB")
    return path
