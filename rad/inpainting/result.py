"""The result of an inpainter. Loads no torch."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Inpainted:
    """Filled images in the order of the input: sample j of image i has index i * num_samples + j.

    Args:
        images: in the input's size, bit-identical to it where the hole is 0. `info` keeps the colour profile for Pillow.
        raw: the images before known pixels are restored.
        nfe, vjp: forward and backward passes of the network, over all windows; seconds: wall time of the sampling loops.
        peak_memory: in bytes, see `rad.inpainting.memory.peak_memory`.
    """

    images: list[Image.Image]
    raw: list[Image.Image]
    nfe: int
    vjp: int
    seconds: float
    peak_memory: int


class Cancelled(Exception):
    """Raise it in `on_step` to stop a run."""


@dataclass(frozen=True)
class Progress:
    """State of a run after a network call, the argument of `on_step`.

    Args:
        done, planned: network calls, counted per window; a line search may exceed `planned`.
        previews: returns the estimates of the clean images in this batch, composited into the images as far as they are filled.
            Costs nothing until it is called; valid during the callback only.
    """

    done: int
    planned: int
    previews: Callable[[], list[Image.Image]]
