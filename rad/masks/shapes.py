"""Masks with names, for evaluation and sampling: boxes, grids, pixels, strokes, blobs, lettering; `make(name)`."""

import math
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rad.masks import MaskGenerator, Mixture, Part
from rad.masks.damage import Polylines, Text, paint
from rad.masks.perlin import Perlin, threshold_by_rank

MOST = 1000
"""Of anything that is drawn one by one, and of its pixels: more would take hours."""


@dataclass(frozen=True)
class Box(MaskGenerator):
    """A box at a uniformly random place: RAD's "box", 128x128 of 256x256 (its code omits the last place).

    Args:
        side: share of each side of the image, in (0,1]; 0.5 makes a quarter of the image the hole. Or (low, high), between
            which the shares of height and width are drawn apart for each image.
    """

    side: float | tuple[float, float] = 0.5

    def __post_init__(self) -> None:
        _check_shares("side", self.side)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = torch.zeros(len(generators), 1, height, width, device=generators[0].device)
        for image, generator in zip(hole, generators, strict=True):
            box_height, box_width = _draw_box_size(generator, self.side, height, width)
            top = _draw_integer(generator, height - box_height)
            left = _draw_integer(generator, width - box_width)
            image[:, top : top + box_height, left : left + box_width] = 1
        return hole


@dataclass(frozen=True)
class Extreme(MaskGenerator):
    """All but a box at a random place: RAD's "extreme", 3/4 of the image. The complement of `Box`."""

    side: float | tuple[float, float] = 0.5

    def __post_init__(self) -> None:
        _check_shares("side", self.side)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return 1 - Box(side=self.side)(generators, height, width)


@dataclass(frozen=True)
class CenterBox(MaskGenerator):
    """A box in the middle; `side` as in `Box`."""

    side: float = 0.5

    def __post_init__(self) -> None:
        _check_share("side", self.side)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _repeat(_center_box(self.side, height, width), generators)


@dataclass(frozen=True)
class Expand(MaskGenerator):
    """All but a box in the middle, to be continued outwards: RePaint's "expand", 64x64 kept of 256x256.

    Args:
        keep: share of each side of the image that is known, in (0,1].
    """

    keep: float = 0.25

    def __post_init__(self) -> None:
        _check_share("keep", self.keep)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _repeat(1 - _center_box(self.keep, height, width), generators)


@dataclass(frozen=True)
class Half(MaskGenerator):
    """The right half, without the middle column of an odd width: RePaint's "half"."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = torch.zeros(height, width)
        hole[:, (width + 1) // 2 :] = 1
        return _repeat(hole, generators)


@dataclass(frozen=True)
class Halves(MaskGenerator):
    """One of the four halves, right, left, bottom or top, with the middle row or column of an odd side."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = torch.zeros(len(generators), 1, height, width, device=generators[0].device)
        rows, columns = (height + 1) // 2, (width + 1) // 2
        for image, generator in zip(hole, generators, strict=True):
            side = _draw_integer(generator, 3)
            if side == 0:
                image[:, :, width - columns :] = 1
            elif side == 1:
                image[:, :, :columns] = 1
            elif side == 2:
                image[:, height - rows :] = 1
            else:
                image[:, :rows] = 1
        return hole


@dataclass(frozen=True)
class Everything(MaskGenerator):
    """The whole image: nothing is known, which trains the unconditional model."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _repeat(torch.ones(height, width), generators)


@dataclass(frozen=True)
class EveryOtherLine(MaskGenerator):
    """Rows 0, 2, 4 and so on: RePaint's "alternating lines"."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = torch.zeros(height, width)
        hole[::2] = 1
        return _repeat(hole, generators)


