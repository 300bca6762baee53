"""Keyed randomness: every draw comes from a generator named by what it is for, never from a global one.

A result therefore does not depend on batch size, order, number of devices or resume, and two methods can be
run on equal noise.
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
    """`key` of so many parts that they are better not all in memory at once."""
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

    Draw `n` of image `i` is the same tensor whatever else is in the batch. The next draw is made in a background
    thread while the network works on this one. Use as a context manager, so that the thread ends.

    Args:
        seed: of the whole run.
        images: (B) an identity for each image: a file name, a number.
        samples: (B) which sample of that image each row is; None: all are sample 0.
        device: where the draws are made. CPU draws are equal on all machines; draws on an accelerator are quicker,
            and equal only on accelerators of that kind.
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
        """Draw `number` for every image: (B, *shape) float32; the following draw is begun unless `last`."""
        wanted = (number, tuple(shape))
        future = self._ahead.pop(wanted, None)
        drawn = self._make(*wanted) if future is None else future.result()
        self._ahead.clear()
        if not last:
            following = (number + 1, wanted[1])
            self._ahead[following] = self._thread.submit(self._make, *following)
        return drawn

    def _make(self, number: int, shape: tuple[int, ...]) -> Tensor:
        rows = [
            torch.randn(
                shape,
                generator=generator(self.seed, image, sample, number, device=self.device),
                device=self.device,
            )
            for image, sample in zip(self.images, self.samples, strict=True)
        ]
        return torch.stack(rows)

    def __enter__(self) -> "KeyedNoise":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
