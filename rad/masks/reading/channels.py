"""The part of a file that is the mask: its grey values, its transparency, or a colour painted on black or a photograph."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from rad.masks.reading.format import MaskFormat
from rad.masks.reading.values import END, is_clean, levels_of

COLOURLESS = 24
"""Largest difference of the channels of a grey pixel."""

VARIED = 32
"""Colours that a photograph has at least."""

EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"}

CHANNELS = "give --mask_channel grey, alpha, red, green or blue"
ALPHA = "give --mask_channel alpha, whose opaque part is the hole (with --mask_polarity white_is_known the transparent)"


@dataclass(frozen=True)
class Channel:
    """Values (H,W) of the mask in a file, the value of white, and a message about a choice of "auto"."""

    values: np.ndarray
    top: float = 255
    message: str = ""


def find_channel(
    image: Image.Image,
    format: MaskFormat,
    *,
    reference: np.ndarray | None = None,
    white_is_zero: bool = False,
    lossy: bool = False,
) -> Channel:
    """The mask in a file, by `format.channel`.

    Args:
        image: the upright mask file; reference: the image to fill, (H,W,3) uint8.
        white_is_zero: of a TIFF whose values Pillow leaves inverted: 16 bits and floats.
        lossy: the file is a JPEG.

    Raises ValueError for a file without the channel, and where "auto" cannot be certain.
    """
    if image.mode not in EIGHT_BITS:
        return _deep(image, format, white_is_zero)
    if format.channel == "alpha":
        if not image.has_transparency_data:
            raise ValueError(f"it has no transparency (mode {image.mode}): give --mask_channel grey")
        return Channel(_rgba(image)[..., 3])
    if format.channel != "auto":
        picked = _rgb(image)
        grey = picked.convert("L") if format.channel == "grey" else picked.getchannel(format.channel[0].upper())
        return Channel(np.asarray(grey))
    if image.has_transparency_data:
        alpha = _rgba(image)[..., 3]
        if alpha.max() <= 255 * END:
            raise ValueError(f"it is transparent everywhere: {CHANNELS}")
        if np.ptp(alpha) > 255 * END:
            if format.polarity != "white_is_fill":
                raise ValueError(f"its transparency varies, and has no white: {ALPHA}")
            return _transparency(_rgba(image), reference)
    return _colours(image, format, reference, lossy)


def painted_over(pixels: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Where a copy (H,W,3) uint8 of the image was painted over: (H,W) bool. None for another image, or too much noise.

    Raises ValueError where the paint has the colour of the image beside it.
    """
    from scipy import ndimage

    difference = _distance(pixels, reference)
    same = difference == 0
    if same.mean() >= 0.05 and ((difference > 0) & (difference <= 8)).mean() <= 0.02 and _is_varied(pixels[same]):
        changed = difference > 0
        colour = _common_colour(pixels[changed])
        # Paint leaves no trace where the image has its colour.
        unsure = (pixels == colour).all(2) & same & ndimage.maximum_filter(changed, 3)
        if unsure.sum() > 0.05 * changed.sum():
            raise ValueError(f"its paint {_named(colour)} is a colour of the image beside it: paint in another colour")
        return changed | unsure
    near, far = difference <= 32, difference > 64
    if near.mean() < 0.3 or far.mean() < 0.002 or (near | far).mean() < 0.97 or not _is_varied(pixels[near]):
        return None
    colour = np.median(pixels[far], axis=0).astype(np.uint8)
    distance = _distance(pixels, np.broadcast_to(colour, pixels.shape))
    if np.ptp(colour) < 128 or (distance[far] <= 48).mean() < 0.9:
        return None
    return (distance <= 80) & ~near


def _deep(image: Image.Image, format: MaskFormat, white_is_zero: bool) -> Channel:
    """Values of 16 or 32 bits, or floats in [0,1]."""
    if image.mode[0] not in "IF":
        raise ValueError(f"its mode {image.mode} has no defined white: save it as grey with 8 bits")
    if format.channel not in ("auto", "grey"):
        raise ValueError(f"it has grey values only (mode {image.mode}): give --mask_channel grey")
    values, top = np.asarray(image), 1 if image.mode == "F" else 65535
    return Channel(top - values if white_is_zero else values, top)


