"""Images during inpainting: 8-bit inputs of any size, filled windows in float, and the final composite. Loads no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rad.arguments import describe, integer
from rad.inpainting.canvas.resize import Floats, max_pool, mean_pool, resize_bicubic
from rad.inpainting.canvas.windows import Box, Window, plan_windows
from rad.inpainting.canvas.zoom import zoom_region, zoomed
from rad.models.settings.preferred import SizePolicy as SizePolicy

if TYPE_CHECKING:
    from rad.models.loaded_model import Condition

Pixels = NDArray[np.uint8] | Floats
"""Values of uint8, or float in [-1,1]."""


class Canvas:
    """A result for an image, filled window by window. Memory: 4 bytes per pixel, and the filled windows in float.

    Args:
        name, sample: identity of the noise; windows: to fill; condition: guidance of models with text.
        average: the result is the mean of this number of samples, from `sample` on. They are filled one after another.
        pixels: (3,H,W), uint8, or float in [-1,1] if resized; shared by the samples of an image and never changed.
        hole: (1,H,W) in [0,1], shared too.

    Attributes:
        sample: the present sample.
        windows: the remaining windows of the present sample, in their order; empty when all samples are filled.
        unknown: (H,W), pixels still to fill in the present sample.
        filled: (3,H,W) in [-1,1], the present sample, valid in the filled part of the hole; allocated lazily.
        raw: `pixels` with the output of each window's core, known pixels included; the mean over the samples so far.
    """

    def __init__(
        self,
        name: int | str,
        sample: int,
        pixels: Pixels,
        hole: Floats,
        windows: Sequence[Window],
        condition: "Condition | None" = None,
        *,
        average: int = 1,
    ) -> None:
        self.name, self.sample, self.pixels, self.hole, self.condition = name, sample, pixels, hole, condition
        self.average, self.samples_filled, self._all_windows = average, 0, tuple(windows)
        self.windows = dict.fromkeys(windows)
        self.unknown = hole[0] > 0
        self.filled = np.zeros(pixels.shape, np.float32)
        self._mean = np.zeros(pixels.shape if average > 1 else 0, np.float32)  # allocated lazily, too
        self.raw = pixels.copy()

    def job_name(self, window: Window) -> int | str:
        """Identity of a window's noise; the name alone for a window that covers the image."""
        top, left, bottom, right = window.window
        whole = self.hole.shape[1:] == (bottom - top, right - left)
        return self.name if whole else f"{self.name}@{top},{left}"

    def cut(self, window: Window) -> tuple[Floats, Floats]:
        """The model's input: pixels (3,S,S) in [-1,1] with earlier fills, and the remaining hole (1,S,S)."""
        area = (slice(None), *window.slices)
        hole, unknown = self.hole[area], self.unknown[window.slices]
        pixels = np.where((hole > 0) & ~unknown, self.filled[area], _signed(self.pixels[area]))
        return pixels, hole * unknown

    def paste(self, window: Window, output: Floats) -> None:
        """Keep the core of the model's output (3,S,S) in [-1,1]. After the last window, the next sample of a mean begins."""
        top, left, _, _ = window.window
        rows, columns = window.core_slices
        core = (slice(None), rows, columns)
        output = output[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        unknown = self.unknown[rows, columns]
        kept = unknown | (self.hole[core] == 0)
        self.filled[core] = np.where(unknown, output, self.filled[core])
        if self.average > 1:
            change = (np.clip(output, -1, 1) - self._mean[core]) / np.float32(self.samples_filled + 1)
            self._mean[core] += np.where(kept, change, 0)
            output = self._mean[core]
        raw = output if self.raw.dtype != np.uint8 else _rounded(output)
        self.raw[core] = np.where(kept, raw, self.raw[core])
        unknown[:] = False
        del self.windows[window]
        if not self.windows:
            self._begin_next_sample()

    def _begin_next_sample(self) -> None:
        self.samples_filled += 1
        if self.samples_filled < self.average:
            self.sample += 1
            self.windows, self.unknown = dict.fromkeys(self._all_windows), self.hole[0] > 0


def _signed(pixels: Pixels) -> Floats:
    values = np.asarray(pixels, np.float32)
    return values / np.float32(255) * np.float32(2) - np.float32(1) if pixels.dtype == np.uint8 else values


def _rounded(pixels: Floats) -> NDArray[np.uint8]:
    """Values in [-1,1] as uint8, by one rounding, as `rad.images.tensors.round_to_uint8`."""
    return np.rint(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Layout:
    """Maps images to a model of `size` (height, width) in pixels.

    Args:
        policy: for images of another size: "error"; "resize" and back; "crop" windows around each hole; "zoom" a region around
            all holes, scaled to the model's size and back.
        margin: context around a window's core in pixels, for "crop"; None: an eighth of the model's size. For "zoom", see
            `zoom_region`.
        content: keep the hole's content, from which a run with a strength below 1 starts: pixels enlarged by "zoom" depend on it,
            and an image smaller than the model is continued by its edge, not by black.

    Raises ValueError for an unknown policy or a margin outside its range.
    """

    size: tuple[int, int]
    policy: SizePolicy = "error"
    margin: int | None = None
    content: bool = False

    def __post_init__(self) -> None:
        if self.policy not in get_args(SizePolicy):
            raise ValueError(f"size_policy is {describe(self.policy)}; allowed are {', '.join(get_args(SizePolicy))}")
        if self.margin is not None:
            integer("margin", self.margin, low=0, high=2**16)
        height, width = self.size
        if self.policy == "crop" and height != width:
            raise ValueError(f"size_policy 'crop' needs a square model; this one is {width}x{height}: use 'resize'")

    def plan(self, hole: Floats, *, most: int | None = None) -> tuple[Floats, list[Window]]:
        """The hole (1,H,W) in working size, and its windows; `most` as in `plan_windows`.

        Raises ValueError for another size with "error".
        """
        height, width = self.size
        region = self.region(hole)
        if region is not None:
            hole = _cut(hole, region, 1.0)
        elif self.policy == "zoom":
            return hole, []
        if self.policy == "crop":
            margin = height // 8 if self.margin is None else self.margin
            padded = pad(hole, self.size, 1.0)  # the outside is unknown too
            inside = padded[0] > 0
            inside[hole.shape[1] :], inside[:, hole.shape[2] :] = False, False
            return padded, plan_windows(inside, size=height, margin=margin, most=most)
        if hole.shape[1:] != self.size:
            if self.policy == "error":
                raise ValueError(
                    f"the image is {hole.shape[2]}x{hole.shape[1]} and the model takes {width}x{height}: "
                    "use size_policy 'crop' (a window around each hole) or 'resize'"
                )
            hole = max_pool(hole, self.size)
        whole = Window((0, 0, height, width), (0, 0, height, width))
        return hole, [whole] if (hole > 0).any() else []

    def region(self, hole: Floats) -> Box | None:
        """The region that "zoom" scales, for a hole (1,H,W); None without a hole and for other policies."""
        return zoom_region(hole, self.size, self.margin) if self.policy == "zoom" else None

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
            pixels = zoomed(_signed(_cut(pixels, region, outside)), hidden, self.size)
        elif self.policy == "resize" and image.size != model_size:
            # Both poolings have the same windows: no known pixel of the small image depends on the hole's content.
            pixels = mean_pool(_signed(pixels), self.size)
        else:
            pixels = pad(pixels, self.size, outside)
        firsts = range(0, samples * average, average)
        return [Canvas(name, first, pixels, hole, windows, condition, average=average) for first in firsts]


def composite(image: Image.Image, filled: Image.Image, hole: Floats, *, feather: int = 0) -> Image.Image:
    """`image` where hole (1,H,W) is 0 and `filled` elsewhere, copied without arithmetic; both RGB of the same size.

    `feather`: width in pixels of a linear blend into `filled`, in the known region around the hole.
    """
    composed, inside = image.copy(), hole[0] > 0
    if feather and inside.any():
        from scipy.ndimage import distance_transform_edt

        distance = np.asarray(distance_transform_edt(~inside))
        weight = np.clip(1 - distance / (feather + 1), 0, 1)
        weight[distance > feather] = 0
        composed.paste(filled, mask=Image.fromarray(np.rint(255 * weight).astype(np.uint8)))
    else:
        composed.paste(filled, mask=Image.fromarray(inside))
    return composed


def _cut(image: NDArray, region: Box, value: float | None) -> NDArray:
    """The region of an image (C,H,W), which may end beyond its edge; `value` is there, see `pad`."""
    top, left, bottom, right = region
    return pad(image, (bottom, right), value)[:, top:bottom, left:right]


def pad(image: NDArray, size: tuple[int, int], value: float | None) -> NDArray:
    """(C,H,W) padded at the bottom and the right to at least `size` (height, width); None: by the values of its edge."""
    rows, columns = (max(0, wanted - given) for wanted, given in zip(size, image.shape[1:], strict=True))
    widths = ((0, 0), (0, rows), (0, columns))
    if not (rows or columns):
        return image
    return np.pad(image, widths, mode="edge") if value is None else np.pad(image, widths, constant_values=value)


def restore_size(
    pixels: Pixels, size: tuple[int, int], *, resize: Callable[[Floats, tuple[int, int]], Floats] = resize_bicubic
) -> Image.Image:
    """The image in the input's size (width, height): float pixels are resized, padded uint8 pixels are cropped.

    `resize`: (C,H,W) to (height, width). PyTorch's result may differ from Pillow's by rounding.
    """
    width, height = size
    if pixels.dtype != np.uint8:
        pixels = _rounded(np.clip(resize(np.asarray(pixels, np.float32), (height, width)), -1, 1))
    return Image.fromarray(np.ascontiguousarray(pixels[:, :height, :width].transpose(1, 2, 0)))
