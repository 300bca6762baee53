"""The result of an inpainter. Loads no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from rad.arguments import describe


@dataclass(frozen=True)
class Inpainted:
    """Filled images in the order of the input: sample j of image i has index i * num_samples + j.

    Args:
        images: in the size of the input with its extension, and bit-identical to it where the hole is 0. `info` keeps the colour
            profile for Pillow.
        raw: the images before known pixels are restored.
        nfe, vjp: forward and backward passes of the network, over all windows; seconds: wall time of the sampling loops, with
            the callbacks.
        training: forward and backward passes of an adaptation of `rad sample`, whose time is in `seconds`.
        peak_memory: in bytes, of the whole process, see `rad.inpainting.memory.peak_memory`. Calls in other threads add to it,
            and each call starts its measurement again.
    """

    images: list[Image.Image]
    raw: list[Image.Image]
    nfe: int
    vjp: int
    seconds: float
    peak_memory: int
    training: int = 0


class Cancelled(Exception):
    """Raise it in `on_step` to stop a run at once; the inpainter stays usable. Other exceptions do the same."""


@dataclass(frozen=True)
class Progress:
    """State of a run after a network call, the argument of `on_step`. Methods without calls report once for each batch.

    Args:
        done, planned: network calls, counted per window. `done` never decreases: it waits while a batch is repeated because
            memory ran out. A line search may exceed `planned`.
        draw: returns the previews of some of `indices`, see `previews`.
        indices: of the images of this batch in `Inpainted.images`.
    """

    done: int
    planned: int
    draw: Callable[[Sequence[int]], list[Image.Image]]
    indices: tuple[int, ...] = ()

    def previews(self) -> list[Image.Image]:
        """The images of this batch, in the order of `indices` and the size of the results.

        Known pixels are exact, filled windows are done, the windows of the batch show the network's estimate of the clean image,
        and the rest is mid-grey. Costs nothing until it is called, and does not affect the results. Valid during the callback
        only.
        """
        return self.draw(self.indices)

    def preview(self, index: int) -> Image.Image:
        """One of `previews`, at the cost of one. Raises ValueError for an index that is not in `indices`."""
        if index not in self.indices:
            raise ValueError(f"index is {describe(index)}; allowed are {', '.join(map(str, self.indices))}")
        return self.draw([index])[0]
