"""Inputs of an inpainter: images, masks, names and conditions, aligned and converted."""

import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rad.arguments import describe
from rad.images.sources import is_source
from rad.inpainting.arrays import ImageLike, MaskLike, to_image, to_list, to_mask
from rad.masks.base import MaskGenerator
from rad.masks.files import read_mask
from rad.masks.reading.format import MaskFormat, MaskWarning
from rad.masks.reading.hole import check_hole, dilate, fit, name_of
from rad.masks.shapes import MASKS, main_names, make
from rad.models.loaded_model import Condition
from rad.rng import Part, generator, identity

_READING = threading.Lock()
"""Threads take turns to load images, as Pillow loads an opened file at its first use."""

GIVEN = name_of(None)
"""How messages call a mask in memory."""

Mask = Tensor | Image.Image | Path | bytes | MaskGenerator
"""A mask as a hole (1,H,W), an image, a file, its bytes, or its generator."""


@dataclass(frozen=True)
class Inputs:
    """One image, mask, name and condition per entry.

    Args:
        names: keys of the noise.
        mask_names: keys of generated masks, those of `rad sample`: the names, or else the file names of the images.
    """

    images: list[Image.Image]
    masks: list[Mask]
    names: Sequence[int | str]
    mask_names: Sequence[int | str]
    conditions: list[Condition]

    @classmethod
    def align(
        cls,
        image: ImageLike | Sequence[ImageLike],
        mask: MaskLike | Sequence[MaskLike],
        *,
        names: Sequence[Part] | Part | None,
        condition: Condition | Sequence[Condition],
    ) -> "Inputs":
        """Repeat a single mask or condition for each image. Raises ValueError if types or numbers do not fit."""
        images = to_list(image, "image")
        count = len(images)
        masks = [_mask(entry) for entry in to_list(mask, "mask")]
        masks = masks * count if len(masks) == 1 and not isinstance(mask, list | tuple) else masks
        keys = _names(names, count)
        if len(masks) != count or len(keys) != count:
            raise ValueError(
                f"{count} images, {len(masks)} masks, {len(keys)} names: give one mask and one name per image"
            )
        mask_names = [_file_name(entry) for entry in images] if names is None else keys
        drawn = [name for name, entry in zip(mask_names, masks, strict=True) if isinstance(entry, MaskGenerator)]
        if names is None and len(set(drawn)) < len(drawn):
            raise ValueError(
                f"mask is drawn from the name of each image, and {count} images lack one: give names=[...]"
            )
        conditions = _conditions(condition, count)
        with _READING:
            _load(masks, conditions)
            return cls([to_image(entry) for entry in images], masks, keys, mask_names, conditions)

    def read(self, format: MaskFormat, seed: int) -> list[Tensor]:
        """The holes (1,H,W) in [0,1]; those of generators as `rad sample` draws them."""
        holes = []
        for image, mask, name in zip(self.images, self.masks, self.mask_names, strict=True):
            if isinstance(mask, MaskGenerator):
                holes.append(mask([generator(seed, "mask", name)], image.height, image.width)[0])
            else:
                holes.append(read_hole(mask, image, format))
        return holes


def _load(masks: Sequence[Mask], conditions: Sequence[Condition]) -> None:
    for image in (*masks, *(guide for condition in conditions for guide in condition.images)):
        if isinstance(image, Image.Image):
            image.load()


def _mask(mask: MaskLike) -> Mask:
    if isinstance(mask, np.ndarray | Tensor):
        return to_mask(mask)
    if isinstance(mask, Image.Image | bytes | MaskGenerator):
        return mask
    assert isinstance(mask, str | os.PathLike)  # `to_list` has read open files
    if not isinstance(mask, str) or is_source(mask):
        return Path(mask)
    if mask not in MASKS and "." not in mask and os.sep not in mask:
        raise ValueError(f"mask {describe(mask)} is neither a file nor a generator ({', '.join(main_names())})")
    return make(mask) if mask in MASKS else Path(mask)  # a missing file


def _file_name(image: ImageLike) -> str:
    return PurePath(image).name if isinstance(image, str | os.PathLike) else ""


def _names(names: Sequence[Part] | Part | None, count: int) -> Sequence[int | str]:
    if names is None:
        return [""] * count
    several = names.ndim > 0 if isinstance(names, np.ndarray) else isinstance(names, list | tuple)
    return [identity(name) for name in (cast("Sequence[Part]", names) if several else [cast("Part", names)])]


def _conditions(condition: Condition | Sequence[Condition], count: int) -> list[Condition]:
    conditions = [condition] * count if isinstance(condition, Condition) else condition
    if not isinstance(conditions, list | tuple) or not all(isinstance(each, Condition) for each in conditions):
        raise ValueError(f"condition is {describe(condition)}; give Condition(prompt=...), or a list of them")
    if len(conditions) != count:
        raise ValueError(
            f"{count} images and {len(conditions)} conditions: give one condition for all, or one per image"
        )
    return list(conditions)


def read_hole(mask: Tensor | Image.Image | Path | bytes, image: Image.Image, format: MaskFormat) -> Tensor:
    """The hole (1,H,W) in [0,1], 1 = fill, in the size of its image. Greys of a tensor are exact, and stay.

    Raises ValueError for an unsuitable mask. Warns as `rad.masks.files.load_mask` describes.
    """
    if not isinstance(mask, Tensor):
        return read_mask(BytesIO(mask) if isinstance(mask, bytes) else mask, format, image=image)
    if format.channel != "auto":
        raise ValueError("mask has one channel, so mask_channel has no effect on it: leave it out")
    picture = fit(Image.fromarray(mask[0].numpy()), (image.height, image.width), format, GIVEN)
    white = np.array(picture)
    if format.threshold is not None:
        white = ((white > float(format.threshold)) | (white == 1)).astype(np.float32)
    hole = dilate(white if format.polarity == "white_is_fill" else 1 - white, format.dilate)
    for message in check_hole(hole, format):
        warnings.warn(f"{GIVEN}: {message}", MaskWarning, stacklevel=2)
    return torch.from_numpy(hole)[None]
