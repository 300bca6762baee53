"""From an image to a square, or to the size of a bucket: crop, scale, flip, colour jitter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from rad.images.tensors import to_tensor

Resize = Literal["short_side", "none"]
Crop = Literal["center", "random", "random_scale"]
ScaleDraw = Literal["uniform", "log_uniform"]
SCALE_RANGE = (0.25, 1.0)
PROPERTIES = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class ColourJitter:
    """Random changes of colour, in a random order, as torchvision's ColorJitter; 0 leaves a property as it is.

    Args:
        brightness, contrast, saturation: c >= 0: a factor from max(0, 1 - c) to 1 + c, uniform.
        hue: h from 0 to 0.5: a shift from -h to h of the colour circle, uniform.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in PROPERTIES:
            value, limit = getattr(self, name), 0.5 if name == "hue" else math.inf
            if not 0 <= value <= limit or value == math.inf:
                raise ValueError(f"jitter.{name}={value}: give 0 to {'0.5' if name == 'hue' else '1, or more'}")

    def __call__(self, image: Tensor, random: torch.Generator) -> Tensor:
        """(3,H,W) in [0, 1]; always eight draws, so that one property does not change the draws of another."""
        from torchvision.transforms.v2 import functional

        values = torch.rand(4, generator=random, device=random.device, dtype=torch.float64).tolist()
        order = torch.rand(4, generator=random, device=random.device, dtype=torch.float64).argsort().tolist()
        for index in order:
            name, draw = PROPERTIES[index], values[index]
            width = getattr(self, name)
            if width > 0:
                low, high = (-width, width) if name == "hue" else (max(0.0, 1 - width), 1 + width)
                adjust = getattr(functional, f"adjust_{name}")
                image = adjust(image, low + (high - low) * draw)
        return image


@dataclass(frozen=True)
class Framing:
    """Crops and scales an image to a square of `size` pixels in [-1, 1]; the fields are those of `ImageDataModule`."""

    size: int
    resize: Resize = "short_side"
    crop: Crop = "center"
    scale_range: tuple[float, float] = SCALE_RANGE
    flip: bool = False
    side_range: tuple[int, int | None] | None = None
    scale_draw: ScaleDraw = "uniform"
    jitter: ColourJitter | None = None

    def __post_init__(self) -> None:
        for name, choices in (("resize", Resize), ("crop", Crop), ("scale_draw", ScaleDraw)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}")
        if not 0 < self.scale_range[0] <= self.scale_range[1] <= 1:
            raise ValueError(f"scale_range={self.scale_range}: give 0 < low <= high <= 1, parts of the short side")
        if self.crop != "random_scale":
            for name, default in (("scale_draw", "uniform"), ("side_range", None)):
                value = getattr(self, name)
                if value != default:
                    raise ValueError(f"{name}={value!r} has no effect: set crop='random_scale' or leave it out")
        elif self.resize == "none":
            raise ValueError("resize='none' contradicts crop='random_scale', which scales: leave one of them out")
        if self.side_range is not None:
            low, high = self.side_range
            if low < 1 or (high is not None and high < low):
                raise ValueError(
                    f"side_range={self.side_range}: give pixels with 1 <= low <= high, or null for high, the whole short side"
                )
            if self.scale_range != SCALE_RANGE:
                raise ValueError(
                    f"side_range={self.side_range} (pixels) and scale_range={self.scale_range} (shares) contradict: give one"
                )

    @property
    def is_fixed(self) -> bool:
        """Whether an image has always the same pixels, apart from flips."""
        return self.crop == "center" and self.jitter is None

    def box(
        self, width: int, height: int, draws: Sequence[float], sides: tuple[int, int] | None = None
    ) -> tuple[int, int, int, int]:
        """Left, top, width and height of the crop, in pixels of the image.

        Args:
            draws: four in [0, 1).
            sides: (H,W) whose aspect ratio the crop has; None: a square.
        """
        if sides is None or sides[0] == sides[1]:
            wide = high = min(width, height)
        else:  # the largest rectangle of the aspect ratio
            wide = min(width, max(1, round(height * sides[1] / sides[0])))
            high = min(height, max(1, round(width * sides[0] / sides[1])))
        if self.crop == "random_scale":
            short = min(wide, high)
            side = self._draw_side(short, draws[0])
            wide, high = max(1, round(wide * side / short)), max(1, round(high * side / short))
        elif self.resize == "none":
            wide = high = min(self.size, wide)
        if self.crop == "center":
            return (width - wide) // 2, (height - high) // 2, wide, high
        return int(draws[1] * (width - wide + 1)), int(draws[2] * (height - high + 1)), wide, high

    def _draw_side(self, short: int, draw: float) -> int:
        low, high = self.scale_range
        unit = short
        if self.side_range is not None:  # an image smaller than the range is used whole
            low, high = (short if side is None else min(side, short) for side in self.side_range)
            unit = 1
        scale = low + (high - low) * draw if self.scale_draw == "uniform" else low * (high / low) ** draw
        return max(1, round(scale * unit))

    def __call__(self, image: Image.Image, random: torch.Generator, sides: tuple[int, int] | None = None) -> Tensor:
        """(3,H,W) float32 in [-1, 1], with H,W of `sides`, or `size`; always four draws, which no
        setting shifts, then those of the jitter."""
        height, width = sides or (self.size, self.size)
        draws = torch.rand(4, generator=random, device=random.device, dtype=torch.float64).tolist()
        left, top, wide, high = self.box(*image.size, draws, sides)
        image = image.crop((left, top, left + wide, top + high))
        if (wide, high) != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        if self.flip and draws[3] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = to_tensor(image)
        if self.jitter is not None:
            pixels = self.jitter(pixels, random)
        return pixels * 2 - 1
