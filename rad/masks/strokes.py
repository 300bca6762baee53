"""Painted masks whose shapes scale with the image: brush strokes, blobs, lettering."""

import math
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rad.masks.base import (
    MOST,
    SET_SEEDS,
    MaskGenerator,
    check_draw,
    check_range,
    check_share,
    draw_integer,
    draw_uniform,
    paint,
)

Hole = TypeVar("Hole", np.ndarray, Tensor)
TRIES = 100


@dataclass(frozen=True)
class Strokes(MaskGenerator):
    """Brush strokes, sometimes boxes: the random masks of LaMa (arXiv 2109.07161), drawn by our own code.

    A stroke is a chain of one to five segments. A segment has its own width, length, and heading of 0, 1, 2 or 3 radians
    (plus 0.01), mirrored in every second stroke. The defaults are LaMa's thick masks, which RAD and RePaint call "wide";
    `make("thin")` has its thin ones (`configs/data_gen/random_{thick,thin}_256.yaml`). LaMa's training uses as many masks
    of boxes as of strokes, with one to four boxes. Lengths are pixels of a 256x256 image and scale with the shorter side.

    Args:
        strokes: lowest and highest number of strokes.
        width: of a segment.
        length: of a segment.
        boxes: number of boxes in a mask of boxes.
        box_side: height and width of a box, drawn separately.
        box_margin: distance of the boxes from the border.
        box_share: probability of a mask of boxes.
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
            check_range(name, getattr(self, name), 1, MOST)
        if not 0 <= self.box_margin < 128:
            raise ValueError(f"box_margin={self.box_margin}: give 0 to 127 pixels of a 256x256 image")
        if not 0 <= self.box_share <= 1:
            raise ValueError(f"box_share={self.box_share}: give a probability between 0 and 1")
        check_share("max_area", self.max_area)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return paint(self._draw, generators, height, width, seeds=SET_SEEDS)

    def _draw(self, source: random.Random, height: int, width: int) -> np.ndarray:
        def draw() -> np.ndarray:
            canvas = Image.new("1", (width, height))
            kind = self._draw_boxes if source.random() < self.box_share else self._draw_strokes
            kind(source, canvas)
            return np.asarray(canvas)

        return _draw_until(draw, self.max_area, height, width)

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
    """One to three silhouettes of the size of objects, with smooth irregular outlines; they may overlap.

    An outline is star-shaped: `ln r(t) = c + sum_k (u_k cos kt + v_k sin kt)`, k = 2 to 7. u_k and v_k are normal with
    deviation irregularity / k. Its centre lies at least an eighth of the image away from the border.

    Args:
        blobs: lowest and highest number of silhouettes.
        radius: lowest and highest radius of the disc of equal area, as share of the shorter side.
        irregularity: 0 (discs) to 1.
        max_area: a mask with a larger share of hole is drawn again.
    """

    blobs: tuple[int, int] = (1, 3)
    radius: tuple[float, float] = (0.1, 0.3)
    irregularity: float = 0.35
    max_area: float = 0.5

    def __post_init__(self) -> None:
        check_range("blobs", self.blobs, 1, MOST)
        check_share("radius", self.radius)
        if not 0 <= self.irregularity <= 1:
            raise ValueError(f"irregularity={self.irregularity}: give 0 (discs) to 1")
        check_share("max_area", self.max_area)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        check_draw(generators, height, width)
        return torch.stack([self._draw(generator, height, width)[None] for generator in generators])

    def _draw(self, generator: torch.Generator, height: int, width: int) -> Tensor:
        def draw() -> Tensor:
            count = self.blobs[0] + draw_integer(generator, self.blobs[1] - self.blobs[0])
            return torch.stack([self._draw_blob(generator, height, width) for _ in range(count)]).any(0).float()

        return _draw_until(draw, self.max_area, height, width).to(generator.device)

    def _draw_blob(self, generator: torch.Generator, height: int, width: int) -> Tensor:
        top, left = (
            length // 8 + draw_integer(generator, length - 1 - 2 * (length // 8)) for length in (height, width)
        )
        share = draw_uniform(generator)
        radius = min(height, width) * (self.radius[0] + share * (self.radius[1] - self.radius[0]))
        waves = torch.randn(2, 6, generator=generator, device=generator.device, dtype=torch.float32).cpu().double()
        u, v = self.irregularity * waves / torch.arange(2, 8, device="cpu")

        def log_radius(direction: Tensor) -> Tensor:
            """By Horner's rule in e^it: six multiplications a pixel and no sine."""
            total = torch.zeros_like(direction)
            for coefficient in torch.complex(u, -v).flip(0):
                total = (total + coefficient) * direction
            return (total * direction).real

        # The area is the integral of r^2 / 2 over all angles. It becomes that of the disc.
        angles = torch.arange(256, dtype=torch.float64, device="cpu") * (2 * math.pi / 256)
        circle = torch.polar(torch.ones_like(angles), angles)
        radius = radius / (2 * log_radius(circle)).exp().mean().sqrt()
        down = torch.arange(height, dtype=torch.float64, device="cpu")[:, None].expand(height, width) - top
        right = torch.arange(width, dtype=torch.float64, device="cpu").expand(height, width) - left
        distance = torch.hypot(right, down)
        direction = torch.complex(right, down) / distance.clamp(min=1)
        return distance <= radius * log_radius(direction).exp()


@dataclass(frozen=True)
class Lettering(MaskGenerator):
    """Lines of random letters over the whole image, and thin straight scratches.

    Letters scale with the image, unlike those of `rad.masks.Text`; edges may differ by a pixel between Pillow's versions.

    Args:
        lines: number of lines of text, at least 1.
        scratches: number of scratches, one or two pixels wide in 256x256.
    """

    lines: int = 5
    scratches: int = 8

    def __post_init__(self) -> None:
        if not (1 <= self.lines <= MOST and 0 <= self.scratches <= MOST):
            raise ValueError(f"lines={self.lines}, scratches={self.scratches}: give at least 1 and 0, at most {MOST}")

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return paint(self._draw, generators, height, width, seeds=SET_SEEDS)

    def _draw(self, source: random.Random, height: int, width: int) -> Image.Image:
        canvas = Image.new("1", (width, height))
        draw, pitch = ImageDraw.Draw(canvas), height / self.lines
        font = ImageFont.load_default(size=max(4, 0.8 * pitch))
        for line in range(self.lines):
            text = ""
            # The text extends beyond both ends of its line, or margins would always be known.
            while draw.textlength(text, font=font) < width + pitch:
                text += "".join(source.choices(string.ascii_letters, k=source.randint(2, 8))) + " "
            draw.text((-source.uniform(0, pitch), (line + 0.5) * pitch), text, fill=1, font=font, anchor="lm")
        for _ in range(self.scratches):
            start, end = [(source.uniform(0, width), source.uniform(0, height)) for _ in range(2)]
            _draw_segment(draw, start, end, source.randint(1, 2) * min(height, width) / 256)
        return canvas


def _draw_until(draw: Callable[[], Hole], max_area: float, height: int, width: int) -> Hole:
    for _ in range(TRIES):
        hole = draw()
        if hole.mean() <= max_area:
            return hole
    raise ValueError(f"max_area={max_area}: {TRIES} masks of {height}x{width} were all larger; raise it or draw less")


def _draw_segment(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], width: float
) -> None:
    """A line with round ends, at least one pixel wide."""
    draw.line((*start, *end), fill=1, width=max(1, round(width)))
    radius = width / 2
    if radius >= 1:
        for x, y in (start, end):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
