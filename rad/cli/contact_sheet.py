"""One image of many results: rows are images, columns are methods, between what was given and what was there."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rad.images.codecs import blank, to_tensor

if TYPE_CHECKING:
    from rad.cli.plan import Job


ROWS, LARGEST, SMALLEST = 12, 256, 128


GAP, HEAD = 4, 18


def contact_sheet(
    jobs: Mapping[str, Sequence["Job"]], images: Sequence[tuple[str, Image.Image, Tensor]]
) -> Image.Image:
    """The first sample of the first twelve images by each method.

    Args:
        jobs: for each method, its jobs in the order of the images; files that are missing leave a gap.
        images: name, image as given, and hole (1,H,W) of those to be shown.
    """
    by_name = {name: {job.image.name: job for job in some} for name, some in jobs.items()}
    images = images[:ROWS]
    side = max(SMALLEST, min(LARGEST, max(max(image.size) for _, image, _ in images)))
    titles = [title.replace(",", ",\n") for title in ("input", *jobs, "as given")]
    head = HEAD * max(title.count("\n") + 1 for title in titles)
    sheet = Image.new("RGB", (len(titles) * (side + GAP) + GAP, head + len(images) * (side + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (side + GAP), 1), title, fill="black", font=font)
    for row, (name, image, hole) in enumerate(images):
        cells: list[Image.Image | None] = [blank(to_tensor(image), hole)]
        for by_image in by_name.values():
            path = by_image[name].outputs[0]
            cells.append(Image.open(path) if path.exists() else None)
        for column, cell in enumerate([*cells, image]):
            if cell is not None:
                sheet.paste(_fit(cell, side), (GAP + column * (side + GAP), head + row * (side + GAP)))
    return sheet


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Scaled to fit a square: whole pixels enlarged as they are, large images reduced."""
    if max(image.size) * 2 <= side:
        factor = side // max(image.size)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image
