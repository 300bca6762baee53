"""Outpainting: an image gets new pixels at its borders, which belong to the hole. Loads no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST = 2**16


@dataclass(frozen=True)
class Extension:
    """New pixels at each side of an image.

    Args:
        left, top, right, bottom: widths in pixels, 0 to 65,536.

    Raises ValueError for other values.
    """

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    @classmethod
    def parse(cls, text: str) -> "Extension":
        """From "LEFT,TOP,RIGHT,BOTTOM". Raises ValueError for other texts."""
        raise NotImplementedError

    def image(self, image: Image.Image) -> Image.Image:
        """The RGB image with black new pixels; `info` is kept."""
        raise NotImplementedError

    def hole(self, hole: NDArray[np.float32]) -> NDArray[np.float32]:
        """The hole (H,W), 1 = fill, with ones in the new pixels."""
        raise NotImplementedError
