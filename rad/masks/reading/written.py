"""Holes as they are written: 8-bit grey PNG, white = fill. Loads no torch."""

from pathlib import Path

import numpy as np
from PIL import Image

from rad.images.atomic import replacing
from rad.masks.reading.format import DEFAULT
from rad.masks.reading.hole import Hole, decode, fit


def write_hole(path: str | Path, hole: Hole) -> None:
    """Write a hole (H,W) in [0,1] atomically as 8-bit grey PNG, white = fill; creates missing folders."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: masks are written as PNG, which keeps every pixel; end the name in .png")
    if not ((hole >= 0) & (hole <= 1)).all():
        raise ValueError(f"{path}: a hole lies in [0,1], this one in [{hole.min():.3g},{hole.max():.3g}]")
    with replacing(Path(path)) as temporary:
        Image.fromarray(_levels(hole).astype(np.uint8)).save(temporary, format="PNG")


def read_written_hole(path: str | Path, *, size: tuple[int, int] | None = None) -> Hole:
    """The hole (H,W) in a file of `write_hole`, exactly. Raises ValueError for another size."""
    image = decode(path, str(path)).image
    image = image if size is None else fit(image, size, DEFAULT, str(path))
    return (np.asarray(image.convert("L")) / 255).astype(np.float32)


def same_hole(path: str | Path, hole: Hole) -> bool:
    """Whether a mask file (white = fill) equals what `write_hole` writes for this hole (H,W)."""
    return np.array_equal(read_written_hole(path), _levels(hole) / np.float32(255))


def _levels(hole: Hole) -> Hole:
    """Grey values 0 to 255, rounded once (ties to even)."""
    return np.rint(hole.astype(np.float32) * np.float32(255))
