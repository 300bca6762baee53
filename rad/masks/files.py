"""Mask files as tensors: read, write, compare; the work is that of `rad.masks.reading`."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rad.masks.reading.format import DEFAULT, MaskFormat, MaskWarning
from rad.masks.reading.hole import MaskSource, load_hole, name_of
from rad.masks.reading.written import read_written_hole, same_hole, write_hole


@dataclass(frozen=True)
class LoadedMask:
    """A hole (1,H,W) in [0,1], notes on how its file was read, and warnings of possible mistakes."""

    hole: Tensor
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_mask(
    source: MaskSource,
    format: MaskFormat = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    image: Image.Image | None = None,
) -> Tensor:
    """Read a mask from a file name, binary file or image. Warns as `load_mask` describes.

    Example:
        hole = read_mask("strokes.png", MaskFormat(channel="alpha", dilate=2))

    Args:
        size: required (height, width); `None` accepts any.
        image: the image to fill in RGB, which shows where a copy of it was painted over; its size is required.

    Returns (1,H,W) float32 in [0,1], 1 = fill; with `format.soft` also between. Raises FileNotFoundError, or ValueError for
    a file that is no image, has another size, or is not clearly a mask.
    """
    name = name_of(source)
    mask = load_mask(source, format, size=size, image=image, name=name)
    for message in mask.notes + mask.warnings:
        warnings.warn(f"{name}: {message}", MaskWarning, stacklevel=2)
    return mask.hole


def load_mask(
    source: MaskSource,
    format: MaskFormat = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    image: Image.Image | None = None,
    name: str | None = None,
) -> LoadedMask:
    """As `read_mask`, with messages in place of warnings; see `rad.masks.reading.hole.load_hole`."""
    loaded = load_hole(source, format, size=size, image=image, name=name)
    return LoadedMask(torch.from_numpy(loaded.hole)[None], loaded.notes, loaded.warnings)


def read_written_mask(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """The hole (1,H,W) in a file of `write_mask`, exactly. Raises ValueError for another size."""
    return torch.from_numpy(read_written_hole(path, size=size))[None]


def write_mask(path: str | Path, hole: Tensor) -> None:
    """Write a hole (1,H,W) in [0,1] atomically as 8-bit grey PNG, white = fill; creates missing folders."""
    if hole.ndim != 3 or hole.shape[0] != 1:
        raise ValueError(f"{path}: one hole of shape (1,H,W) is needed, not {tuple(hole.shape)}")
    write_hole(path, hole[0].float().cpu().numpy())


def same_mask(path: str | Path, hole: Tensor) -> bool:
    """Whether a mask file (white = fill) equals what `write_mask` writes for this hole (1,H,W)."""
    return same_hole(path, hole[0].float().cpu().numpy())
