"""Random crops of one image with random holes: the training data of its adaptation."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rad.inpainting.canvas.composite import pad
from rad.masks.shapes import photos
from rad.models.latent_mask import prefill
from rad.rng import Part, generator

LEAST_KNOWN = 0.5
"""Smallest share of known pixels of a crop."""


@dataclass(frozen=True)
class Batch:
    """Crops of a training step; each array of B crops of h x w pixels.

    Args:
        x0: (B,3,h,w) in [-1,1]; where the image is not known, a smooth continuation of the known pixels of the crop.
        hole: (B,1,h,w), 1 where noise is added: the random hole and the pixels that are not known.
        counted: (B,1,h,w), 1 where the loss counts: the known pixels in the random hole.
        level: (B,) float64 in [0,1), uniform: the timestep as a share of all.
        eps: (B,3,h,w), standard normal noise.
    """

    x0: Tensor
    hole: Tensor
    counted: Tensor
    level: Tensor
    eps: Tensor


class Crops:
    """Crops of an image at its own scale, each flipped half the time. All draws are keyed by (seed, name, step).

    Args:
        pixels: (3,H,W) uint8.
        hole: (1,H,W) in [0,1]. Pixels above 0 are not known, and their values have no effect. A smaller image than a crop
            is padded with such pixels.
        size: (height, width) of a crop.

    Raises ValueError as `find_places`.
    """

    def __init__(
        self, pixels: NDArray[np.uint8], hole: NDArray[np.float32], size: tuple[int, int], *, seed: int, name: Part
    ) -> None:
        self.size, self.seed, self.name = size, seed, name
        self.places = find_places(hole, size)
        self.pixels, self.unknown = pad(pixels, size, 0), pad(hole, size, 1.0) > 0

    def draw(self, step: int, count: int) -> Batch:
        """The crops of a step, on the CPU."""
        (height, width), source = self.size, generator(self.seed, "adapt", self.name, step)
        keys = [generator(self.seed, "adapt hole", self.name, step, number) for number in range(count)]
        chosen = torch.randint(len(self.places), (count,), generator=source, device="cpu").numpy()
        flips = torch.rand(count, generator=source, dtype=torch.float64, device="cpu") < 0.5
        level = torch.rand(count, generator=source, dtype=torch.float64, device="cpu")
        eps = torch.randn((count, 3, height, width), generator=source, dtype=torch.float32, device="cpu")
        areas = [np.s_[:, top : top + height, left : left + width] for top, left in self.places[chosen]]
        pixels = torch.from_numpy(np.stack([self.pixels[area] for area in areas])).to(torch.float32) / 127.5 - 1
        unknown = torch.from_numpy(np.stack([self.unknown[area] for area in areas])).to(torch.float32)
        flip = flips[:, None, None, None]
        pixels, unknown = (torch.where(flip, part.flip(3), part) for part in (pixels, unknown))
        hole = photos()(keys, height, width)
        x0 = prefill(pixels, unknown, "smooth")
        return Batch(x0, torch.maximum(hole, unknown), hole * (1 - unknown), level, eps)


def find_places(hole: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.int64]:
    """(N,2): top and left of all crops of `size` (height, width) that have enough known pixels, for a hole (1,H,W).

    Raises ValueError without any: the message says how much is known, and how much is needed.
    """
    height, width = size
    known = pad(hole, size, 1.0)[0] == 0
    sums = np.pad(known.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    counts = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    places = np.argwhere(counts >= LEAST_KNOWN * height * width)
    if len(places) == 0:
        most = int(100 * counts.max() / (height * width))
        raise ValueError(
            f"too little of the image is known to adapt to it: a window of {width}x{height} pixels with at least "
            f"{LEAST_KNOWN:.0%} known pixels is needed, and the best has {most}%: leave out the adaptation"
        )
    return places
