"""Panel of `make demo`: held-out crops inpainted by two adapters, and a photograph restored at full size."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rad.console import Parser, Progress, guarded, print_line, program, report
from rad.data.module import ImageDataModule
from rad.images.atomic import replacing
from rad.images.codecs import open_image
from rad.images.grid import contact_sheet
from rad.images.tensors import blank, to_uint8
from rad.inpainting.inpainter import Inpainter
from rad.masks.shapes import Lettering, make
from rad.rng import generator

SHOWN = ("center", "half", "thick", "perlin", "box", "thin", "expand", "lettering")


TILE = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = Parser(prog=program("demo"), description=__doc__)
    parser.add_argument("--adapter", required=True, help="adapter trained by the demo")
    parser.add_argument("--shipped", default="checkpoints/rad-nature32", help="adapter trained for longer")
    parser.add_argument("--output", default="runs/demo/panel.png", help="PNG file")
    parser.add_argument("--steps", type=int, default=48, help="network calls per crop")
    parser.add_argument("--seed", type=int, default=0, help="of holes and noise")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        raise ValueError(f"--steps {options.steps}: give at least 1")

    crops = held_out_crops(2 * len(SHOWN), size=32)
    holes = torch.cat(
        [make(SHOWN[i % len(SHOWN)])([generator(options.seed, "demo", i)], 32, 32) for i in range(len(crops))]
    )
    columns = [[blank(crop, hole) for crop, hole in zip(crops, holes, strict=True)]]
    for folder in (options.adapter, options.shipped):
        columns.append(fill(folder, crops, holes, steps=options.steps, seed=options.seed))
    columns.append([to_uint8(crop) for crop in crops])
    labels = ["input", "demo adapter", "shipped adapter", "original"]
    half = len(SHOWN)  # two examples in a row
    rows = [[column[row + start] for start in (0, half) for column in columns] for row in range(half)]
    tiles = contact_sheet(rows, column_labels=2 * labels, cell_size=TILE)

    photograph = open_image(Path(str(files("skimage"))) / "data" / "astronaut.png")
    lettering = Lettering(lines=8, scratches=12)
    damage = lettering([generator(options.seed, "damage")], photograph.height, photograph.width)[0]
    damaged = paint(photograph, damage)
    restored = restore(options.shipped, damaged, damage, steps=max(1, options.steps // 3), seed=options.seed)
    known = damage[0].numpy() == 0
    assert np.array_equal(np.asarray(restored)[known], np.asarray(photograph)[known]), "known pixels must not change"

    labels = ["512x512, scratches and lettering", "restored by the shipped adapter, size_policy crop"]
    panel = stack([tiles, contact_sheet([[damaged, restored]], column_labels=labels, cell_size=512)])
    output = Path(options.output)
    with replacing(output) as temporary:
        panel.save(temporary)
    print_line(output)
    return 0


def held_out_crops(count: int, *, size: int) -> Tensor:
    """Crops (count,3,size,size) in [0,1] of photographs outside the training set of the demo."""
    data = ImageDataModule("skimage", val_count=count, size=size, crop="random_scale", batch_size=count)
    data.setup("validate")
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    return next(iter(loader))["image"] / 2 + 0.5


def fill(folder: str, crops: Tensor, holes: Tensor, *, steps: int, seed: int) -> list[Image.Image]:
    """The crops (B,3,S,S) in [0,1] with their holes (B,1,S,S) filled by an adapter."""
    inpainter = Inpainter.from_pretrained(folder)
    report(f"{folder}: {len(crops)} crops, {steps} network calls each")
    with Progress(steps * len(crops)) as progress:
        result = inpainter(
            list(crops), list(holes), steps=steps, seed=seed, batch_size=len(crops),
            names=[str(i) for i in range(len(crops))], on_step=lambda done, _: progress.update(done),
        )  # fmt: skip
    return result.images


def restore(folder: str, image: Image.Image, hole: Tensor, *, steps: int, seed: int) -> Image.Image:
    """The image with its hole (1,H,W) filled window by window."""
    inpainter = Inpainter.from_pretrained(folder)
    windows = inpainter.count_windows(hole, size_policy="crop")
    report(f"{folder}: a photograph of {image.width}x{image.height}, {windows} windows, {steps} network calls each")
    with Progress(steps * windows) as progress:
        result = inpainter(
            image, hole, steps=steps, solver="ddpm", seed=seed, size_policy="crop", batch_size=32,  # smooth, for thin damage
            on_step=lambda done, _: progress.update(done),
        )  # fmt: skip
    return result.images[0]


def paint(image: Image.Image, hole: Tensor) -> Image.Image:
    """The image with a white hole."""
    return Image.composite(
        Image.new("RGB", image.size, "white"), image, Image.fromarray((255 * hole[0]).byte().numpy())
    )


def stack(images: list[Image.Image]) -> Image.Image:
    """Images from top to bottom."""
    canvas = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas


if __name__ == "__main__":
    raise SystemExit(guarded(main))
