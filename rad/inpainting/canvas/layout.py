"""From images of any size to canvases of windows, by size policy. Loads no torch."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rad.arguments import describe, integer
from rad.inpainting.canvas.composite import Canvas, pad, signed
from rad.inpainting.canvas.pyramid import Pyramid, PyramidCanvas, Scale, reduce_pixels
from rad.inpainting.canvas.resize import Floats, max_pool, mean_pool
from rad.inpainting.canvas.windows import THIN, Box, Counts, Kind, Window, has_square, plan_windows
from rad.inpainting.canvas.zoom import zoom_region, zoomed
from rad.models.settings.preferred import Preferred
from rad.models.settings.preferred import SizePolicy as SizePolicy

if TYPE_CHECKING:
    from rad.models.loaded_model import Condition

WITH_MARGIN = ("crop", "zoom", "pyramid")
"""Size policies that use a margin."""


@dataclass(frozen=True)
class Layout:
    """Maps images to a model of `size` (height, width) in pixels.

    Args:
        policy: for images of another size: "error"; "resize" and back; "crop" windows around each hole; "zoom" a region around
            all holes, scaled to the model's size and back; "pyramid" windows at several scales, coarse to fine.
        margin: context around a window's core in pixels, for "crop" and "pyramid"; None: an eighth of the model's size. For
            "zoom", see `zoom_region`.
        content: keep the hole's content, from which a run with a strength below 1 starts: pixels enlarged by "zoom" depend on it,
            and an image smaller than the model is continued by its edge, not by black.
        pyramid: settings of "pyramid"; None: the defaults.
        thin: windows without a wide hole are of the kind "thin", see `THIN`.

    Raises ValueError for an unknown policy, a margin outside its range, or settings of another policy.
    """

    size: tuple[int, int]
    policy: SizePolicy = "error"
    margin: int | None = None
    content: bool = False
    pyramid: Pyramid | None = None
    thin: bool = False

    def __post_init__(self) -> None:
        if self.policy not in get_args(SizePolicy):
            raise ValueError(f"size_policy is {describe(self.policy)}; allowed are {', '.join(get_args(SizePolicy))}")
        if self.margin is not None:
            integer("margin", self.margin, low=0, high=2**16)
        height, width = self.size
        if self.policy in ("crop", "pyramid") and height != width:
            raise ValueError(
                f"size_policy {self.policy!r} needs a square model; this one is {width}x{height}: use 'resize'"
            )
        if self.policy != "pyramid" and self.pyramid is not None:
            raise ValueError(f"pyramid has no effect with size_policy {self.policy!r}: leave it out, or use 'pyramid'")
        if self.policy == "pyramid" and self.content:
            raise ValueError(
                "size_policy 'pyramid' starts from noise, so strength must be 1: leave it out, or use another policy, such as "
                "'crop'"
            )

    @classmethod
    def choose(
        cls,
        size: tuple[int, int],
        preferred: Preferred,
        policy: SizePolicy | None,
        margin: int | None,
        pyramid: Pyramid | None = None,
        *,
        content: bool = False,
        thin: bool = False,
    ) -> "Layout":
        """The layout of a call, with the checkpoint's settings for policy, margin and pyramid where they are None.

        `pyramid` is set if and only if the policy is "pyramid". Raises ValueError as the class.
        """
        chosen = preferred.complete(Preferred(size_policy=policy, margin=margin), method="")
        if pyramid is None and chosen.size_policy == "pyramid":
            pyramid = Pyramid.chosen(chosen)
        return cls(size, chosen.size_policy or "error", chosen.margin, content, pyramid, thin)

    def plan(self, hole: Floats, *, most: int | None = None, kind: Kind = "first") -> tuple[Floats, list[Window]]:
        """The hole (1,H,W) in working size, and its windows; `most` as in `plan_windows`.

        Windows that are not thin are of this `kind`. Their whole hole inside the image decides, in working size.
        Raises ValueError for another size with "error".
        """
        height, width = self.size
        region, inside = self.region(hole), hole
        if region is not None:
            hole, inside = _cut(hole, region, 1.0), _cut(hole, region, 0.0)
        elif self.policy == "zoom":
            return hole, []
        if self.policy in ("crop", "pyramid"):
            margin = height // 8 if self.margin is None else self.margin
            inside = pad(hole, self.size, 0.0)
            windows = plan_windows(inside[0] > 0, size=height, margin=margin, most=most)
            marked = [self._of_kind(window, inside, kind) for window in windows]
            return pad(hole, self.size, 1.0), marked  # the outside is unknown too
        if hole.shape[1:] != self.size:
            if self.policy == "error":
                raise ValueError(
                    f"the image is {hole.shape[2]}x{hole.shape[1]} and the model takes {width}x{height}: "
                    "use size_policy 'crop' (a window around each hole) or 'resize'"
                )
            hole, inside = max_pool(hole, self.size), max_pool(inside, self.size)
        whole = Window((0, 0, height, width), (0, 0, height, width))
        return hole, [self._of_kind(whole, inside, kind)] if (hole > 0).any() else []

    def _of_kind(self, window: Window, hole: Floats, kind: Kind) -> Window:
        """The window as "thin" if its part of the hole (1,H,W) is, otherwise as `kind`."""
        thin = self.thin and not has_square(hole[0][window.slices] > 0, THIN + 1)
        return replace(window, kind="thin" if thin else kind)

    def region(self, hole: Floats) -> Box | None:
        """The region that "zoom" scales, for a hole (1,H,W); None without a hole and for other policies."""
        return zoom_region(hole, self.size, self.margin) if self.policy == "zoom" else None

    def count_windows(self, hole: Floats, *, most: int | None = None) -> Counts:
        """Number of windows of each kind, for a hole (1,H,W); `most` as in `plan_windows`, for each scale."""
        plans = [self.plan(cells, most=most, kind=kind) for _, cells, kind in self._reductions(hole)]
        return Counter(window.kind for _, windows in plans for window in windows)

    def _reductions(self, hole: Floats) -> list[tuple[int, Floats, Kind]]:
        """(s, hole at scale 1/s, kind of its windows) of each scale, the coarsest first."""
        if self.policy != "pyramid":
            return [(1, hole, "first")]
        (side, cells), *finer = (self.pyramid or Pyramid()).reductions(hole, self.size[0])
        return [(side, cells, "first"), *((side, cells, "finer") for side, cells in finer)]

    def _scales(self, image: Image.Image, hole: Floats, condition: "Condition | None") -> list[Scale]:
        """The scales of "pyramid", the coarsest first."""
        original, scales = np.array(image).transpose(2, 0, 1), []
        for side, cells, kind in self._reductions(hole):
            pixels = original if side == 1 else reduce_pixels(signed(original), hole, side)
            height, width = cells.shape[1:]
            padded, windows = self.plan(cells, kind=kind)
            guide = None if condition is None else condition.resized((width, height))
            scales.append(Scale(side, (height, width), pad(pixels, self.size, 0), padded, windows, guide))
        return scales

    def canvases(
        self,
        image: Image.Image,
        hole: Floats,
        name: int | str,
        condition: "Condition | None" = None,
        *,
        samples: int,
        average: int = 1,
    ) -> list[Canvas]:
        """One canvas for each result of an image with its hole (1,H,W); `average`: samples of a result, see `Canvas`."""
        firsts = range(0, samples * average, average)
        if self.policy == "pyramid":
            scales = self._scales(image, hole, condition)
            return [PyramidCanvas(name, first, scales, average=average) for first in firsts]
        original, region = hole, self.region(hole)
        hole, windows = self.plan(hole)
        model_size = (self.size[1], self.size[0])
        if condition is not None:
            condition = condition.resized(image.size if self.policy in ("crop", "zoom") else model_size)
            condition = condition if region is None else condition.cut(region).resized(model_size)
        pixels = np.array(image).transpose(2, 0, 1)
        outside = None if self.content else 0
        if region is not None:
            hidden = _cut(original, region, 1.0) * (not self.content)
            pixels = zoomed(signed(_cut(pixels, region, outside)), hidden, self.size)
        elif self.policy == "resize" and image.size != model_size:
            # Both poolings have the same windows: no known pixel of the small image depends on the hole's content.
            pixels = mean_pool(signed(pixels), self.size)
        else:
            pixels = pad(pixels, self.size, outside)
        return [Canvas(name, first, pixels, hole, windows, condition, average=average) for first in firsts]


def _cut(image: NDArray, region: Box, value: float | None) -> NDArray:
    """The region of an image (C,H,W), which may end beyond its edge; `value` is there, see `pad`."""
    top, left, bottom, right = region
    return pad(image, (bottom, right), value)[:, top:bottom, left:right]
