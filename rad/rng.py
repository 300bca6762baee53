"""Keyed randomness: every draw comes from a generator keyed by its purpose, never from a global one.

A result does not depend on batch size, order, number of devices or resume, and methods can run on equal noise.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit integer that depends on every part and on their order (BLAKE2b of the parts)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def key_of(parts: Iterable[int | str]) -> int:
    """`key` of parts that need not fit into memory."""
    digest, count = hashlib.blake2b(b"(", digest_size=8), 0
    for count, part in enumerate(parts, start=1):
        digest.update(f"{', ' if count > 1 else ''}{part!r}".encode())
    digest.update(b",)" if count == 1 else b")")
    return int.from_bytes(digest.digest(), "big") >> 1


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded by `key(*parts)`."""
    return torch.Generator(device).manual_seed(key(*parts))


class KeyedNoise:
    """Standard normal images for a batch, keyed by (seed, image id, sample number, draw number).

    Draw `n` of image `i` does not depend on the rest of the batch. A context manager: it ends the thread that prepares draws.

    Args:
        images: (B) identity of each image: a file name, a number; samples: (B) sample numbers, None: all 0.
        device: CPU draws are equal on all machines. An accelerator's are quicker, and equal only on its kind.
    """

    def __init__(
        self,
        seed: int,
        images: Sequence[int | str],
        samples: Sequence[int] | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        if samples is not None and len(samples) != len(images):
            raise ValueError(f"{len(images)} images but {len(samples)} sample numbers: give one for each image")
        self.seed, self.images, self.device = seed, list(images), torch.device(device)
        self.samples = list(samples) if samples is not None else [0] * len(self.images)
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
        rows = [
            torch.randn(shape, generator=generator(self.seed, image, sample, number, device=device), device=device)
            for image, sample in zip(self.images, self.samples, strict=True)
        ]
        return torch.stack(rows)

    def __enter__(self) -> "KeyedNoise":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
