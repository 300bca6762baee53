"""OpenCV's two fills and scikit-image's biharmonic one, each on the whole image; they need no weights.

The methods of the same names in `rad sample` work in windows of the model's size, which hides far pixels from them.
"""

import numpy as np
import torch
from torch import Tensor

RADIUS = 3
"""Neighbourhood of OpenCV's fills in pixels, as in its tutorial."""


class Classical:
    """`kind`: "opencv-telea", "opencv-navier-stokes" or "biharmonic". Raises ValueError for another."""

    calls = 0

    def __init__(self, kind: str) -> None:
        if kind not in ("opencv-telea", "opencv-navier-stokes", "biharmonic"):
            raise ValueError(f"kind is {kind}; allowed are opencv-telea, opencv-navier-stokes and biharmonic")
        self.kind = kind

    def __call__(self, image: Tensor, hole: Tensor, generator: torch.Generator) -> Tensor:
        """The filled image (1,3,H,W) in [0,1]; hole (1,1,H,W), 1 = fill. No randomness."""
        values, fill = image[0].permute(1, 2, 0).contiguous().numpy(), hole[0, 0].numpy() > 0
        if self.kind == "biharmonic":
            from skimage.restoration import inpaint_biharmonic

            filled = inpaint_biharmonic(values.astype(np.float64), fill, channel_axis=-1)
        else:
            import cv2

            cv2.setNumThreads(1)
            flag = cv2.INPAINT_TELEA if self.kind == "opencv-telea" else cv2.INPAINT_NS
            pixels = (255 * values).round().astype(np.uint8)
            filled = cv2.inpaint(pixels, fill.astype(np.uint8), RADIUS, flag) / 255
        return torch.from_numpy(filled).float().permute(2, 0, 1)[None]
