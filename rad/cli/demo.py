"""Panel of `make demo`: three photographs restored at full size, and held-out images filled before and after adaptation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rad.console import Parser, guarded, print_line, program, report
from rad.images.atomic import replacing
from rad.images.codecs import open_image
from rad.images.tensors import to_tensor
from rad.inpainting.inpainter import Inpainter
from rad.masks.base import MaskGenerator
from rad.masks.damage import Polylines
from rad.masks.shapes import make
from rad.rng import generator

MATERIALS = ("brick.png", "gravel.png", "grass.png", "ihc.png", "hubble_deep_field.jpg", "retina.jpg")
"""Images of scikit-image for the adaptation, unlike those that `photos` was trained on."""
TRAINED = 0.7
"""Share of each one's width for training, from the left; the rest is held out."""
CROP, EXAMPLES = 144, 2
"""Side of the held-out crops in pixels, and crops of each image."""
HOLES = "wide"
"""Mask set of the held-out crops: large holes, for which it matters that the model knows the material."""

GAP, LINE, FONT = 12, 34, 20


@dataclass(frozen=True)
class Words(MaskGenerator):
    """Lines of text, each with its place (left, top) and the size of its font in pixels: the same hole for every generator."""

    lines: tuple[tuple[str, tuple[int, int], int], ...]

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        canvas = Image.new("1", (width, height))
        for line, place, size in self.lines:
            ImageDraw.Draw(canvas).text(place, line, fill=1, font=ImageFont.load_default(size), stroke_width=1)
        return torch.from_numpy(np.array(canvas)).float().expand(len(generators), 1, height, width)


@dataclass(frozen=True)
class Damage:
    """A photograph of scikit-image and its damage, white in the input.

    Args:
        title: above the damaged photograph.
        holes: what is filled.
    """

    file: str
    title: str
    holes: MaskGenerator