@dataclass(frozen=True)
class SuperResolve(MaskGenerator):
    """All but the pixels of odd row and odd column, 3/4 of the image: RePaint's "super-resolve 2x"."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        hole = torch.ones(height, width)
        hole[1::2, 1::2] = 0
        return _repeat(hole, generators)


@dataclass(frozen=True)
class RandomPixels(MaskGenerator):
    """Scattered pixels: 92% as in DPS, arXiv 2209.14687 (RAD: 90 to 95%).

    Args:
        fraction: share of the pixels that are hole, in (0,1], rounded to a whole number of pixels; or (low, high), between
            which the share of each image is drawn.
    """

    fraction: float | tuple[float, float] = 0.92

    def __post_init__(self) -> None:
        _check_shares("fraction", self.fraction)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        noise = torch.stack([torch.rand(height, width, generator=g, device=g.device) for g in generators])
        low, high = _both(self.fraction)
        shares = torch.full((len(generators),), low, device=noise.device, dtype=torch.float64)
        if low < high:
            draws = [torch.rand((), generator=g, device=g.device, dtype=torch.float64) for g in generators]
            shares = low + (high - low) * torch.stack(draws)
        return threshold_by_rank(noise, (shares * height * width).round().long())


@dataclass(frozen=True)
class Strokes(MaskGenerator):
    """Brush strokes, sometimes boxes: the random masks of LaMa (arXiv 2109.07161), drawn by our own code.

    A stroke is a chain of one to five segments; a segment has its own width and length, and a heading of 0,
    1, 2 or 3 radians (plus 0.01), mirrored in every second stroke. The defaults are LaMa's thick masks, which
    RAD and RePaint call "wide", `make("thin")` its thin ones, both as in its
    `configs/data_gen/random_{thick,thin}_256.yaml`; for training, LaMa draws as many masks of boxes as of
    strokes, with one to four boxes. Lengths are in pixels of a 256x256 image and are scaled with the shorter
    side; ranges include both ends.

    Args:
        strokes: number of strokes.
        width: width of a segment.
        length: length of a segment.
        boxes: number of boxes in a mask of boxes.
        box_side: height and width of a box, drawn apart.
        box_margin: distance of the boxes from the border.
        box_share: probability that a mask is made of boxes instead of strokes.
        max_area: a mask with a larger share of hole is drawn again.
    """

    strokes: tuple[int, int] = (1, 5)
    width: tuple[int, int] = (5, 104)
    length: tuple[int, int] = (10, 209)
    boxes: tuple[int, int] = (1, 3)
    box_side: tuple[int, int] = (30, 149)
    box_margin: int = 10
    box_share: float = 0.3 / 1.3
    max_area: float = 0.5

    def __post_init__(self) -> None:
        for name in ("strokes", "width", "length", "boxes", "box_side"):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= MOST:
                raise ValueError(f"{name}={(low, high)}: give (low, high) with 1 <= low <= high <= {MOST}")
        if not 0 <= self.box_margin < 128:
            raise ValueError(f"box_margin={self.box_margin}: give 0 to 127 pixels of a 256x256 image")
        if not 0 <= self.box_share <= 1:
            raise ValueError(f"box_share={self.box_share}: give a probability between 0 and 1")
        _check_share("max_area", self.max_area)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _paint(self._draw, generators, height, width)

    def _draw(self, source: random.Random, height: int, width: int) -> Image.Image:
        for _ in range(100):
            canvas = Image.new("1", (width, height))
            if source.random() < self.box_share:
                self._draw_boxes(source, canvas)
            else:
                self._draw_strokes(source, canvas)
            if np.asarray(canvas).mean() <= self.max_area:
                return canvas
        raise ValueError(
            f"max_area={self.max_area}: 100 masks of {height}x{width} were all larger; raise it or draw less"
        )

    def _draw_strokes(self, source: random.Random, canvas: Image.Image) -> None:
        draw, unit = ImageDraw.Draw(canvas), min(canvas.size) / 256
        for stroke in range(source.randint(*self.strokes)):
            x, y = source.uniform(0, canvas.width), source.uniform(0, canvas.height)
            for _ in range(source.randint(1, 5)):
                heading = (0.01 + source.randrange(4)) * (-1 if stroke % 2 == 0 else 1)
                length = unit * source.randint(*self.length)
                end_x = min(max(x + length * math.sin(heading), 0), canvas.width)
                end_y = min(max(y + length * math.cos(heading), 0), canvas.height)
                _draw_segment(draw, (x, y), (end_x, end_y), unit * source.randint(*self.width))
                x, y = end_x, end_y

    def _draw_boxes(self, source: random.Random, canvas: Image.Image) -> None:
        draw, unit = ImageDraw.Draw(canvas), min(canvas.size) / 256
        margin = int(unit * self.box_margin)
        for _ in range(source.randint(*self.boxes)):
            start, end = [], []
            for length in canvas.size:
                side = min(max(1, round(unit * source.randint(*self.box_side))), length - 2 * margin)
                start.append(source.randint(margin, length - margin - side))
                end.append(start[-1] + side - 1)
            draw.rectangle((*start, *end), fill=1)


@dataclass(frozen=True)
class Blobs(MaskGenerator):
    """One to three silhouettes with smooth irregular outlines, of the size of objects: like masks of segmentation.

    The outline of a silhouette is star-shaped, with random low harmonics of the logarithm of its radius:
    `ln r(t) = c + sum_k (u_k cos kt + v_k sin kt)`, k = 2 to 7, u_k and v_k normal of deviation
    irregularity / k. Its centre is a pixel at least an eighth of the image away from the border, which may
    cut the outline; silhouettes may overlap.

    Args:
        blobs: least and largest number of silhouettes.
        radius: lowest and highest radius of the disc of equal area, as share of the shorter side.
        irregularity: 0 draws discs, at most 1.
        max_area: a mask with a larger share of hole is drawn again.
    """

    blobs: tuple[int, int] = (1, 3)
    radius: tuple[float, float] = (0.1, 0.3)
    irregularity: float = 0.35
    max_area: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.blobs[0] <= self.blobs[1] <= MOST:
            raise ValueError(f"blobs={self.blobs}: give (low, high) with 1 <= low <= high <= {MOST}")
        if not 0 < self.radius[0] <= self.radius[1] <= 1:
            raise ValueError(f"radius={self.radius}: give shares (low, high) with 0 < low <= high <= 1")
        if not 0 <= self.irregularity <= 1:
            raise ValueError(f"irregularity={self.irregularity}: give 0 (discs) to 1")
        _check_share("max_area", self.max_area)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return torch.stack([self._draw(generator, height, width)[None] for generator in generators])

    def _draw(self, generator: torch.Generator, height: int, width: int) -> Tensor:
        low, high = self.blobs
        for _ in range(100):
            count = low + _draw_integer(generator, high - low)
            blobs = [self._draw_blob(generator, height, width) for _ in range(count)]
            hole = torch.stack(blobs).any(0).float()
            if hole.mean() <= self.max_area:
                return hole.to(generator.device)
        raise ValueError(
            f"max_area={self.max_area}: 100 masks of {height}x{width} were all larger; raise it or draw less"
        )

    def _draw_blob(self, generator: torch.Generator, height: int, width: int) -> Tensor:
        top, left = (
            length // 8 + _draw_integer(generator, length - 1 - 2 * (length // 8)) for length in (height, width)
        )
        share = torch.rand((), generator=generator, device=generator.device).item()
        radius = min(height, width) * (self.radius[0] + share * (self.radius[1] - self.radius[0]))
        waves = torch.randn(2, 6, generator=generator, device=generator.device).cpu().double()
        u, v = self.irregularity * waves / torch.arange(2, 8)

        def log_radius(direction: Tensor) -> Tensor:
            """By Horner's rule in e^it: six multiplications a pixel and no sine."""
            total = torch.zeros_like(direction)
            for coefficient in torch.complex(u, -v).flip(0):
                total = (total + coefficient) * direction
            return (total * direction).real

        # The area is the integral of r^2 / 2 over all angles: scaled to that of the disc.
        angles = torch.arange(256, dtype=torch.float64) * (2 * math.pi / 256)
        circle = torch.polar(torch.ones_like(angles), angles)
        radius = radius / (2 * log_radius(circle)).exp().mean().sqrt()
        down = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width) - top
        right = torch.arange(width, dtype=torch.float64).expand(height, width) - left
        distance = torch.hypot(right, down)
        direction = torch.complex(right, down) / distance.clamp(min=1)
        return distance <= radius * log_radius(direction).exp()


