"""The picture of the named mask sets in docs/guides/evaluation.md: three masks of each, white = fill.

python docs/scripts/mask_sets.py
"""

import torch
from pictures import IMAGES, save
from PIL import Image

from rad.images.grid import contact_sheet
from rad.masks.shapes import ALIASES, MASKS, make
from rad.rng import generator

SIDE, MASKS_OF_EACH, COLUMNS = 96, 3, 7


def masks_of(name: str) -> list[Image.Image]:
    holes = make(name)([generator(0, "mask sets", name, number) for number in range(MASKS_OF_EACH)], SIDE, SIDE)
    return [Image.fromarray((255 * hole[0]).to(torch.uint8).numpy()).convert("RGB") for hole in holes]


def main() -> None:
    names = [name for name in MASKS if name not in ALIASES]
    sheets = []
    for first in range(0, len(names), COLUMNS):
        row = names[first : first + COLUMNS]
        columns = list(zip(*map(masks_of, row), strict=True))
        sheets.append(contact_sheet(columns, column_labels=row, cell_size=SIDE, background=160))
    picture = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        picture.paste(sheet, (0, top))
        top += sheet.height
    save(picture, IMAGES / "mask-sets.webp")


if __name__ == "__main__":
    main()