def _colours(image: Image.Image, format: MaskFormat, reference: np.ndarray | None, lossy: bool) -> Channel:
    rgb = _rgb(image)
    pixels = np.asarray(rgb)
    if reference is not None and rgb.getcolors(1) is None and np.array_equal(pixels, reference):
        raise ValueError("it is the image itself: give its mask; for masks beside the images see --mask_pattern")
    if image.mode in ("1", "L") or np.ptp(pixels, axis=2).max() <= COLOURLESS:
        by_index = image.mode == "P" and image.getcolors(1) is None and rgb.getcolors(1) is not None
        grey = np.asarray(image if by_index else rgb.convert("L"))
        plain = levels_of(grey).size < VARIED or is_clean(grey, top=255, lossy=lossy)
        painted = None if plain or reference is None else _over_image(pixels, format, reference)
        return painted or Channel(grey)
    painted = _on_black(pixels, lossy) or (None if reference is None else _over_image(pixels, format, reference))
    if painted is None:
        raise ValueError(
            "it is coloured, and it is not certain which part is the hole: save it in black and white (white = hole), or "
            f"{CHANNELS}"
        )
    return painted


def _over_image(pixels: np.ndarray, format: MaskFormat, reference: np.ndarray) -> Channel | None:
    painted = painted_over(pixels, reference)
    if painted is not None and format.polarity != "white_is_fill":
        raise ValueError("it is a painted copy of the image, and has no white: leave out --mask_polarity")
    return None if painted is None else Channel(painted, 1, "the part that differs from the image is the hole")


def _transparency(rgba: np.ndarray, reference: np.ndarray | None) -> Channel:
    """Strokes on a transparent page, or a picture with an erased part."""
    pixels, alpha = rgba[..., :3], rgba[..., 3]
    opaque = alpha > (int(alpha.min()) + int(alpha.max())) / 2
    inside = pixels[opaque]
    typical = np.broadcast_to(np.median(inside, axis=0).astype(np.uint8), inside.shape)
    uniform = (_distance(inside, typical) <= 32).mean() >= 0.99
    if uniform and opaque.mean() <= 0.5:
        return Channel(alpha, message="its opaque part is the hole")
    copied = reference is not None and (_distance(inside, reference[opaque]) <= 16).mean() >= 0.9
    ends = (inside <= 255 * END).all(1) | (inside >= 255 * (1 - END)).all(1)
    if not uniform and ends.mean() < 0.9 and _is_varied(inside) and (copied or opaque.mean() >= 0.5):
        return Channel(255 - alpha, message="its transparent part is the hole")
    raise ValueError(f"its transparency varies, and it is not certain which part is the hole: {ALPHA}; or {CHANNELS}")


def _on_black(pixels: np.ndarray, lossy: bool) -> Channel | None:
    """One colour painted on black, such as a label; None for any other file."""
    brightest = pixels.max(2)
    if brightest.min() > 255 * END or brightest.max() <= 255 * END:
        return None
    colour = _common_colour(pixels[brightest >= 0.9 * brightest.max()])
    scale = colour.astype(np.float32) / np.square(colour, dtype=np.float32).sum()
    amount = np.clip(pixels @ scale, 0, 1)
    rest = np.zeros(amount.shape, np.float32)
    for band, value in enumerate(colour):
        np.maximum(rest, np.abs(pixels[..., band] - amount * float(value)), out=rest)
    few = not _has_more_colours(pixels.reshape(-1, 3), 8)
    if (rest <= 2 * COLOURLESS).mean() < (1 if few else 0.98):
        return None
    values = np.rint(255 * amount).astype(np.uint8)
    # A photograph of little colour also lies along its brightest grey.
    if np.ptp(colour) < 0.5 * colour.max() and not is_clean(values, top=255, lossy=lossy):
        return None
    return Channel(values, message=f"its colour {_named(colour)} is white")


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if image.has_transparency_data else "RGB").convert("RGB")  # else Pillow may warn


def _rgba(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA"))


def _distance(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Largest difference of the channels, uint8."""
    return (np.maximum(pixels, others) - np.minimum(pixels, others)).max(-1)


def _is_varied(pixels: np.ndarray) -> bool:
    """Whether pixels (N,3) have as many colours as a photograph."""
    return _has_more_colours(pixels, VARIED - 1)


def _has_more_colours(pixels: np.ndarray, count: int) -> bool:
    return len(pixels) > 0 and Image.fromarray(np.ascontiguousarray(pixels)[None]).getcolors(count) is None


def _common_colour(pixels: np.ndarray) -> np.ndarray:
    """The most frequent of the colours (N,3) uint8."""
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    colours, counts = np.unique(packed, return_counts=True)
    common = int(colours[counts.argmax()])
    return np.array([common >> 16, common >> 8 & 255, common & 255], np.uint8)


def _named(colour: np.ndarray) -> str:
    return f"({', '.join(map(str, colour.tolist()))})"
