"""Damage of photographs: scratches, strokes and text. Sizes are pixels and do not scale with the image."""

import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rad.masks.base import MOST, MaskGenerator, check_range, paint

MOST_SEGMENTS, MOST_MARGIN = 100, 32

LETTERS = 3 * string.ascii_lowercase + string.ascii_uppercase + string.digits


@dataclass(frozen=True)
class Polylines(MaskGenerator):
    """Strokes along polylines with one width and round ends: scratches, or brush strokes if wide. No hole is empty.

    A pixel is hole if its centre is at most half a width away from the polyline. One random vertex lies on a random
    pixel; the others may lie outside the image.

    Args:
        strokes: lowest and highest number of polylines.
        width: lowest and highest width, at least 1, in pixels.
        segments: lowest and highest number of segments of a polyline.
        length: lowest and highest length of a segment, as share of the shorter side of the image.
        turn: largest angle between two segments, in degrees, at most 180.
    """

    strokes: tuple[int, int] = (1, 3)
    width: tuple[float, float] = (1.0, 3.0)
    segments: tuple[int, int] = (1, 4)
    length: tuple[float, float] = (0.2, 0.8)
    turn: float = 60.0

    def __post_init__(self) -> None:
        check_range("strokes", self.strokes, 1, MOST)
        check_range("width", self.width, 1, MOST)
        check_range("segments", self.segments, 1, MOST_SEGMENTS)
        check_range("length", self.length, 1e-3, 10)
        if not 0 <= self.turn <= 180:
            raise ValueError(f"turn={self.turn}: give 0 (straight lines) to 180 degrees")

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return paint(self._draw, generators, height, width)

    def _draw(self, source: random.Random, height: int, width: int) -> np.ndarray:
        hole = np.zeros((height, width), dtype=bool)
        for _ in range(source.randint(*self.strokes)):
            radius = source.uniform(*self.width) / 2
            hole |= _near(self._draw_vertices(source, height, width), radius, height, width)
        return hole

    def _draw_vertices(self, source: random.Random, height: int, width: int) -> np.ndarray:
        """(vertices, 2) as (x, y); the centre of pixel (row, column) is (column, row)."""
        heading, vertices = source.uniform(0, 2 * math.pi), [(0.0, 0.0)]
        for _ in range(source.randint(*self.segments)):
            length = min(height, width) * source.uniform(*self.length)
            x, y = vertices[-1]
            vertices.append((x + length * math.cos(heading), y + length * math.sin(heading)))
            heading += math.radians(source.uniform(-self.turn, self.turn))
        placed = np.array(vertices)
        return placed - placed[source.randrange(len(placed))] + (source.randrange(width), source.randrange(height))


@dataclass(frozen=True)
class Text(MaskGenerator):
    """A block of lines of random words at a random place, cut by the border. No hole is empty.

    Letters use Pillow's font; their edges may differ by a pixel between its versions.

    Args:
        size: lowest and highest size of the font, in pixels.
        lines: lowest and highest number of lines.
        margin: lowest and highest number of hole pixels around the letters, as in masks drawn by hand.
    """

    size: tuple[int, int] = (9, 20)
    lines: tuple[int, int] = (1, 3)
    margin: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_range("size", self.size, 4, MOST)
        check_range("lines", self.lines, 1, MOST)
        check_range("margin", self.margin, 0, MOST_MARGIN)

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return paint(self._draw, generators, height, width)

    def _draw(self, source: random.Random, height: int, width: int) -> np.ndarray:
        while True:  # a space or the gap between two lines may cover the whole of a small image
            canvas = Image.new("1", (width, height))
            self._draw_block(source, canvas)
            if canvas.getbbox() is not None:
                return np.asarray(canvas)

    def _draw_block(self, source: random.Random, canvas: Image.Image) -> None:
        draw, size = ImageDraw.Draw(canvas), source.randint(*self.size)
        margin, lines = source.randint(*self.margin), source.randint(*self.lines)
        left = source.uniform(-2 * size, 0.6 * canvas.width)
        top = source.uniform(0.2 * size - 1.2 * size * lines, canvas.height - 0.8 * size)
        longest = math.ceil((canvas.width - left) / (0.3 * size))  # characters beyond the border cost time
        for line in range(lines):
            words = ("".join(source.choices(LETTERS, k=source.randint(1, 8))) for _ in range(source.randint(1, 4)))
            text, place = " ".join(words)[:longest], (left, top + 1.2 * size * line)
            if -1.5 * size < place[1] + margin and place[1] - margin < canvas.height:  # else the line is not visible
                draw.text(place, text, fill=1, font=_font(size), stroke_width=margin)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Cached: loading a font takes longer than drawing a hole."""
    return ImageFont.load_default(size=size)


def _near(vertices: np.ndarray, radius: float, height: int, width: int) -> np.ndarray:
    """(height,width) bool: pixels whose centre is at most `radius` away from the polyline through (vertices, 2)."""
    steps = np.diff(vertices, axis=0)
    lengths = np.hypot(*steps.T)[:, None, None]
    along_x, along_y = steps.T[:, :, None, None] / lengths
    x = np.arange(width) - vertices[:-1, 0, None, None]
    y = np.arange(height)[:, None] - vertices[:-1, 1, None, None]
    along = np.clip(x * along_x + y * along_y, 0, lengths)
    return ((x - along * along_x) ** 2 + (y - along * along_y) ** 2 <= radius**2).any(0)
