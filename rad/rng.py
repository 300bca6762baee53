"""Keyed randomness: every draw comes from a generator keyed by its purpose, never from a global one.

A result does not depend on batch size, order, number of devices or resume, and methods can run on equal noise.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from rad.arguments import describe, integer
from rad.keys import Part, check_seed, identity, key, key_of

__all__ = ["KeyedNoise", "Part", "check_seed", "generator", "identity", "key", "key_of"]


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

    def randn(self, number: int, shape: Sequence[int]) -> Tensor:
        """Draw `number` for every image: (B, *shape) float32. Starts the next draw, which most runs ask for."""
        shape = tuple(shape)
        future = self._ahead.pop((number, shape), None)
        noise = self._draw(number, shape) if future is None else future.result()
        self._ahead.clear()
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
