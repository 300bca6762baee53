"""Pictures of docs/gallery.md: runs the commands of the page, and shows input and result.

python docs/scripts/gallery.py                  # all of them
python docs/scripts/gallery.py badge            # this one
python docs/scripts/gallery.py --inputs         # only writes the photographs and masks into runs/gallery
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from pictures import IMAGES, grid, letters, marked, painted, photograph, polygons, save, scratches
from PIL import Image, ImageDraw

from rad.__main__ import main as rad

FOLDER = Path("runs/gallery")
SIDE = 400
Inputs = tuple[Image.Image, Image.Image | None]
"""The image with its damage, and the mask; None: the command needs none."""


@dataclass(frozen=True)
class Case:
    """A picture of the gallery: its inputs, and the options of `rad sample` after image, mask and output."""

    inputs: Callable[[], Inputs]
    options: str
    shown: bool = False
    """Whether the input is shown with its hole in red; damage is visible without it."""
    samples: int = 1

    def command(self, name: str) -> str:
        """The command of the page."""
        mask = "" if self.inputs()[1] is None else f" --mask {FOLDER}/{name}-mask.png"
        return f"rad sample --image {FOLDER}/{name}.png{mask} --output {FOLDER}/{name}-result.png {self.options}"


def coffee() -> Image.Image:
    return photograph("coffee.png", (110, 0, 510, 400))


def cat() -> Image.Image:
    return photograph("chelsea.png", (100, 0, 400, 300)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def astronaut() -> Image.Image:
    return photograph("astronaut.png", (56, 0, 456, 400))


def disk(x: int, y: int, radius: int, *, side: int = SIDE) -> Image.Image:
    """Mask of a disk."""
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def scratched() -> Inputs:
    mask = scratches((SIDE, SIDE), 16, width=(1.5, 3), seed=5)
    return painted(coffee(), mask), mask


def lettered() -> Inputs:
    texts = [("HAPPY BIRTHDAY", (30, 350), 30), ("from all of us", (30, 20), 22)]
    return painted(cat(), letters((SIDE, SIDE), texts)), letters((SIDE, SIDE), texts, margin=2)


def badge() -> Inputs:
    return astronaut(), disk(113, 378, 46)


def wider() -> Inputs:
    return coffee().resize((96, 96), Image.Resampling.LANCZOS), None


def strengths() -> Inputs:
    """Four disks of striped fur, with mask values of a quarter, a half, three quarters and one."""
    image = photograph("chelsea.png", (160, 0, 310, 100)).resize((300, 200), Image.Resampling.LANCZOS)
    mask = Image.new("L", (300, 300))
    for number in range(4):
        mask.paste(64 * (number + 1) - 1, mask=disk(42 + 72 * number, 87, 27, side=300))
    return image, mask.crop((0, 0, 300, 200))


def sampled() -> Inputs:
    image = photograph("chelsea.png", (120, 0, 420, 300)).resize((32, 32), Image.Resampling.LANCZOS)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    return image, mask


def tower() -> Inputs:
    outline = [(172, 92), (186, 92), (196, 250), (190, 358), (148, 362), (160, 250)]
    return photograph("rocket.jpg", (20, 27, 420, 427)), polygons((SIDE, SIDE), [outline])


def face() -> Inputs:
    return astronaut(), disk(168, 118, 44)


CASES: dict[str, Case] = {
    "scratched": Case(scratched, "--checkpoint checkpoints/photos-turbo"),
    "lettered": Case(lettered, "--checkpoint checkpoints/photos-turbo"),
    "badge": Case(badge, "--checkpoint checkpoints/photos-turbo --num_samples 3", shown=True, samples=3),
    "wider": Case(wider, "--checkpoint checkpoints/photos --extend 8,8,8,8 --average 4"),
    "strengths": Case(strengths, "--checkpoint checkpoints/photos --soft_mask --average 4", shown=True),
    "sampled": Case(sampled, "--checkpoint rad-nature32 --num_samples 4", shown=True, samples=4),
    "tower": Case(tower, "--checkpoint checkpoints/photos-turbo", shown=True),
    "face": Case(face, "--checkpoint checkpoints/photos-turbo", shown=True),
}


def write_inputs(name: str) -> None:
    image, mask = CASES[name].inputs()
    FOLDER.mkdir(parents=True, exist_ok=True)
    image.save(FOLDER / f"{name}.png")
    if mask is not None:
        mask.save(FOLDER / f"{name}-mask.png")


def restored(name: str) -> list[Image.Image]:
    """Input and results of a case, by its command."""
    case = CASES[name]
    write_inputs(name)
    assert rad([*shlex.split(case.command(name))[1:], "--overwrite"]) == 0, case.command(name)
    image, mask = case.inputs()
    stem = f"{name}-result"
    names = [stem] if case.samples == 1 else [f"{stem}-{number}" for number in range(case.samples)]
    results = [Image.open(FOLDER / f"{each}.png").convert("RGB") for each in names]
    return [marked(image, mask) if case.shown and mask is not None else image, *results]


def picture(name: str) -> Image.Image:
    """Input and results side by side; an image smaller than its result lies in the middle of its tile."""
    images = restored(name)
    width, height = images[-1].size
    page = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    page.paste(images[0], ((width - images[0].width) // 2, (height - images[0].height) // 2))
    side = 160 if len(images) > 4 else 300 if len(images) > 2 else SIDE
    size = (side * width // max(width, height), side * height // max(width, height))
    return grid([[tile.resize(size, Image.Resampling.BICUBIC) for tile in [page, *images[1:]]]])


def main(arguments: Sequence[str]) -> None:
    """Write the pictures of these cases; all without names."""
    names = [name for name in arguments if not name.startswith("--")] or list(CASES)
    for name in names:
        began = perf_counter()
        if "--inputs" in arguments:
            write_inputs(name)
        else:
            save(picture(name), f"{name}.webp", IMAGES / "gallery")
        print(f"{name}: {perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
