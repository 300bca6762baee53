"""Inputs of an inpainter: images, masks, names and conditions, aligned and converted."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from rad.images.codecs import open_image, to_rgb, to_uint8
from rad.masks.files import read_mask
from rad.models.loaded_model import Condition

Polarity = Literal["white_is_fill", "white_is_known"]


ImageLike = Image.Image | Tensor | str | Path


_READING = threading.Lock()


@dataclass(frozen=True)
class Inputs:
    """One image, mask, name and condition per entry."""

    images: list[ImageLike]
    masks: list[ImageLike]
    names: list[str]
    conditions: list[Condition]

    @classmethod
    def align(
        cls,
        image: ImageLike | Sequence[ImageLike],
        mask: ImageLike | Sequence[ImageLike],
        *,
        names: Sequence[str] | None,
        condition: Condition | Sequence[Condition],
    ) -> "Inputs":
        """Repeat a single mask or condition for each image. Raises ValueError if the numbers differ."""
        images = [image] if isinstance(image, str) or not isinstance(image, Sequence) else list(image)
        count = len(images)
        masks = [mask] * count if isinstance(mask, str) or not isinstance(mask, Sequence) else list(mask)
        names = [""] * count if names is None else list(names)
        if len(masks) != count or len(names) != count:
            raise ValueError(
                f"{count} images, {len(masks)} masks, {len(names)} names: give one mask and one name per image"
            )
        conditions = [condition] * count if isinstance(condition, Condition) else list(condition)
        if len(conditions) != count:
            raise ValueError(
                f"{count} images and {len(conditions)} conditions: give one condition for all, or one per image"
            )
        return cls(images, masks, names, conditions)

    def read(self, polarity: Polarity) -> tuple[list[Image.Image], list[Tensor]]:
        """Images in RGB, and their holes (1,H,W) in [0,1]. Threads take turns: Pillow loads an opened image at its first use."""
        with _READING:
            for condition in self.conditions:
                for guide in (condition.control_image, condition.adapter_image, condition.style_image):
                    if guide is not None:
                        guide.load()
            images = [read_image(image) for image in self.images]
            return images, [read_hole(mask, image, polarity) for mask, image in zip(self.masks, images, strict=True)]


def read_image(image: ImageLike) -> Image.Image:
    """An image in RGB from an image, a file, or a float tensor (3,H,W) in [0,1]. Raises ValueError for any other."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(f"image is a tensor {tuple(image.shape)} {image.dtype}; expected (3,H,W) float in [0,1]")
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError("image is a tensor with values outside [0,1]: scale it to [0,1]")
        return to_uint8(image)
    if not isinstance(image, Image.Image):
        return open_image(image)
    if image.mode[0] in "IF":
        raise ValueError(
            f"image has mode {image.mode!r}, whose range is unknown: give its file, or convert it to 'RGB'"
        )
    return to_rgb(image)


def read_hole(mask: ImageLike, image: Image.Image, polarity: Polarity) -> Tensor:
    """The hole (1,H,W) in [0,1], 1 = fill, in the size of its image. Raises ValueError for an unsuitable mask."""
    size = (image.height, image.width)
    if polarity not in get_args(Polarity):
        raise ValueError(f"mask_polarity is {polarity!r}; allowed are {', '.join(get_args(Polarity))}")
    if not isinstance(mask, Tensor):
        return read_mask(mask, polarity=polarity, size=size)
    if mask.shape != (1, *size):
        raise ValueError(f"mask is a tensor {tuple(mask.shape)}; expected {(1, *size)}, as large as its image")
    hole = mask.to(torch.float32)
    if not bool(((hole >= 0) & (hole <= 1)).all()):
        raise ValueError("mask is a tensor with values outside [0,1]: give 1 where to fill and 0 elsewhere")
    return hole if polarity == "white_is_fill" else 1 - hole
