"""From canvases to images: results, and previews while windows are being filled. Loads no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rad.inpainting.canvas.composite import Canvas, Floats, Pixels, composite, restore_size
from rad.inpainting.canvas.resize import resize_bicubic
from rad.inpainting.canvas.windows import Box, Window


def preview(canvas: Canvas, estimates: Mapping[Window, Floats]) -> Pixels:
    """Pixels at full scale, as `Canvas.raw`, with the cores of the estimates; other unknown pixels are mid-grey.

    From the second sample of a mean on, the other unknown pixels show the mean so far. The canvas stays as it is.

    `estimates`: (3,S,S) for windows that remain to be filled, in [-1,1].
    """
    pixels = np.asarray(canvas.raw).copy()
    whole = pixels.dtype == np.uint8
    for window in () if canvas.samples_filled else canvas.windows:  # their cores hold all unknown pixels
        rows, columns = window.core_slices
        pixels[:, rows, columns][:, canvas.unknown[rows, columns]] = 128 if whole else 0
    for window, estimate in estimates.items():
        top, left, _, _ = window.window
        rows, columns = window.core_slices
        unknown = canvas.unknown[rows, columns]
        part = estimate[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left][:, unknown]
        part = np.nan_to_num(part)  # the run ends with an error of its own
        pixels[:, rows, columns][:, unknown] = np.rint(np.clip(part / 2 + 0.5, 0, 1) * 255) if whole else part
    return canvas.enlarged(pixels)


@dataclass(frozen=True)
class Finisher:
    """From the pixels of canvases to images.

    Args:
        images, holes: RGB, and (1,H,W), of each image; samples: canvases of each image; feather: see `composite`.
        resize: see `restore_size`; regions: see `Layout.region`, of each image.
    """

    images: Sequence[Image.Image]
    holes: Sequence[Floats]
    samples: int
    feather: int
    regions: Sequence[Box | None]
    resize: Callable[[Floats, tuple[int, int]], Floats] = resize_bicubic

    def finish(self, canvases: list[Canvas]) -> tuple[list[Image.Image], list[Image.Image]]:
        """Final and raw images of all canvases, whose memory is freed one by one."""
        finished, raw = [], []
        for number in range(len(canvases)):
            composed, filled = self._composed(number, canvases.pop(0).raw)
            raw.append(filled)
            finished.append(composed)
        return finished, raw

    def preview(self, number: int, pixels: Pixels) -> Image.Image:
        """The image of canvas `number` with other `pixels`, as `Canvas.raw`."""
        return self._composed(number, pixels)[0]

    def _composed(self, number: int, pixels: Pixels) -> tuple[Image.Image, Image.Image]:
        original, hole = self.images[number // self.samples], self.holes[number // self.samples]
        region = self.regions[number // self.samples]
        if region is None:
            filled = restore_size(pixels, original.size, resize=self.resize)
        else:
            top, left, bottom, right = region
            filled = original.copy()
            filled.paste(restore_size(pixels, (right - left, bottom - top), resize=self.resize), (left, top))
        filled.info = dict(original.info)
        return composite(original, filled, hole, feather=self.feather), filled
