"""Masks: random holes (B,1,H,W) float32 in {0,1}, mask files, named sets. White / 1 = fill.

Example:
    holes = Perlin()([generator(0, "image 7")], 256, 256)      # (1,1,256,256), keyed by a seed and a name
    hole = read_mask("mask.png")                              # (1,H,W) in [0,1], from a file
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.masks.damage import Polylines, Text
    from rad.masks.files import read_mask, write_mask
    from rad.masks.perlin import Perlin, Pnoise
    from rad.masks.sets import read_set, write_set
    from rad.masks.shapes import (
        Blobs,
        Box,
        CenterBox,
        Everything,
        Half,
        Halves,
        Lettering,
        RandomPixels,
        Strokes,
        make,
        photos,
    )


class MaskGenerator(ABC):
    """Random holes, one `torch.Generator` an image.

    A base class and not a `typing.Protocol`: jsonargparse takes a protocol whose only method is `__call__`
    for a factory of tensors, and then refuses `class_path: rad.masks.Perlin` in a YAML file.
    """

    @abstractmethod
    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Draw one hole for each generator.

        The hole of an image depends on its own generator only: a batch equals its images drawn one by one,
        bit for bit.

        Returns (B,1,height,width) float32 in {0,1}, 1 = fill, B = len(generators) >= 1, on the generators'
        device.
        """


from rad.masks.mixture import Mixture, Part  # noqa: E402  (needs MaskGenerator)

__all__ = [
    "Blobs",
    "Box",
    "CenterBox",
    "Everything",
    "Half",
    "Halves",
    "Lettering",
    "MaskGenerator",
    "Mixture",
    "Part",
    "Perlin",
    "Pnoise",
    "Polylines",
    "RandomPixels",
    "Strokes",
    "Text",
    "make",
    "photos",
    "read_mask",
    "read_set",
    "write_mask",
    "write_set",
]

__getattr__ = lazy_names(
    __name__,
    {
        "damage": "Polylines Text",
        "files": "read_mask write_mask",
        "perlin": "Perlin Pnoise",
        "sets": "read_set write_set",
        "shapes": "Blobs Box CenterBox Everything Half Halves Lettering RandomPixels Strokes make photos",
    },
)
