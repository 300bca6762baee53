"""RAD: region-aware diffusion for image inpainting, and the methods it is compared with, on PyTorch Lightning.

Example:
    inpainter = rad.Inpainter.from_pretrained("checkpoints/rad-nature32")
    inpainter("photo.png", "mask.png").images[0].save("filled.png")   # white in the mask = fill
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.inpainting.inpainter import Inpainter

__version__ = "0.1.0"

__all__ = ["Inpainter", "__version__"]

__getattr__ = lazy_names(__name__, {"inpainting": "Inpainter"})
