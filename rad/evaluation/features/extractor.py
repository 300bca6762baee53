"""The interface of feature networks, and the checks and hashes that they share."""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from hashlib import sha256
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Resize = Literal["bilinear", "bicubic"]

DAMAGE = (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError)
"""Exceptions from reading a damaged or missing file of weights."""


class Extractor(ABC):
    """A network that compares images (B,3,H,W), float in [0,1], of any size; without gradients, in evaluation mode.

    Outputs lie on the device of the images and depend on the rest of the batch only by rounding.

    Attributes:
        provenance: "extractor", "weights" (first 16 hex digits of their SHA-256), "layers", "resize", "range", "library".
        distance_name: name of its perceptual distance; None if it has none.
        frechet_name: name of its Fréchet distance; None if it has none.
        kernel_name: name of its kernel distance; None if it has none.
    """

    provenance: dict[str, str]
    distance_name: str | None = None
    frechet_name: str | None = None
    kernel_name: str | None = None

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B,D) float32. Raises ValueError for images outside [0,1], and if the network has no features."""

    @abstractmethod
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """(B) float32: symmetric perceptual distance, 0 for equal images. Raises ValueError as `features`."""


def check_images(images: Tensor) -> Tensor:
    """Images (B,3,H,W) as float32, clamped to [0,1]. Raises ValueError if they are no such images."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} and {images.dtype}: give (B,3,H,W), floats in [0, 1]")
    low, high = images.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # rounding may exceed the range; NaN fails too
        raise ValueError(f"images with values from {low:.4g} to {high:.4g}: give them in [0, 1]")
    return images.detach().float().clamp(0, 1)


def check_pair(first: Tensor, second: Tensor) -> None:
    """Raise ValueError for two batches of different shapes."""
    if first.shape != second.shape:
        raise ValueError(f"images of shapes {tuple(first.shape)} and {tuple(second.shape)}: give pairs of equal size")


def resize(images: Tensor, size: tuple[int, int] | None, method: Resize) -> Tensor:
    """Images in `size` (height, width) with antialiasing, clamped to [0,1]; None keeps the size."""
    if size is None or tuple(images.shape[-2:]) == tuple(size):
        return images
    return functional.interpolate(images, size, mode=method, align_corners=False, antialias=True).clamp(0, 1)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 of names, dtypes, shapes and bytes, sorted by name."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
