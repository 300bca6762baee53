"""Images to tensors and back, with one rounding to 8 bits."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3,H,W) float32 in [0, 1]; value v of 8 bits becomes v / 255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)


def to_uint8(image: Tensor) -> Image.Image:
    """(3,H,W) in [0, 1] as an 8-bit RGB image: clamped, times 255, rounded once (ties to even)."""
    return Image.fromarray(round_to_uint8(image.detach()).cpu().permute(1, 2, 0).contiguous().numpy())


def round_to_uint8(image: Tensor) -> Tensor:
    """Values in [0, 1] as uint8, rounded as in `to_uint8`."""
    return image.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)


def blank(image: Tensor, hole: Tensor) -> Image.Image:
    """The image (3,H,W) in [0,1] with its hole (1,H,W) in mid-grey, 0.5."""
    return to_uint8(torch.lerp(image, torch.full_like(image, 0.5), hole))
