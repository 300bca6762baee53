"""The output of a pipeline: images as PIL images, an array or a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rad.arguments import describe
from rad.inpainting.arrays import ImageLike, to_image

OutputType = Literal["pil", "np", "pt"]
Images = list[Image.Image] | NDArray[np.float32] | Tensor
"""A list of PIL images; "np": (N,H,W,3) float32 in [0,1]; "pt": (N,3,H,W) float32 in [0,1] on the CPU."""


@dataclass
class RADInpaintPipelineOutput(BaseOutput):
    """Filled images: sample j of image i has index i * num_images_per_prompt + j.

    Args:
        images: see `Images`, for output_type "pil", "np" and "pt".
        nfe: forward passes of the network, over all windows; seconds: wall time of the sampling loops.
    """

    images: Images
    nfe: int
    seconds: float


def check_output(output_type: OutputType, images: Sequence[ImageLike]) -> None:
    """Raise ValueError for an unknown type, or images of several sizes that are to form an array."""
    if output_type not in get_args(OutputType):
        raise ValueError(f"output_type is {describe(output_type)}; allowed are {', '.join(get_args(OutputType))}")
    sizes = {to_image(image).size for image in images} if output_type != "pil" and len(images) > 1 else set()
    if len(sizes) > 1:
        raise ValueError(f"output_type {output_type!r} needs images of one size, got {sorted(sizes)}: use 'pil'")


def converted(images: list[Image.Image], output_type: OutputType) -> Images:
    """PIL images in the form of `output_type`."""
    if output_type == "pil":
        return images
    pixels = np.divide(np.stack([np.asarray(image) for image in images]), 255, dtype=np.float32)
    return pixels if output_type == "np" else torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
