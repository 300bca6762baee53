"""Checks of arguments, whose errors are one line and never print an array."""

import operator
import os
from math import isfinite

LONGEST = 60
"""Characters of a value in an error."""


def describe(value: object) -> str:
    """A value for an error: numbers and short text as they are, arrays by shape and dtype, all else by its type."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{type(value).__name__} {tuple(shape)} {str(dtype).removeprefix('torch.')}"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        text = repr(value[:LONGEST] if isinstance(value, str | bytes) else value)
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return f"an object of type {type(value).__name__}"


def integer(name: str, value: object, *, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int, also from NumPy and PyTorch scalars.

    Raises ValueError for bool, float and text, and outside [low, high].
    """
    result = _index(value)
    if result is None or (low is not None and result < low) or (high is not None and result > high):
        limits = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
        raise ValueError(f"{name} is {describe(value)}; give a whole number{limits}")
    return result


def number(name: str, value: object) -> float:
    """`value` as a finite float, also from NumPy and PyTorch scalars. Raises ValueError for bool, text, arrays and NaN."""
    result = _index(value)
    if result is None and not isinstance(value, bool | str | bytes) and getattr(value, "shape", ()) == ():
        try:
            result = float(value)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):
            result = None
    try:
        result = None if result is None else float(result)
    except OverflowError:
        result = None
    if result is None or not isfinite(result):
        raise ValueError(f"{name} is {describe(value)}; give a number")
    return result


def _index(value: object) -> int | None:
    kind = str(getattr(value, "dtype", ""))
    if isinstance(value, bool) or kind.endswith("bool") or getattr(value, "shape", ()) != ():
        return None
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
