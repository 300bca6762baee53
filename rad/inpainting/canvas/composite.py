"""Images during inpainting: 8-bit inputs of any size, filled windows in float, and the final composite."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rad.arguments import describe, integer
from rad.images.tensors import round_to_uint8, to_tensor, to_uint8
from rad.inpainting.canvas.windows import Window, plan_windows
from rad.models.loaded_model import PLAIN, Condition

SizePolicy = Literal["error", "resize", "crop"]


class Canvas:
    """One sample of an image, filled window by window. Memory: 4 bytes per pixel, and the filled windows in float.

    Args:
        name, sample: identity of the noise; windows: to fill; condition: guidance, with images in the size of the canvas.
        pixels: (3,H,W), uint8, or float in [-1,1] if resized; shared by the samples of an image and never changed.
        hole: (1,H,W) in [0,1], shared too.

    Attributes:
        windows: the remaining windows, in their order.
        unknown: (H,W), pixels still to fill.
        filled: (3,H,W) in [-1,1], valid in the filled part of the hole; allocated lazily.
        raw: `pixels` with the output of each window's core, known pixels included.
    """

    def __init__(
        self,
        name: int | str,
        sample: int,
        pixels: Tensor,
        hole: Tensor,
        windows: Sequence[Window],
        condition: Condition = PLAIN,
    ) -> None:
        self.name, self.sample, self.pixels, self.hole, self.condition = name, sample, pixels, hole, condition
        self.windows = dict.fromkeys(windows)
        self.unknown = hole[0].numpy() > 0
        self.filled = torch.from_numpy(np.zeros(tuple(pixels.shape), np.float32))
        self.raw = pixels.clone()

    def job_name(self, window: Window) -> int | str:
        """Identity of a window's noise; the name alone for a window that covers the image."""
        top, left, bottom, right = window.window
        whole = self.hole.shape[1:] == (bottom - top, right - left)
        return self.name if whole else f"{self.name}@{top},{left}"

    def cut(self, window: Window) -> tuple[Tensor, Tensor]:
        """The model's input: pixels (3,S,S) in [-1,1] with earlier fills, and the remaining hole (1,S,S)."""
        area = (slice(None), *window.slices)
        hole, unknown = self.hole[area], torch.from_numpy(self.unknown[window.slices])
        pixels = torch.where((hole > 0) & ~unknown, self.filled[area], _signed(self.pixels[area]))
        return pixels, hole * unknown

    def paste(self, window: Window, output: Tensor) -> None:
        """Keep the core of the model's output (3,S,S) in [-1,1]."""
        top, left, _, _ = window.window
        rows, columns = window.core_slices
        core = (slice(None), rows, columns)
        output = output[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        unknown = torch.from_numpy(self.unknown[rows, columns])
        self.filled[core] = torch.where(unknown, output, self.filled[core])
        raw = output if self.raw.is_floating_point() else round_to_uint8(output / 2 + 0.5)
        self.raw[core] = torch.where(unknown | (self.hole[core] == 0), raw, self.raw[core])
        unknown[:] = False
        del self.windows[window]


def _signed(pixels: Tensor) -> Tensor:
    return pixels if pixels.is_floating_point() else pixels.float() / 255 * 2 - 1


@dataclass(frozen=True)
class Layout:
    """Maps images to a model of `size` (height, width) in pixels.

    Args:
        policy: for images of another size: "error"; "resize" and back; "crop" windows around each hole.
        margin: context around a window's core in pixels, for "crop"; None: an eighth of the model's size.

    Raises ValueError for an unknown policy or a margin outside its range.
    """

    size: tuple[int, int]
    policy: SizePolicy = "error"
    margin: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(SizePolicy):
            raise ValueError(f"size_policy is {describe(self.policy)}; allowed are {', '.join(get_args(SizePolicy))}")
        if self.margin is not None:
            integer("margin", self.margin, low=0, high=2**16)
        height, width = self.size
        if self.policy == "crop" and height != width:
            raise ValueError(f"size_policy 'crop' needs a square model; this one is {width}x{height}: use 'resize'")

    def plan(self, hole: Tensor) -> tuple[Tensor, list[Window]]:
        """The hole (1,H,W) in working size, and its windows. Raises ValueError for another size with "error"."""
        height, width = self.size
        if self.policy == "crop":
            margin = height // 8 if self.margin is None else self.margin
            padded = pad(hole, self.size, 1.0)  # the outside is unknown too
            inside = padded[0].numpy() > 0
            inside[hole.shape[1] :], inside[:, hole.shape[2] :] = False, False
            return padded, plan_windows(inside, size=height, margin=margin)
        if hole.shape[1:] != self.size:
            if self.policy == "error":
                raise ValueError(
                    f"the image is {hole.shape[2]}x{hole.shape[1]} and the model takes {width}x{height}: "
                    "use size_policy 'crop' (a window around each hole) or 'resize'"
                )
            hole = F.adaptive_max_pool2d(hole, self.size)
        whole = Window((0, 0, height, width), (0, 0, height, width))
        return hole, [whole] if bool((hole > 0).any()) else []

    def canvases(
        self, image: Image.Image, hole: Tensor, name: int | str, condition: Condition, *, samples: int
    ) -> list[Canvas]:
        """One canvas for each sample of an image."""
        hole, windows = self.plan(hole)
        model_size = (self.size[1], self.size[0])
        condition = condition.resized(image.size if self.policy == "crop" else model_size)
        if self.policy == "resize" and image.size != model_size:
            # Both poolings have the same windows: no known pixel of the small image depends on the hole's content.
            pixels = F.adaptive_avg_pool2d(to_tensor(image).mul_(2).sub_(1), self.size)
        else:
            pixels = pad(torch.from_numpy(np.array(image)).permute(2, 0, 1), self.size, 0)
        return [Canvas(name, sample, pixels, hole, windows, condition) for sample in range(samples)]


def composite(image: Image.Image, filled: Image.Image, hole: Tensor, *, feather: int = 0) -> Image.Image:
    """`image` where hole (1,H,W) is 0 and `filled` elsewhere, copied without arithmetic; both RGB of the same size.

    `feather`: width in pixels of a linear blend into `filled`, in the known region around the hole.
    """
    composed, inside = image.copy(), (hole[0] > 0).numpy()
    if feather and inside.any():
        from scipy.ndimage import distance_transform_edt

        distance = np.asarray(distance_transform_edt(~inside))
        weight = np.clip(1 - distance / (feather + 1), 0, 1)
        weight[distance > feather] = 0
        composed.paste(filled, mask=Image.fromarray(np.rint(255 * weight).astype(np.uint8)))
    else:
        composed.paste(filled, mask=Image.fromarray(inside))
    return composed


def pad(image: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """(C,H,W) padded at the bottom and the right to at least `size` (height, width)."""
    rows, columns = (max(0, wanted - given) for wanted, given in zip(size, image.shape[1:], strict=True))
    return F.pad(image, (0, columns, 0, rows), value=value) if rows or columns else image


def restore_size(pixels: Tensor, size: tuple[int, int]) -> Image.Image:
    """The image in the input's size (width, height): float pixels are resized, padded uint8 pixels are cropped."""
    width, height = size
    if pixels.is_floating_point():
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
        return to_uint8(pixels.clamp_(-1, 1).div_(2).add_(0.5))
    return Image.fromarray(pixels[:, :height, :width].permute(1, 2, 0).contiguous().numpy())
