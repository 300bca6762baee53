"""Images and masks in memory or in bytes, as the types that the inpainter computes with."""

import os
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rad.arguments import describe
from rad.images.codecs import open_image, to_rgb
from rad.images.tensors import to_uint8
from rad.masks.base import MaskGenerator

Array = np.ndarray | Tensor
ImageLike = Image.Image | Array | str | os.PathLike[str] | bytes | BinaryIO
MaskLike = ImageLike | MaskGenerator

CHANNELS = (1, 3, 4)
"""Grey, RGB, RGBA."""


@overload
def to_list(value: object, what: Literal["image"]) -> Sequence[ImageLike]: ...
@overload
def to_list(value: object, what: Literal["mask"]) -> Sequence[MaskLike]: ...
def to_list(value: object, what: Literal["image", "mask"]) -> Sequence[MaskLike]:
    """The entries of a list, tuple or batch; a single image or mask as a list of one. Raises ValueError for other types."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(value, np.ndarray | Tensor):
        entries = list(value) if _is_batch(value, what) else [value]
    if not entries:
        raise ValueError(f"{what} is empty ({describe(value)}); give at least one")
    return [_entry(entry, what) for entry in entries]


def to_image(image: ImageLike) -> Image.Image:
    """Any image in RGB, alpha dropped.

    Args:
        image: PIL image, path, the bytes of a file, or pixels, uint8 or float in [0,1]: arrays (H,W), (H,W,C) or (C,H,W) and
            tensors (H,W) or (C,H,W), of C = 1, 3 or 4 channels. (H,W,C) wins where both fit.

    Raises ValueError for other shapes, dtypes and ranges, and for files as `rad.images.codecs.open_image`.
    """
    if isinstance(image, np.ndarray | Tensor):
        return _image_of_array(image)
    if isinstance(image, bytes):
        return open_image(BytesIO(image), name=f"in {len(image)} bytes")
    if not isinstance(image, Image.Image):
        return open_image(os.fspath(image) if isinstance(image, os.PathLike) else image)
    if image.mode[0] in "IF":
        raise ValueError(
            f"image has mode {image.mode!r}, whose range is unknown: give its file, or convert it to 'RGB'"
        )
    return to_rgb(image)


def to_mask(mask: Array) -> Tensor | Image.Image:
    """A mask in memory as a hole (1,H,W) float32 in [0,1]; grey or coloured 8-bit values as an image for `read_mask`.

    Args:
        mask: (H,W), (H,W,1) or (1,H,W): bool; integers of 0 and 1, or 0 and 255; float in [0,1]. An array may also be
            (H,W,3) or (H,W,4), uint8 or grey.

    Raises ValueError for other shapes, dtypes and values.
    """
    values = _values(mask, "mask")
    colours = values.ndim == 3 and values.shape[2] in CHANNELS[1:] and isinstance(mask, np.ndarray)
    if (
        colours and values.dtype != np.uint8 and values.shape[2] == 3 and (values == values[..., :1]).all()
    ):  # grey as RGB
        values, colours = values[..., 0], False
    if values.ndim == 3 and not colours:
        channel_first = values.shape[0] == 1 and (isinstance(mask, Tensor) or values.shape[2] != 1)
        values = values[0] if channel_first else values[..., 0] if values.shape[2] == 1 else values
    kind = values.dtype.kind
    if 0 in values.shape or not (values.ndim == 2 or colours) or kind not in "buif":
        raise ValueError(f"mask is {describe(mask)}; give (H,W) of bool, 0 and 1, 0 and 255, or float in [0,1]")
    if not colours and kind in "bui":
        top = 1 if kind == "b" or values.max() <= 1 else 255
        if bool(np.isin(values, (0, top)).all()):
            return torch.from_numpy((values == top).astype(np.float32))[None]
    if values.dtype == np.uint8:
        return Image.fromarray(values)
    if colours:
        raise ValueError(f"mask is {describe(mask)} of several colours: give one channel (H,W), or uint8")
    if kind != "f":
        raise ValueError(f"mask is {describe(mask)} with other values than 0 and 1, or 0 and 255: give uint8 or bool")
    _check_range(values, "mask", "give 1 where to fill and 0 elsewhere")
    return torch.from_numpy(values.astype(np.float32))[None]


def _entry(entry: object, what: str) -> MaskLike:
    if isinstance(entry, Image.Image | np.ndarray | Tensor | str | os.PathLike | bytes):
        return entry
    if what == "mask" and isinstance(entry, MaskGenerator):
        return entry
    read = getattr(entry, "read", None)
    content = read() if callable(read) else None  # once: a mask may serve several images
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        raise ValueError(f"{what} is a file opened as text; open it with mode 'rb'")
    raise ValueError(f"{what} is {describe(entry)}; give a PIL image, a file, an array, a tensor, or a list of these")


def _is_batch(values: Array, what: str) -> bool:
    if what == "image" or values.ndim != 3:
        return values.ndim == 4
    return values.shape[0] > 1 and (isinstance(values, Tensor) or values.shape[2] not in CHANNELS)


def _values(values: Array, what: str) -> np.ndarray:
    """A NumPy copy that owns its memory, in the machine's byte order."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta or values.is_quantized:
            raise ValueError(f"{what} is a tensor of layout {values.layout} on {values.device}; give a dense one")
        values = values.detach().cpu()
        values = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    kind = np.dtype(np.float64) if values.dtype.kind == "f" and values.dtype.itemsize > 8 else values.dtype
    return np.array(values, dtype=kind.newbyteorder("="), order="C", subok=False)


def _image_of_array(image: Array) -> Image.Image:
    values = _values(image, "image")
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3 and (isinstance(image, Tensor) or values.shape[2] not in CHANNELS):
        values = np.ascontiguousarray(values.transpose(1, 2, 0))
    if values.ndim != 3 or values.shape[2] not in CHANNELS or 0 in values.shape:
        shape = "(3,H,W), as of tensor.permute(2, 0, 1)" if isinstance(image, Tensor) else "(H,W,3) or (H,W)"
        raise ValueError(f"image is {describe(image)}; expected {shape}, uint8 or float in [0,1]")
    if values.dtype.kind == "f":
        _check_range(values, "image", "scale it to [0,1], or give uint8 for 0 to 255")
        return to_uint8(torch.from_numpy(values[..., :3]).permute(2, 0, 1).expand(3, -1, -1))
    if values.dtype != np.uint8:
        raise ValueError(f"image is {describe(image)}; expected uint8, or float in [0,1]")
    if values.max() == 1:
        warnings.warn("image is uint8 of 0 and 1, nearly black; values in [0,1] have to be float", stacklevel=6)
    return to_rgb(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values))


def _check_range(values: np.ndarray, what: str, advice: str) -> None:
    if not bool(((values >= 0) & (values <= 1)).all()):
        low, high = values.min(), values.max()
        raise ValueError(f"{what} has values outside [0,1], from {low:.3g} to {high:.3g}: {advice}")
