"""Training images: a LightningDataModule over every source of `rad.images`.

Example:
    data = ImageDataModule("photos/", size=256, batch_size=8)     # batches of images (B,3,H,W) in [-1,1] and their positions
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.data.captions import Captions, read_captions
    from rad.data.framing import ColourJitter, Framing
    from rad.data.module import ImageDataModule

__all__ = ["Captions", "ColourJitter", "Framing", "ImageDataModule", "read_captions"]

__getattr__ = lazy_names(
    __name__, {"captions": "Captions read_captions", "framing": "ColourJitter Framing", "module": "ImageDataModule"}
)