@dataclass(frozen=True)
class Lettering(MaskGenerator):
    """Lines of random letters over the whole image, and thin straight scratches.

    The letters come from the font inside Pillow; their edges may differ by a pixel between its versions.

    The letters shrink with the image; `rad.masks.damage.Text` has letters of a size in pixels.

    Args:
        lines: number of lines of text, at least 1.
        scratches: number of scratches, each between two random places and one or two pixels wide in 256x256.
    """

    lines: int = 5
    scratches: int = 8

    def __post_init__(self) -> None:
        if not (1 <= self.lines <= MOST and 0 <= self.scratches <= MOST):
            raise ValueError(f"lines={self.lines}, scratches={self.scratches}: give at least 1 and 0, at most {MOST}")

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return _paint(self._draw, generators, height, width)

    def _draw(self, source: random.Random, height: int, width: int) -> Image.Image:
        canvas = Image.new("1", (width, height))
        draw = ImageDraw.Draw(canvas)
        pitch = height / self.lines
        font = ImageFont.load_default(size=max(4, 0.8 * pitch))
        for line in range(self.lines):
            text = ""
            # The text runs over both ends of its line, so that no margin is always known.
            while draw.textlength(text, font=font) < width + pitch:
                text += "".join(source.choices(string.ascii_letters, k=source.randint(2, 8))) + " "
            draw.text((-source.uniform(0, pitch), (line + 0.5) * pitch), text, fill=1, font=font, anchor="lm")
        for _ in range(self.scratches):
            start, end = [(source.uniform(0, width), source.uniform(0, height)) for _ in range(2)]
            _draw_segment(draw, start, end, source.randint(1, 2) * min(height, width) / 256)
        return canvas


