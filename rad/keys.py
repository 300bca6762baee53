"""Keys of random draws: a number for a purpose, an image, a sample and a draw. Loads no torch."""

import hashlib
import os
from collections.abc import Iterable

from rad.arguments import describe, integer

Part = int | str | os.PathLike[str]
"""Part of a key. NumPy and PyTorch integers equal Python's; a path equals its text."""


def check_seed(seed: int, name: str = "seed") -> int:
    """The seed as an int. Raises ValueError unless it is a whole number from -2^63 to 2^64 - 1, the range of PyTorch."""
    value = integer(name, seed)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} is {describe(value)}; give a whole number from -2^63 to 2^64 - 1")
    return value


def identity(part: Part) -> int | str:
    """A part of a key as a plain int or str. Raises ValueError for any other type, bool and float included."""
    if isinstance(part, str):
        return str.__str__(part)  # NumPy's str prints another repr
    if isinstance(part, os.PathLike) and isinstance(path := os.fspath(part), str):
        return path
    try:
        return integer("part", part)
    except ValueError:
        raise ValueError(f"a seed or name is {describe(part)}; give a whole number, a text or a path") from None


def key(*parts: Part) -> int:
    """A 63-bit integer that depends on every part and on their order (BLAKE2b of the parts)."""
    plain = tuple(identity(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def key_of(parts: Iterable[Part]) -> int:
    """`key` of parts that need not fit into memory."""
    digest, count = hashlib.blake2b(b"(", digest_size=8), 0
    for count, part in enumerate(parts, start=1):
        digest.update(f"{', ' if count > 1 else ''}{identity(part)!r}".encode())
    digest.update(b",)" if count == 1 else b")")
    return int.from_bytes(digest.digest(), "big") >> 1
