"""How a mask file is read: the options that `read_mask`, `Inpainter` and `rad sample` share."""

from dataclasses import dataclass
from typing import Literal, get_args

from rad.arguments import integer, number

Polarity = Literal["white_is_fill", "white_is_known"]
MaskChannel = Literal["auto", "grey", "alpha", "red", "green", "blue"]
MaskResize = Literal["error", "nearest"]


class MaskWarning(UserWarning):
    """A mask was read, but not as plain black and white, or looks like a mistake."""


@dataclass(frozen=True, kw_only=True)
class MaskFormat:
    """How a mask file is read. Raises ValueError for an unknown choice or a value out of range.

    Args:
        polarity: meaning of white in the file; with `channel="alpha"`, of opaque.
        channel: "auto" takes transparency where it varies, a painted colour, or grey values, and warns about the first two.
        threshold: in [0,1]; brighter pixels are white. None: a half, for files with almost no greys; others are refused.
        soft: keep grey values: such pixels are filled in part.
        resize: "nearest" resizes a mask of the image's aspect ratio; "error" refuses another size.
        dilate: pixels by which the hole grows in each direction (a square of side 2 * dilate + 1).
    """

    polarity: Polarity = "white_is_fill"
    channel: MaskChannel = "auto"
    threshold: float | None = None
    soft: bool = False
    resize: MaskResize = "error"
    dilate: int = 0

    def __post_init__(self) -> None:
        choices = {"polarity": Polarity, "channel": MaskChannel, "resize": MaskResize}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"mask_{name} is {getattr(self, name)!r}; allowed are {', '.join(map(str, get_args(kind)))}"
                )
        if not isinstance(self.soft, bool):
            raise ValueError(f"soft_mask is {self.soft!r}; allowed are True and False")
        if self.threshold is not None and not 0 <= number("mask_threshold", self.threshold) <= 1:
            raise ValueError(f"mask_threshold is {self.threshold!r}; allowed are 0 (black) to 1 (white)")
        if self.threshold is not None and self.soft:
            raise ValueError("mask_threshold and soft_mask exclude each other: give one of them")
        object.__setattr__(self, "dilate", integer("mask_dilate", self.dilate, low=0))


DEFAULT = MaskFormat()
