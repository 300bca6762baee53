"""Outpainting: an image gets new pixels at its borders, which belong to the hole. Loads no torch."""

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rad.arguments import describe, integer

MOST = 2**16


@dataclass(frozen=True)
class Extension:
    """New pixels at each side of an image.

    Example:
        >>> Extension.parse("0,0,64,0")
        Extension(left=0, top=0, right=64, bottom=0)

    Args:
        left, top, right, bottom: widths in pixels, 0 to 65,536.

    Raises ValueError for other values.
    """

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = integer(f"{item.name} of the extension", getattr(self, item.name), low=0, high=MOST)
            object.__setattr__(self, item.name, value)

    @classmethod
    def parse(cls, text: str) -> "Extension":
        """From "LEFT,TOP,RIGHT,BOTTOM". Raises ValueError for other texts."""
        words = [word.strip() for word in text.split(",")]
        if len(words) != 4 or not all(word.isascii() and word.isdigit() and len(word) <= 9 for word in words):
            raise ValueError(
                f"extension is {describe(text)}; give LEFT,TOP,RIGHT,BOTTOM, four whole numbers of pixels from 0 to {MOST}, "
                "such as 0,0,64,0"
            )
        return cls(*map(int, words))

    @classmethod
    def of(cls, value: "Extension | tuple[int, int, int, int]") -> "Extension":
        """From itself, or from (left, top, right, bottom). Raises ValueError for other values."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, tuple | list) or len(value) != 4:
            raise ValueError(f"extend is {describe(value)}; give (left, top, right, bottom) in pixels, or an Extension")
        return cls(*value)

    def __bool__(self) -> bool:
        """Whether there are new pixels."""
        return any(astuple(self))

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))

    def image(self, image: Image.Image) -> Image.Image:
        """The RGB image with black new pixels; `info` is kept. Raises ValueError above the limit of Pillow."""
        width, height = self.left + image.width + self.right, self.top + image.height + self.bottom
        most = None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS  # Pillow refuses twice as many
        if most is not None and width * height > most:
            raise ValueError(
                f"the extended image has {width}x{height} pixels; allowed are {most:,} in all: extend by less, or raise the "
                "limit (rad sample --max_megapixels, PIL.Image.MAX_IMAGE_PIXELS)"
            )
        extended = Image.new("RGB", (width, height))
        extended.paste(image, (self.left, self.top))
        extended.info = dict(image.info)
        return extended

    def hole(self, hole: NDArray[np.float32]) -> NDArray[np.float32]:
        """The hole (H,W), 1 = fill, with ones in the new pixels."""
        return np.pad(hole, ((self.top, self.bottom), (self.left, self.right)), constant_values=1)
