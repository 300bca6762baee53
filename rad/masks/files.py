"""Mask files: read, write, compare, detect a wrong polarity. Polarity is flipped only here."""

from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rad.images.atomic import replacing

Polarity = Literal["white_is_fill", "white_is_known"]


def read_mask(
    source: str | Path | BinaryIO | Image.Image,
    *,
    polarity: Polarity = "white_is_fill",
    channel: Literal["grey", "alpha"] = "grey",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Read a mask from a file name, binary file or image: 8-bit grey / 255 or 16-bit grey / 65535.

    Grey values stay (soft masks). Colours become luma. EXIF rotation is applied.

    Args:
        polarity: meaning of white in the file; with `channel="alpha"`, of opaque.
        channel: "alpha" reads transparency. To fill the transparent part, add `polarity="white_is_known"`.
        size: required (height, width); `None` accepts any.

    Returns (1,H,W) float32 in [0,1], 1 = fill. Raises FileNotFoundError, or ValueError for a file that is no image, has
    another size or lacks the channel.
    """
    if polarity not in ("white_is_fill", "white_is_known"):
        raise ValueError(f"polarity={polarity!r}: give white_is_fill or white_is_known")
    if channel not in ("grey", "alpha"):
        raise ValueError(f"channel={channel!r}: give grey or alpha")
    if isinstance(source, str | Path):
        name = str(source)
    else:
        name = str(getattr(source, "filename", "") or getattr(source, "name", "") or "the mask given")
    image = _decode(source, name)
    if size is not None and (image.height, image.width) != tuple(size):
        raise ValueError(
            f"{name}: the mask is {image.height}x{image.width} (height x width), not {size[0]}x{size[1]}; "
            "resize it with nearest-neighbour or give the mask that belongs to the image"
        )
    white = _grey(image, name) if channel == "grey" else _alpha(image, name)
    # Flipped in float64: the float32 of a grey is the same in both polarities.
    hole = white if polarity == "white_is_fill" else 1 - white
    return torch.from_numpy(hole.astype(np.float32))[None]


def write_mask(path: str | Path, hole: Tensor) -> None:
    """Write a hole (1,H,W) in [0,1] atomically as 8-bit grey PNG, white = fill; creates missing folders."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: masks are written as PNG, which keeps every pixel; end the name in .png")
    if hole.ndim != 3 or hole.shape[0] != 1:
        raise ValueError(f"{path}: one hole of shape (1,H,W) is needed, not {tuple(hole.shape)}")
    if not ((hole >= 0) & (hole <= 1)).all():
        raise ValueError(f"{path}: a hole lies in [0,1], this one in [{hole.min():.3g},{hole.max():.3g}]")
    grey = (255 * hole[0].float()).round().to(torch.uint8).cpu().numpy()
    with replacing(Path(path)) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")


def same_mask(path: str | Path, hole: Tensor) -> bool:
    """Whether a mask file (white = fill) equals what `write_mask` writes for this hole."""
    return torch.equal(read_mask(path), hole.mul(255).round().div(255))


def looks_inverted(hole: Tensor) -> bool:
    """Whether a hole (1,H,W) may have the wrong polarity; for warnings.

    True if more than half of the image and its whole outermost ring are hole, and some pixel is known. Outpainting masks
    also match. Inverted masks whose spots touch the border are not detected.
    """
    fill = hole[0] > 0.5
    ring = torch.cat([fill[0], fill[-1], fill[:, 0], fill[:, -1]])
    return bool(fill.float().mean() > 0.5 and ring.all() and not fill.all())


def _decode(source: str | Path | BinaryIO | Image.Image, name: str) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return ImageOps.exif_transpose(source)
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damaged input makes Pillow raise almost anything
        raise ValueError(f"{name}: not a readable image ({error}); give a PNG or another image file") from error


def _grey(image: Image.Image, name: str) -> np.ndarray:
    # 16 bits by hand: Pillow has clipped them to 8 in some versions and scaled them in others.
    if image.mode.startswith("I"):
        grey = np.divide(np.asarray(image), 65535, dtype=np.float64)
    else:
        grey = np.divide(np.asarray(image.convert("L")), 255, dtype=np.float64)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 1:
        raise ValueError(f"{name}: a mask of mode {image.mode} has no defined white; save it with 8 or 16 bits")
    if image.has_transparency_data and np.ptp(grey) == 0 and np.ptp(_alpha(image, name)) > 0:
        raise ValueError(f"{name}: one colour everywhere, the mask is in its transparency; use channel=alpha")
    return grey


def _alpha(image: Image.Image, name: str) -> np.ndarray:
    if not image.has_transparency_data:
        raise ValueError(f"{name}: channel=alpha, but an image of mode {image.mode} has none; use channel=grey")
    return np.asarray(image.convert("RGBA").getchannel("A")).astype(np.float64) / 255
