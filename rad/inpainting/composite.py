"""An image on its way from what was given to what is written: only what a model fills is held as floats."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rad.images.codecs import round_to_uint8
from rad.inpainting.windows import Window


class Canvas:
    """One sample of an image.

    A large image costs 4 bytes a pixel and what its windows hold: `filled` is memory that the system provides where something
    is written.

    Args:
        name, sample: the identity of its noise.
        pixels: (3,H,W), shared by the samples of an image and not changed: its 8 bits, or float in [-1,1] once resized.
        hole: (1,H,W) in [0,1], shared as well.
        windows: what is to be filled.
    """

    def __init__(self, name: str, sample: int, pixels: Tensor, hole: Tensor, windows: Sequence[Window]) -> None:
        self.name, self.sample, self.pixels, self.hole = name, sample, pixels, hole
        self.windows = dict.fromkeys(windows)
        """Those that are left, in their order."""
        self.unknown = hole[0].numpy() > 0
        """(H,W), what is still to be filled."""
        self.filled = torch.from_numpy(np.zeros(tuple(pixels.shape), np.float32))
        """(3,H,W) in [-1,1], where the hole was and is no longer unknown."""
        self.raw = pixels.clone()
        """As `pixels`, with all that the method made of it, known pixels in the core of a window included."""

    def job_name(self, window: Window) -> str:
        """An identity for its noise; an image of the model's own size is known by its name alone."""
        top, left, bottom, right = window.window
        whole = self.hole.shape[1:] == (bottom - top, right - left)
        return self.name if whole else f"{self.name}@{top},{left}"

    def cut(self, window: Window) -> tuple[Tensor, Tensor]:
        """What the model sees: pixels (3,S,S) in [-1,1] with what was filled before, and the hole (1,S,S) that is left."""
        area = (slice(None), *window.slices)
        hole, unknown = self.hole[area], torch.from_numpy(self.unknown[window.slices])
        pixels = torch.where((hole > 0) & ~unknown, self.filled[area], _signed(self.pixels[area]))
        return pixels, hole * unknown

    def paste(self, window: Window, made: Tensor) -> None:
        """Take the core of what the model made, (3,S,S) in [-1,1]."""
        top, left, _, _ = window.window
        rows, columns = window.core_slices
        core = (slice(None), rows, columns)
        made = made[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        unknown = torch.from_numpy(self.unknown[rows, columns])
        self.filled[core] = torch.where(unknown, made, self.filled[core])
        raw = made if self.raw.is_floating_point() else round_to_uint8(made / 2 + 0.5)
        self.raw[core] = torch.where(unknown | (self.hole[core] == 0), raw, self.raw[core])
        unknown[:] = False
        del self.windows[window]


def _signed(pixels: Tensor) -> Tensor:
    """Pixels in [-1,1], from that or from 8 bits."""
    return pixels if pixels.is_floating_point() else pixels.float() / 255 * 2 - 1
