"""Integer pixels of more than 8 bits: the range that a file gives them, and 8 bits from it."""

import numpy as np
from PIL import Image

_BITS, _WHITE_IS_ZERO, _MOST, _SAMPLE_FORMAT = 258, 262, 281, 339  # tags of TIFF


def check_samples(image: Image.Image) -> None:
    """Raise ValueError for pixels without an agreed range: float, signed, 32 bits, or TIFF colours with a maximum."""
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range: convert it to 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    if max(tags.get(_BITS, (1,))) > 16 or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("32-bit pixels have no agreed range: convert it to 8 or 16 bits")
    if any(kind == 2 for kind in tags.get(_SAMPLE_FORMAT, ())):
        raise ValueError("signed pixels have no agreed range: convert it to 8 or 16 bits without sign")
    if len(tags.get(_BITS, ())) > 1 and 16 in tags[_BITS] and _most(tags) < 65535:
        raise ValueError(f"16-bit colours with a maximum of {_most(tags)} cannot be read: scale them to 65535")


def _most(tags: "dict[int, tuple[int, ...]]") -> int:
    """The value of white: MaxSampleValue, or 2**bits - 1."""
    most = tags.get(_MOST, 0)
    most = max(most) if isinstance(most, tuple) else int(most)
    return most or 2 ** max(tags.get(_BITS, (16,))) - 1


def black_and_white(image: Image.Image) -> tuple[int, int]:
    """Values of black and white in the pixels of a grey file of more than 8 bits.

    White is 65535, or the value in BitsPerSample or MaxSampleValue of TIFF, or sBIT of a PNG that was not scaled to 16 bits.
    """
    if tags := getattr(image, "tag_v2", None):
        white = _most(tags)
        return (white, 0) if tags.get(_WHITE_IS_ZERO) == 0 else (0, white)  # Pillow inverts 8 bits, but not 16
    significant = 2 ** image.info.get("significant_bits", 16) - 1
    return 0, significant if np.asarray(image).max(initial=0) <= significant else 65535


def to_8_bits(image: Image.Image, black: int, white: int) -> Image.Image:
    """An image of mode I or I;16 in mode L, by one rounding: `black` becomes 0, `white` 255."""
    values = np.clip(np.asarray(image).astype(np.int64), min(black, white), max(black, white))
    return Image.fromarray(np.uint8(np.rint((values - black) * 255 / (white - black))))


def is_dark(image: Image.Image) -> bool:
    """Whether a file of 16 bits fills less than a sixteenth of its range: its values may have 8 or 12 bits."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I"):
        return 0 < np.asarray(image).max(initial=0) <= max(black_and_white(image)) // 16
    sixteen = image.info.get("bits") == 16 or 16 in tags.get(_BITS, ())
    return sixteen and image.mode in ("RGB", "RGBA") and max(high for _, high in image.getextrema()) < 16
