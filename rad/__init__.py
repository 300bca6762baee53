"""RAD: region-aware diffusion for image inpainting, and the methods it is compared with, on PyTorch Lightning.

Importing the package is light: the names below load what they need on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rad.inpainting.inpainter import Inpainter as Inpainter

_LAZY = {"Inpainter": "rad.inpainting.inpainter"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rad' has no attribute {name!r}")
