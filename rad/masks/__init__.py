"""Masks: the call that draws holes, (B,1,H,W) float32 in {0,1}. White / 1 = fill."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class MaskGenerator(ABC):
    """Random holes, one `torch.Generator` an image.

    A base class and not a `typing.Protocol`: jsonargparse takes a protocol whose only method is `__call__`
    for a factory of tensors, and then refuses `class_path: rad.masks.perlin.Perlin` in a YAML file.
    """

    @abstractmethod
    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Draw one hole for each generator.

        The hole of an image depends on its own generator only: a batch equals its images drawn one by one,
        bit for bit.

        Returns (B,1,height,width) float32 in {0,1}, 1 = fill, B = len(generators) >= 1, on the generators'
        device.
        """


from rad.masks.mixture import Mixture, Part  # noqa: E402  (needs MaskGenerator)

__all__ = ["MaskGenerator", "Mixture", "Part"]
