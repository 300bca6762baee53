"""Inpainting pipeline for images of any size.

Example:
    inpainter = Inpainter.from_pretrained("checkpoints/rad-nature32")
    result = inpainter("photo.png", "mask.png", num_samples=2)   # white in the mask = fill
    result.images[0].save("filled.png")
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.inpainting.canvas.outpaint import Extension
    from rad.inpainting.canvas.pyramid import Pyramid
    from rad.inpainting.canvas.windows import Window, plan_windows
    from rad.inpainting.inpainter import Inpainter
    from rad.inpainting.result import Cancelled, Inpainted, Progress

__all__ = [
    "Cancelled",
    "Extension",
    "Inpainted",
    "Inpainter",
    "Progress",
    "Pyramid",
    "Window",
    "plan_windows",
]

__getattr__ = lazy_names(
    __name__,
    {
        "inpainter": "Inpainter",
        "result": "Cancelled Inpainted Progress",
        "canvas.outpaint": "Extension",
        "canvas.pyramid": "Pyramid",
        "canvas.windows": "Window plan_windows",
    },
)
