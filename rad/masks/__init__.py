"""Masks: random holes (B,1,H,W) float32 in {0,1}, mask files, named sets. White / 1 = fill.

Example:
    holes = Perlin()([generator(0, "image 7")], 256, 256)      # (1,1,256,256), keyed by a seed and a name
    hole = read_mask("mask.png")                              # (1,H,W) in [0,1], from a file
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.masks.base import MaskGenerator
    from rad.masks.damage import Polylines, Text
    from rad.masks.files import read_mask, write_mask
    from rad.masks.mixture import Mixture, Part
    from rad.masks.perlin import Perlin, Pnoise
    from rad.masks.reading.format import MaskFormat, MaskWarning
    from rad.masks.sets import read_set, write_set
    from rad.masks.shapes import Box, CenterBox, Everything, Half, Halves, RandomPixels, make, photos
    from rad.masks.strokes import Blobs, Lettering, Strokes

__all__ = [
    "Blobs", "Box", "CenterBox", "Everything", "Half", "Halves", "Lettering", "MaskFormat", "MaskGenerator",
    "MaskWarning", "Mixture", "Part", "Perlin", "Pnoise", "Polylines", "RandomPixels", "Strokes", "Text", "make",
    "photos", "read_mask", "read_set", "write_mask", "write_set",
]  # fmt: skip

__getattr__ = lazy_names(
    __name__,
    {
        "base": "MaskGenerator",
        "damage": "Polylines Text",
        "files": "read_mask write_mask",
        "reading.format": "MaskFormat MaskWarning",
        "mixture": "Mixture Part",
        "perlin": "Perlin Pnoise",
        "sets": "read_set write_set",
        "shapes": "Box CenterBox Everything Half Halves RandomPixels make photos",
        "strokes": "Blobs Lettering Strokes",
    },
)
