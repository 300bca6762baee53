"""Keyed randomness: every draw comes from a generator keyed by its purpose, never from a global one.

A result does not depend on batch size, order, number of devices or resume, and methods can run on equal noise.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

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


def generator(*parts: Part, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded by `key(*parts)`."""
    return torch.Generator(device).manual_seed(key(*parts))


class KeyedNoise:
    """Standard normal images for a batch, keyed by (seed, image id, sample number, draw number).

    Draw `n` of image `i` does not depend on the rest of the batch. A context manager: it ends the thread that prepares draws.

    Args:
        seed: whole number, see `check_seed`.
        images: (B) identity of each image: a file name, a number; samples: (B) sample numbers, None: all 0.
        device: CPU draws are equal on all machines. An accelerator's are quicker, and equal only on its kind.

    Raises ValueError for an unsuitable seed or identity.
    """

    def __init__(
        self,
        seed: int,
        images: Sequence[Part],
        samples: Sequence[int] | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        if isinstance(images, str | bytes) or not hasattr(images, "__len__"):
            raise ValueError(f"images is {describe(images)}; give a list with one identity for each image")
        if samples is not None and len(samples) != len(images):
            raise ValueError(f"{len(images)} images but {len(samples)} sample numbers: give one for each image")
        self.seed, self.device = check_seed(seed), torch.device(device)
        self.images = [identity(image) for image in images]
        self.samples = [0] * len(self.images) if samples is None else [integer("sample", each) for each in samples]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keyed-noise")
        self._ahead: dict[tuple[int, tuple[int, ...]], Future[Tensor]] = {}

    def randn(self, number: int, shape: Sequence[int], *, last: bool = False) -> Tensor:
        """Draw `number` for every image: (B, *shape) float32. Starts the next draw unless `last`."""
        shape = tuple(shape)
        future = self._ahead.pop((number, shape), None)
        noise = self._draw(number, shape) if future is None else future.result()
        self._ahead.clear()
        if not last:
            self._ahead[number + 1, shape] = self._thread.submit(self._draw, number + 1, shape)
        return noise

    def _draw(self, number: int, shape: tuple[int, ...]) -> Tensor:
        device = self.device
        rows = []
        for image, sample in zip(self.images, self.samples, strict=True):
            rng = generator(self.seed, image, sample, number, device=device)
            rows.append(torch.randn(shape, generator=rng, device=device, dtype=torch.float32))
        return torch.stack(rows)

    def __enter__(self) -> "KeyedNoise":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
