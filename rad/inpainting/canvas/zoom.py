"""Zoom: one region around all holes of an image, scaled to the model's size ("only masked" in other programs). Loads no torch."""

import math

import numpy as np

from rad.inpainting.canvas.resize import Floats, mean_pool, resize_bicubic
from rad.inpainting.canvas.windows import Box


def zoom_region(hole: Floats, size: tuple[int, int], margin: int | None = None) -> Box | None:
    """The smallest region of the model's aspect ratio with all holes and their margin; None without a hole.

    The margin ends at the image's edges, and the region is shifted into the image. One that is longer than a side of the image
    ends beyond its bottom or right edge.

    Args:
        hole: (1,H,W), above 0 where to fill; size: (height, width) of the model.
        margin: in pixels of the image; None: half the longer side of the holes' box, at least an eighth of the model's size.
    """
    rows, columns = hole[0].any(axis=1).nonzero()[0], hole[0].any(axis=0).nonzero()[0]
    if len(rows) == 0:
        return None
    spans = [(int(line[0]), int(line[-1]) + 1) for line in (rows, columns)]
    if margin is None:
        margin = max(math.ceil(max(end - start for start, end in spans) / 2), max(size) // 8)
    limits = hole.shape[1:]
    spans = [
        (max(0, start - margin), min(limit, end + margin)) for (start, end), limit in zip(spans, limits, strict=True)
    ]
    scale = max((end - start) / side for (start, end), side in zip(spans, size, strict=True))
    height, width = (math.ceil(scale * side) for side in size)
    top, left = (
        min(max(0, (start + end - length) // 2), max(0, limit - length))
        for (start, end), length, limit in zip(spans, (height, width), limits, strict=True)
    )
    return top, left, top + height, left + width


def zoomed(pixels: Floats, hole: Floats, size: tuple[int, int]) -> Floats:
    """The pixels of a region in the model's size. None outside the reduced or enlarged hole depends on the content of the hole.

    Reduced pixels are means, as of "resize". Enlarged pixels are bicubic; there the hole continues its nearest known pixel, as a
    resize continues the edge of an image.

    Args:
        pixels: (3,h,w) in [-1,1]; hole: (1,h,w) in [0,1]; size: (height, width) of the result, with the aspect ratio of both.
    """
    if pixels.shape[1:] == size:
        return pixels
    if pixels.shape[1] > size[0]:
        return mean_pool(pixels, size)
    return np.clip(resize_bicubic(_continued(pixels, hole[0] == 1), size), -1, 1)


def _continued(pixels: Floats, unknown: np.ndarray) -> Floats:
    """Pixels whose unknown part (h,w) has the value of the nearest known pixel; zeros without a known pixel."""
    from scipy.ndimage import distance_transform_edt

    if unknown.all():
        return np.zeros_like(pixels)
    nearest = np.asarray(distance_transform_edt(unknown, return_distances=False, return_indices=True))
    return pixels[:, nearest[0], nearest[1]]
