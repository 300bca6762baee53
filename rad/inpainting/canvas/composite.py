"""Images during inpainting: 8-bit inputs of any size, filled windows in float, and the final composite. Loads no torch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rad.inpainting.canvas.resize import Floats, resize_bicubic
from rad.inpainting.canvas.windows import Counts, Kind, Window, total_calls

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
        filled: (3,H,W) in [-1,1], the present sample, valid in the filled cores; allocated lazily.
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
        self._counted = np.zeros(hole.shape[1:], bool)  # pixels whose mean includes the present sample
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
        pixels = np.where((hole > 0) & ~unknown, self.filled[area], signed(self._seen(window)[area]))
        return pixels, hole * unknown

    def _seen(self, window: Window) -> Pixels:
        """The pixels that a window sees and starts from."""
        return self.pixels

    def paste(self, window: Window, output: Floats) -> None:
        """Keep the core of the model's output (3,S,S) in [-1,1]. After the last window, the next sample of a mean begins."""
        top, left, _, _ = window.window
        rows, columns = window.core_slices
        core = (slice(None), rows, columns)
        output = output[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        unknown = self.unknown[rows, columns]
        kept = unknown | (self.hole[core] == 0)
        mean = self._averaged(output, core, kept)
        self.filled[core] = np.where(kept, output, self.filled[core])
        raw = mean if self.raw.dtype != np.uint8 else rounded(mean)
        self.raw[core] = np.where(kept, raw, self.raw[core])
        unknown[:] = False
        del self.windows[window]
        if not self.windows:
            self._begin_next()

    def _averaged(self, output: Floats, core: tuple[slice, slice, slice], kept: NDArray[np.bool_]) -> Floats:
        """The mean of the samples so far, after `output` of the present one is counted where `kept`.

        A known pixel in the cores of several windows counts once, with its last output, as in `raw` of a single sample.
        """
        if self.average == 1:
            return output
        counted = self._counted[core[1:]]
        before = np.where(counted, np.clip(self.filled[core], -1, 1), self._mean[core])
        change = (np.clip(output, -1, 1) - before) / np.float32(self.samples_filled + 1)
        self._mean[core] += np.where(kept, change, 0)
        counted |= kept[0]
        return self._mean[core]

    def _begin_next(self) -> None:
        self.samples_filled += 1
        if self.samples_filled < self.average:
            self.sample += 1
            self.windows, self.unknown = dict.fromkeys(self._all_windows), self.hole[0] > 0
            self._counted[:] = False

    @property
    def counts(self) -> Counts:
        """Windows of one sample, at all scales."""
        return Counter(window.kind for window in self._all_windows)

    def count_calls(self, calls: Mapping[Kind, int]) -> int:
        """Network calls of an empty canvas, with `calls` for a window of each kind."""
        return self.average * total_calls(self.counts, calls)

    def enlarged(self, pixels: Pixels) -> Pixels:
        """Pixels of the current scale, as `raw`, at full scale."""
        return pixels


def signed(pixels: Pixels) -> Floats:
    """Values as float32 in [-1,1]."""
    values = np.asarray(pixels, np.float32)
    return values / np.float32(255) * np.float32(2) - np.float32(1) if pixels.dtype == np.uint8 else values


def rounded(pixels: Floats) -> NDArray[np.uint8]:
    """Values in [-1,1] as uint8, by one rounding, as `rad.images.tensors.round_to_uint8`."""
    return np.rint(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


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
        pixels = rounded(np.clip(resize(np.asarray(pixels, np.float32), (height, width)), -1, 1))
    return Image.fromarray(np.ascontiguousarray(pixels[:, :height, :width].transpose(1, 2, 0)))
