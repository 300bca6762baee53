"""Grey values of a mask file to black and white. Files with almost no greys are split; others need a choice."""

import numpy as np
from PIL import Image

END = 16 / 255
"""Distance from black and white that JPEG and resampling explain."""

FEW = 8
"""Up to so many values may be labels, whose areas all count."""

MOST_GREY, MOST_LABELLED = 0.05, 0.005
"""Largest share of grey pixels away from an edge, in files of many and of few values."""

CHOICES = "give --mask_threshold 0.5 to fill the brighter half (0: all that is not black), or --soft_mask to fill grey in part"


def to_white(
    values: np.ndarray, *, top: float, threshold: float | None = None, soft: bool = False, lossy: bool = False
) -> tuple[np.ndarray, str]:
    """Where a mask is white, (H,W) bool, and a message if its values are not plain black and white.

    Two values are black and white, except with a threshold if they use the range up to `top`. Others are compared with `top`.

    Args:
        values: (H,W); top: the value of white.
        threshold, soft: see `MaskFormat`. With `soft` the result is float64 in [0,1].
        lossy: the file is a JPEG, whose values are not exact.

    Raises ValueError for values outside [0, top], and for greys without `threshold` or `soft`.
    """
    levels = levels_of(values)
    if not np.isfinite(levels).all():
        raise ValueError("it has values that are not finite numbers")
    low, high = float(levels[0]), float(levels[-1])
    is_labels = 0 < high <= END * top
    compared = threshold is not None and low >= 0 and END * top < high <= top
    if levels.size == 2 and not soft and not compared:
        plain = (low, high) == (0, top)
        return values == levels[1], "" if plain else f"its two values, {low:g} and {high:g}, are black and white"
    if low < 0 or high > top:
        raise ValueError(f"its values are {low:g} to {high:g}, and white is {top:g}: save it with 8 bits, 0 and 255")
    if soft:
        if is_labels:
            raise ValueError(
                f"its values are {low:g} to {high:g} of {top:g}, as of labels: save 0 and 255, or leave out --soft_mask"
            )
        return np.divide(values, top, dtype=np.float64), ""
    if threshold is not None:
        return (values > threshold * top) | (values == top), ""
    if levels.size == 1:
        if low not in (0, top):
            raise ValueError(f"it has one value, {low:g} of {top:g}, neither black nor white: {CHOICES}")
        return values == top, ""
    if not is_clean(values, top=top, lossy=lossy):
        choices = "give --mask_threshold 0 to fill all that is not black" if is_labels else CHOICES
        raise ValueError(
            f"it has {levels.size} values, {low:g} to {high:g} of {top:g}, not only black and white: {choices}"
        )
    between = ((values > 0) & (values < top)).mean()
    return values >= top / 2, f"{100 * between:.2g} % of its pixels are grey, split at a half (--soft_mask keeps them)"


def levels_of(values: np.ndarray) -> np.ndarray:
    """The distinct values (H,W), sorted."""
    if values.dtype != np.uint8:
        return np.unique(values)
    return np.flatnonzero(Image.fromarray(values).histogram()).astype(np.uint8)  # much quicker


def is_clean(values: np.ndarray, *, top: float, lossy: bool) -> bool:
    """Whether nearly all pixels (H,W) are black, white, or on an edge between both."""
    levels = levels_of(values)
    if levels[0] > END * top or levels[-1] < (1 - END) * top:
        return False
    few = levels.size <= FEW and not lossy
    black = values <= (levels[0] if few else END * top)
    white = values >= (levels[-1] if few else (1 - END) * top)
    grey, most = ~(black | white), MOST_LABELLED if few else MOST_GREY
    if grey.mean() <= most:
        return True
    if grey.mean() > 0.5:
        return False
    from scipy import ndimage

    width = 9 if lossy else 5  # JPEG stores colour in blocks of 16 pixels
    edge = np.logical_and(ndimage.maximum_filter(black, width), ndimage.maximum_filter(white, width))
    return bool(np.mean(grey & ~edge) <= most)
