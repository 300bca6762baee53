"""The files of the page, and photographs to try: those of scikit-image, with a hole each."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageDraw

from rad.images.codecs import open_image
from rad.studio.inputs import encode
from rad.studio.schema import Example

STATIC = Path(__file__).resolve().parent / "static"

PLACEHOLDER = "rad studio: the page is not installed; the API answers at /v1/ and describes itself at /openapi.json\n"

SIDE = 4
"""Longest side of an example, in windows of the model; between the limits below."""
SMALLEST, LARGEST = 96, 1024


@dataclass(frozen=True)
class Photograph:
    """A file in scikit-image, and strokes of its hole: points as fractions of width and height, and a width."""

    title: str
    file: str
    strokes: tuple[tuple[float, ...], ...]
    width: float


PHOTOGRAPHS = {
    "astronaut": Photograph("Astronaut", "astronaut.png", ((0.32, 0.75, 0.34, 0.75),), 0.16),
    "cat": Photograph("Cat", "chelsea.png", ((0.24, 0.58, 0.37, 0.68),), 0.06),
    "coffee": Photograph("Coffee", "coffee.png", ((0.60, 0.70, 0.61, 0.72),), 0.15),
    "rocket": Photograph("Rocket", "rocket.jpg", ((0.50, 0.30, 0.50, 0.93),), 0.06),
}


def list_examples() -> list[Example]:
    """The photographs that this version of scikit-image brings along."""
    return [
        Example(
            name=f"{name}.png",
            title=photograph.title,
            image=f"/v1/examples/{name}.png",
            mask=f"/v1/examples/{name}-mask.png",
        )
        for name, photograph in PHOTOGRAPHS.items()
        if _source(photograph).is_file()
    ]


@lru_cache(maxsize=2 * len(PHOTOGRAPHS))
def example_file(file: str, window: int) -> bytes | None:
    """The PNG of a photograph or its mask, in a size for a model of `window` pixels. None for another name."""
    name, is_mask = file.removesuffix(".png").removesuffix("-mask"), file.endswith("-mask.png")
    photograph = PHOTOGRAPHS.get(name)
    if not file.endswith(".png") or photograph is None or not _source(photograph).is_file():
        return None
    image = open_image(_source(photograph))
    side = min(LARGEST, max(SMALLEST, SIDE * window))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return encode(_hole(photograph, image.size) if is_mask else image)


def _source(photograph: Photograph) -> Path:
    return Path(str(files("skimage") / "data" / photograph.file))


def _hole(photograph: Photograph, size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    draw, (width, height) = ImageDraw.Draw(mask), size
    thick = max(2, round(photograph.width * max(size)))
    for stroke in photograph.strokes:
        points = [(x * width, y * height) for x, y in zip(stroke[::2], stroke[1::2], strict=True)]
        draw.line(points, fill=255, width=thick, joint="curve")
        for x, y in points:
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return mask