def photos() -> Mixture:
    """The mixture of `configs/photos.yaml`: damage that people have in photographs, mostly thin."""
    return Mixture(
        (
            Part(Polylines(), weight=40),
            Part(Polylines(width=(3.0, 9.0)), weight=20),
            Part(Box(side=(0.2, 0.75)), weight=15),
            Part(Halves(), weight=5),
            Part(Perlin(area_range=(0.01, 1.0)), weight=8),
            Part(Text(), weight=12),
        )
    )


MASKS: dict[str, Callable[[], MaskGenerator]] = {
    "box": Box,
    "extreme": Extreme,
    "center": CenterBox,
    "half": Half,
    "expand": Expand,
    "lines": EveryOtherLine,
    "superres": SuperResolve,
    "pixels": RandomPixels,
    "wide": Strokes,
    "thin": partial(Strokes, strokes=(4, 50), width=(5, 14), length=(10, 49), box_share=0.0),
    "blobs": Blobs,
    "perlin": Perlin,
    "lettering": Lettering,
    "photos": photos,
}

# Other names of the same generators: LaMa's for "wide", and those of RePaint.
ALIASES = {"thick": "wide", "every-other-line": "lines", "super-resolve": "superres", "random": "pixels"}
MASKS.update({alias: MASKS[name] for alias, name in ALIASES.items()})


def make(name: str) -> MaskGenerator:
    """The generator of that name in `MASKS`, with its default settings; ValueError lists all names but aliases."""
    if name not in MASKS:
        raise ValueError(f"no mask is called {name!r}: give one of {', '.join(main_names())}")
    return MASKS[name]()


def main_names() -> list[str]:
    """The names of `MASKS` without `ALIASES`."""
    return [name for name in MASKS if name not in ALIASES]


def _repeat(hole: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """The same (H,W) hole for every image."""
    return hole.to(generators[0].device).repeat(len(generators), 1, 1, 1)


_paint = partial(paint, seeds=2**62 + 1)  # the range of the published mask sets


def _draw_segment(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], width: float
) -> None:
    """A line with round ends, at least one pixel wide."""
    draw.line((*start, *end), fill=1, width=max(1, round(width)))
    radius = width / 2
    if radius >= 1:
        for x, y in (start, end):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)


def _draw_integer(generator: torch.Generator, high: int) -> int:
    """Uniform in 0..high, both included."""
    return int(torch.randint(high + 1, (), generator=generator, device=generator.device).item())


def _draw_box_size(
    generator: torch.Generator, side: float | tuple[float, float], height: int, width: int
) -> tuple[int, int]:
    if not isinstance(side, tuple):
        return _box_size(side, height, width)
    low, high = side
    draws = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    down, across = (low + (high - low) * draw for draw in draws)
    return max(1, round(down * height)), max(1, round(across * width))


def _box_size(side: float, height: int, width: int) -> tuple[int, int]:
    return max(1, round(side * height)), max(1, round(side * width))


def _center_box(side: float, height: int, width: int) -> Tensor:
    box_height, box_width = _box_size(side, height, width)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    hole = torch.zeros(height, width)
    hole[top : top + box_height, left : left + box_width] = 1
    return hole


def _both(share: float | tuple[float, float]) -> tuple[float, float]:
    """(low, high) of a share that may be fixed."""
    return share if isinstance(share, tuple) else (share, share)


def _check_shares(name: str, share: float | tuple[float, float]) -> None:
    low, high = _both(share)
    _check_share(name, low)
    _check_share(name, high)
    if low > high:
        raise ValueError(f"{name}={share}: give (low, high) with low <= high")


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"{name}={share}: give a share of the image above 0 and at most 1")
