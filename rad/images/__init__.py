"""Image files and sources: folders, zip, tar, LMDB and data sets of the hub.

Example:
    images = list_images("photos.tar")                 # a sequence of `ImageFile`
    image = images[0].open()                             # PIL.Image, RGB
    pixels = to_tensor(image)                            # (3,H,W) float32 in [0,1]
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.images.atomic import replacing, replacing_folder, write_text
    from rad.images.codecs import open_image, to_rgb
    from rad.images.formats import open_file, read_file
    from rad.images.grid import contact_sheet
    from rad.images.sources import ImageFile, is_source, list_images
    from rad.images.tensors import round_to_uint8, to_tensor, to_uint8

__all__ = [
    "ImageFile", "contact_sheet", "is_source", "list_images", "open_file", "open_image", "read_file",
    "replacing", "replacing_folder", "round_to_uint8", "to_rgb", "to_tensor", "to_uint8", "write_text",
]  # fmt: skip

__getattr__ = lazy_names(
    __name__,
    {
        "atomic": "replacing replacing_folder write_text",
        "codecs": "open_image to_rgb",
        "formats": "open_file read_file",
        "grid": "contact_sheet",
        "sources": "ImageFile is_source list_images",
        "tensors": "round_to_uint8 to_tensor to_uint8",
    },
)
