"""Previews of a canvas whose windows are being filled. Loads no torch."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.windows import Window


def preview(canvas: Canvas, estimates: Mapping[Window, NDArray[np.float32]]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Pixels as `Canvas.raw`, with the cores of the estimates; other unknown pixels are mid-grey. The canvas stays as it is.

    `estimates`: (3,S,S) for windows that remain to be filled, in [-1,1].
    """
    pixels = np.asarray(canvas.raw).copy()
    whole = pixels.dtype == np.uint8
    pixels[:, canvas.unknown] = 128 if whole else 0
    for window, estimate in estimates.items():
        top, left, _, _ = window.window
        rows, columns = window.core_slices
        unknown = canvas.unknown[rows, columns]
        part = estimate[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left][:, unknown]
        part = np.nan_to_num(part)  # the run ends with an error of its own
        pixels[:, rows, columns][:, unknown] = np.rint(np.clip(part / 2 + 0.5, 0, 1) * 255) if whole else part
    return pixels
