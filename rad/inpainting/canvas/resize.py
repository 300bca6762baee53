"""Images and holes of other sizes than the model's: adaptive pooling, and bicubic resizing. Loads no torch.

Cell i of n cells along a side of N pixels has the pixels from floor(i N / n) up to ceil((i + 1) N / n), as in PyTorch.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]
"""float32 throughout; NumPy's annotations of arithmetic lose the width."""


def mean_pool(image: Floats, size: tuple[int, int]) -> Floats:
    """(C,H,W) to `size` (height, width): the mean of each cell. Equal to torch's adaptive_avg_pool2d, bit for bit."""
    (tops, heights), (lefts, widths) = (_cells(*pair) for pair in zip(image.shape[1:], size, strict=True))
    total = np.zeros((len(image), *size), np.float32)
    for down in range(heights.max()):  # float32 sums, row by row, as in PyTorch
        rows = np.minimum(tops + down, image.shape[1] - 1)
        for right in range(widths.max()):
            columns = np.minimum(lefts + right, image.shape[2] - 1)
            inside = (down < heights)[:, None] & (right < widths)
            total += np.where(inside, image[:, rows[:, None], columns], np.float32(0))
    return total / heights[:, None].astype(np.float32) / widths.astype(np.float32)


def max_pool(image: Floats, size: tuple[int, int]) -> Floats:
    """(C,H,W) to `size` (height, width): the maximum of each cell."""
    (tops, heights), (lefts, widths) = (_cells(*pair) for pair in zip(image.shape[1:], size, strict=True))
    rows = np.stack([image[:, top : top + count].max(1) for top, count in zip(tops, heights, strict=True)], 1)
    return np.stack([rows[:, :, left : left + count].max(2) for left, count in zip(lefts, widths, strict=True)], 2)


def resize_bicubic(image: Floats, size: tuple[int, int]) -> Floats:
    """(C,H,W) to `size` (height, width), bicubic with antialiasing, as Pillow and as torch's interpolate to rounding."""
    height, width = size
    return np.stack(
        [np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)) for channel in image]
    )


def _cells(length: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and number of pixels of each cell along a side."""
    cells = np.arange(count)
    starts = cells * length // count
    return starts, -(-(cells + 1) * length // count) - starts
