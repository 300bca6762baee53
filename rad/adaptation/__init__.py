"""Test-time adaptation: RAD's network is trained on the known pixels of the image that is to be filled.

Example:
    inpainter = Inpainter.from_pretrained("checkpoints/photos")
    adapted = adapt(inpainter, "photo.png", "mask.png", steps=200)   # for this image; `inpainter` stays as it is
    result = adapted.inpainter("photo.png", "mask.png", size_policy="crop")
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.adaptation.run import Adapted, adapt
    from rad.adaptation.settings import CROPS

__all__ = ["CROPS", "Adapted", "adapt"]

__getattr__ = lazy_names(__name__, {"run": "Adapted adapt", "settings": "CROPS"})
