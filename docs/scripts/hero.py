"""The picture at the top of README: three photographs, filled by RAD and by the best classical method.

    python docs/scripts/hero.py                                            # docs/images/hero.webp
    python docs/scripts/hero.py --cases scratched lettered lamp --output runs/hero.webp --checkpoint checkpoints/photos-turbo

The classical methods are Telea's and Navier-Stokes (OpenCV) and biharmonic (scikit-image), on the whole photograph. The best is

- for damage: the nearest to the original by the perceptual distance of the 64x64 tiles that the damage touches;
- for a removed object, which has no original: the one whose colours in the hole are nearest to those of the known pixels around
  it, by the Wasserstein distance of the values in each channel.

RAD has the settings of its checkpoint.

Each result has an enlarged detail: the square in which RAD and the classical method differ most. No detail is chosen by hand.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
import torch
import torch.nn.functional as F
from gallery import disk
from pictures import IMAGES, letters, marked, painted, photograph, save, scratches
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import wasserstein_distance
from torch import Tensor

from rad import Inpainter
from rad.evaluation.features import Extractor, feature_net
from rad.images.tensors import to_tensor, to_uint8

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 400, 300
GAP, LABEL, FONT = 14, 40, 23
DETAIL, ZOOM = 48, 3
SEED = 0
CLASSICAL = {
    "opencv-telea": "OpenCV Telea",
    "opencv-navier-stokes": "OpenCV Navier-Stokes",
    "biharmonic": "biharmonic",
}
SHOWN = ("scratched-astronaut", "lettered", "handle")
"""The cases in README."""


@dataclass(frozen=True)
class Case:
    """A photograph with its hole.

    Args:
        label: text above the input.
        image, mask: the original, and what is filled, white.
        damaged: the input.
        removed: whether the hole is an object: there is no original.
        corner: of the enlarged detail, right and bottom where True.
    """

    label: str
    image: Image.Image
    mask: Image.Image
    damaged: Image.Image
    removed: bool = False
    corner: tuple[bool, bool] = (False, True)


def scratched(file: str, left: int, top: int, *, seed: int = 5) -> Case:
    image = photograph(file, (left, top, left + WIDTH, top + HEIGHT))
    mask = scratches(image.size, 12, width=(2, 4), seed=seed)
    return Case("scratched", image, mask, painted(image, mask), corner=(True, False))


def lettered(file: str, left: int, top: int) -> Case:
    image = photograph(file, (left, top, left + WIDTH, top + HEIGHT))
    texts = [("HAPPY BIRTHDAY", (22, 24), 44), ("from all of us", (64, 236), 36)]
    mask = letters(image.size, texts, margin=2)
    return Case("lettered over", image, mask, painted(image, letters(image.size, texts)))


def removed(file: str, left: int, top: int, x: int, y: int, radius: int) -> Case:
    """`x`, `y`, `radius`: a disk that covers the object, in pixels of the photograph."""
    image = photograph(file, (left, top, left + WIDTH, top + HEIGHT))
    mask = disk(x - left, y - top, radius, side=WIDTH).crop((0, 0, WIDTH, HEIGHT))
    return Case("an object to remove", image, mask, marked(image, mask), removed=True, corner=(True, False))


CASES: dict[str, Callable[[], Case]] = {
    "scratched": lambda: scratched("coffee.png", 110, 60),
    "scratched-cat": lambda: scratched("chelsea.png", 25, 0),
    "scratched-astronaut": lambda: scratched("astronaut.png", 60, 0),
    "lettered": lambda: lettered("chelsea.png", 25, 0),
    "lettered-coffee": lambda: lettered("coffee.png", 200, 100),
    "lettered-motorcycle": lambda: lettered("motorcycle_left.png", 160, 60),
    "badge": lambda: removed("astronaut.png", 20, 212, 170, 386, 47),
    "tag": lambda: removed("astronaut.png", 80, 180, 303, 356, 32),
    "lamp": lambda: removed("rocket.jpg", 60, 127, 150, 376, 26),
    "spoon": lambda: removed("coffee.png", 190, 90, 366, 280, 48),
    "handle": lambda: removed("coffee.png", 60, 90, 228, 268, 50),
}


def hole_of(case: Case) -> Tensor:
    """The hole (1,1,H,W), 1 = fill."""
    return (torch.from_numpy(np.array(case.mask)) > 0)[None, None].float()


def classical(kind: str, case: Case) -> Image.Image:
    """The fill of a classical method; known pixels are exact."""
    from benchmarks.others.classical import Classical

    pixels, hole = to_tensor(case.image)[None], hole_of(case)
    filled = Classical(kind)(pixels * (hole == 0), hole, torch.Generator())
    return Image.composite(to_uint8(filled[0].clamp(0, 1)), case.image, case.mask)


def distance(network: Extractor, result: Image.Image, case: Case) -> float:
    """Perceptual distance from the original, the mean over the 64x64 tiles that the hole touches."""
    tiles = [(left, top, left + 64, top + 64) for top in range(0, HEIGHT - 63, 59) for left in range(0, WIDTH - 63, 56)]
    touched = [box for box in tiles if case.mask.crop(box).getbbox()]
    pairs = [torch.stack([to_tensor(image.crop(box)) for box in touched]) for image in (result, case.image)]
    return float(network.distance(*pairs).mean())


def colour_error(result: Image.Image, case: Case) -> float:
    """Distance of the colours in the hole from those of as many known pixels around it, in grey levels.

    It is the Wasserstein distance of the values, averaged over the three channels.
    """
    hole = hole_of(case)
    width = round((math.sqrt(2) - 1) * math.sqrt(float(hole.sum()) / math.pi))  # of a ring with the area of a disk
    ring = F.max_pool2d(hole, 2 * width + 1, 1, width) - hole
    pixels = np.array(result)
    inner, outer = (pixels[area[0, 0].numpy() > 0].T for area in (hole, ring))
    return float(np.mean([wasserstein_distance(*channel) for channel in zip(inner, outer, strict=True)]))


def best_classical(case: Case, network: Extractor) -> tuple[str, Image.Image]:
    """Name and result of the best classical method, by the rule at the top of this file."""
    results = {kind: classical(kind, case) for kind in CLASSICAL}
    scores = {
        kind: colour_error(result, case) if case.removed else distance(network, result, case)
        for kind, result in results.items()
    }
    best = min(scores, key=scores.__getitem__)
    print(f"{case.label}: " + ", ".join(f"{kind} {score:.4f}" for kind, score in scores.items()))
    return best, results[best]


def detail_box(first: Image.Image, second: Image.Image) -> tuple[int, int, int, int]:
    """The square of `DETAIL` pixels in which two images differ most."""
    difference = (to_tensor(first) - to_tensor(second)).square().sum(0)[None, None]
    means = F.avg_pool2d(difference, DETAIL, 1)
    top, left = divmod(int(means.argmax()), means.shape[3])
    return left, top, left + DETAIL, top + DETAIL


def with_detail(image: Image.Image, box: tuple[int, int, int, int], corner: tuple[bool, bool]) -> Image.Image:
    """The image with `box` outlined, and enlarged in a corner; see `Case`."""
    page, side = image.copy(), DETAIL * ZOOM
    x, y = corner[0] * (WIDTH - side), corner[1] * (HEIGHT - side)
    detail = image.crop(box).resize((side, side), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(page)
    draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 1, box[3] + 1), outline="white", width=2)
    page.paste(detail, (x, y))
    draw.rectangle((x - 3, y - 3, x + side + 2, y + side + 2), outline="white", width=3)
    return page


def compose(columns: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Columns of labelled images on a white page."""
    rows = len(columns[0])
    page = Image.new("RGB", (len(columns) * (WIDTH + GAP) + GAP, rows * (HEIGHT + LABEL) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
    for x, column in enumerate(columns):
        for y, (label, image) in enumerate(column):
            place = (GAP + x * (WIDTH + GAP), y * (HEIGHT + LABEL))
            draw.text((place[0], place[1] + LABEL / 2), label, fill=(32, 33, 36), font=font, anchor="lm")
            page.paste(image, (place[0], place[1] + LABEL))
    return page


def column(case: Case, inpainter: Inpainter, network: Extractor) -> list[tuple[str, Image.Image]]:
    """The input, RAD's result and the best classical one, with their labels."""
    began = process_time()
    ours = inpainter(case.damaged, case.mask, seed=SEED).images[0]
    seconds = process_time() - began
    known = np.array(case.mask) == 0
    assert np.array_equal(np.array(ours)[known], np.array(case.damaged)[known]), "known pixels must not change"
    best, other = best_classical(case, network)
    score = colour_error(ours, case) if case.removed else distance(network, ours, case)
    print(f"{case.label}: RAD {score:.4f}, {seconds:.0f} CPU s", flush=True)
    box = detail_box(ours, other)
    return [
        (f"Input: {case.label}", case.damaged),
        ("RAD", with_detail(ours, box, case.corner)),
        (f"Best other: {CLASSICAL[best]}", with_detail(other, box, case.corner)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=SHOWN)
    parser.add_argument("--checkpoint", default="photos-turbo")
    parser.add_argument("--output", type=Path, default=IMAGES / "hero.webp")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for benchmarks.others
    inpainter = Inpainter.from_pretrained(options.checkpoint, device="cpu")
    network = feature_net(ROOT / "checkpoints" / "features-nature64")
    columns = [column(CASES[name](), inpainter, network) for name in options.cases]
    save(compose(columns), options.output.name, options.output.parent, quality=85)


if __name__ == "__main__":
    main()