PHOTOGRAPHS = (
    Damage("coffee.png", "scratched", Polylines(strokes=(14, 14), width=(2, 4), segments=(2, 4), length=(0.2, 0.5))),
    Damage(
        "chelsea.png", "lettered over", Words((("HAPPY BIRTHDAY", (34, 30), 44), ("from all of us", (90, 236), 36)))
    ),
    Damage("astronaut.png", "scratched", Polylines(strokes=(18, 18), width=(1, 4), segments=(2, 5), length=(0.1, 0.5))),
)
"""None of them is in `MATERIALS`, and the shipped model was not trained on them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = Parser(prog=program("demo"), description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--prepare", metavar="FOLDER", help="write the training images and stop")
    action.add_argument("--adapter", metavar="PATH", help="adapter trained on them, for the panel")
    parser.add_argument("--model", default="checkpoints/photos", help="model before the adaptation")
    parser.add_argument("--output", default="runs/demo/panel.png", help="PNG file of the panel")
    parser.add_argument("--seed", type=int, default=0, help="of holes and noise")
    options = parser.parse_args(arguments)
    if options.prepare is not None:
        print_line(prepare(Path(options.prepare)))
        return 0

    before, after = (Inpainter.from_pretrained(path) for path in (options.model, options.adapter))
    rows = [restored(before, damage, seed=options.seed) for damage in PHOTOGRAPHS]
    panel = stack([*rows, adapted(before, after, seed=options.seed)])
    output = Path(options.output)
    with replacing(output) as temporary:
        panel.save(temporary)
    print_line(output)
    return 0


def photograph(file: str) -> Image.Image:
    """An image of scikit-image in colour."""
    return open_image(Path(str(files("skimage"))) / "data" / file).convert("RGB")


def prepare(folder: Path) -> Path:
    """Write the left part of each image of `MATERIALS` into the folder, as PNG."""
    for file in MATERIALS:
        image, path = photograph(file), folder / f"{Path(file).stem}.png"
        with replacing(path) as temporary:
            image.crop((0, 0, int(TRAINED * image.width), image.height)).save(temporary)
    return folder


def held_out_crops() -> list[Image.Image]:
    """Unscaled crops of the right part of each image of `MATERIALS`."""
    crops = []
    for file in MATERIALS:
        image = photograph(file)
        left = int(TRAINED * image.width)
        left += (image.width - left - CROP) // 2
        for number in range(EXAMPLES):
            top = (2 * number + 1) * (image.height - CROP) // (2 * EXAMPLES)
            crops.append(image.crop((left, top, left + CROP, top + CROP)))
    return crops


def fill(
    inpainter: Inpainter, images: Sequence[Image.Image], holes: Sequence[Tensor], *, seed: int
) -> list[Image.Image]:
    """The images with their holes (1,H,W) filled."""
    names = [str(number) for number in range(len(images))]
    return inpainter(images, holes, seed=seed, batch_size=8, names=names).images


def restored(inpainter: Inpainter, damage: Damage, *, seed: int) -> Image.Image:
    """A damaged photograph beside its restoration, at full size. Raises RuntimeError if a known pixel has changed."""
    original = photograph(damage.file)
    hole = damage.holes([generator(seed, "demo", damage.file)], original.height, original.width)[0]
    damaged, name = paint(original, hole), Path(damage.file).stem
    report(f"{name}: restores {original.width}x{original.height} pixels")
    result = fill(inpainter, [damaged], [hole], seed=seed)[0]
    known = hole[0].numpy() == 0
    if not np.array_equal(np.asarray(result)[known], np.asarray(original)[known]):
        raise RuntimeError(f"{damage.file}: known pixels have changed; this is an error of rad, please report it")
    share = float(hole.mean())
    quality = f"PSNR in the hole {psnr([result], [original], [hole]):.1f} dB"
    report(f"{name}: {quality}")
    model = Path(str(inpainter.model.source)).name
    titles = [f"{name}, {damage.title}: {share:.0%} of the pixels", f"restored by {model}, {quality}"]
    return labelled(titles, [damaged, result])


def adapted(before: Inpainter, after: Inpainter, *, seed: int) -> Image.Image:
    """Held-out crops filled by both models, a row for each image of `MATERIALS`, and the PSNR in the hole."""
    crops = held_out_crops()
    holes = [make(HOLES)([generator(seed, "demo", number)], CROP, CROP)[0] for number in range(len(crops))]
    results = []
    for name, inpainter in (("before", before), ("after", after)):
        report(f"{name} adaptation: fills {len(crops)} crops")
        results.append(fill(inpainter, crops, holes, seed=seed))
    values = [f"{psnr(images, crops, holes):.2f} dB" for images in results]
    title = f"Adaptation on other parts of the same images. PSNR in the holes of {len(crops)} held-out crops: "
    title += f"{values[0]} before, {values[1]} after"
    report(title)
    damaged = [paint(crop, hole) for crop, hole in zip(crops, holes, strict=True)]
    tiles = [tile for example in zip(damaged, *results, crops, strict=True) for tile in example]
    columns = 4 * EXAMPLES
    labels = EXAMPLES * ["damaged", "before", "after", "original"]
    rows = [labelled([], tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    rows[0] = labelled(labels, tiles[:columns])
    return stack([text(title, width=rows[0].width), *rows])


def psnr(images: Sequence[Image.Image], originals: Sequence[Image.Image], holes: Sequence[Tensor]) -> float:
    """Peak signal-to-noise ratio in dB of all hole pixels of all images together."""
    error = pixels = 0.0
    for image, original, hole in zip(images, originals, holes, strict=True):
        error += float(((to_tensor(image) - to_tensor(original)).square() * hole).mean(0).sum())
        pixels += float(hole.sum())
    return 10 * math.log10(pixels / error) if error else math.inf


def paint(image: Image.Image, hole: Tensor) -> Image.Image:
    """The image with a white hole (1,H,W)."""
    return Image.composite(
        Image.new("RGB", image.size, "white"), image, Image.fromarray((255 * hole[0]).byte().numpy())
    )


def text(line: str, *, width: int) -> Image.Image:
    """A line of text on white, in a smaller font if it is too long."""
    page, font = Image.new("RGB", (width, LINE), "white"), ImageFont.load_default(FONT)
    if (length := font.getlength(line)) > width:
        font = ImageFont.load_default(max(1, int(FONT * width / length)))
    ImageDraw.Draw(page).text((0, LINE / 2), line, fill="black", font=font, anchor="lm")
    return page


def labelled(labels: Sequence[str], images: Sequence[Image.Image]) -> Image.Image:
    """Images side by side, each below its label; without labels if there are none."""
    columns = list(images)
    if labels:
        titles = [text(label, width=image.width) for label, image in zip(labels, images, strict=True)]
        columns = [stack(pair, gap=0) for pair in zip(titles, images, strict=True)]
    page = Image.new("RGB", (sum(c.width + GAP for c in columns) - GAP, max(c.height for c in columns)), "white")
    left = 0
    for column in columns:
        page.paste(column, (left, 0))
        left += column.width + GAP
    return page


def stack(images: Sequence[Image.Image], *, gap: int = GAP) -> Image.Image:
    """Images from top to bottom on white."""
    size = (max(image.width for image in images), sum(image.height + gap for image in images) - gap)
    page, top = Image.new("RGB", size, "white"), 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height + gap
    return page


if __name__ == "__main__":
    raise SystemExit(guarded(main))
