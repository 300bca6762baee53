"""Batches of one size each, close to the aspect ratio of their images.

Every image belongs to the size with the nearest aspect ratio, its bucket. With c images in a bucket, its samples are the
sequence of epochs of these c images, each in the order of `epoch_order`. The sequence is cut into blocks of G samples, the
number of samples of an optimiser step over all devices. Blocks of all buckets are ordered by the image that completes them.
Images that do not fill a block wait for the next epoch, so none is lost or repeated. Block k is a closed form of k, c and G.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from rad.data.stream import Source, Turns, epoch_order
from rad.images.atomic import built_once
from rad.images.remote import cache_folder
from rad.images.sources import Decoded

Size = tuple[int, int]
"""Height and width in pixels."""

WIDEST = 2.0
"""Largest aspect ratio of automatic buckets, and of its inverse."""


def bucket_sizes(buckets: bool | Sequence[Size], side: int) -> tuple[Size, ...]:
    """The sizes (H,W) of `data.buckets`, ascending; () for false.

    For true: sides are multiples of side/8, at least 8 and at most 64; an area is at most side^2, and close to it; aspect ratios
    are between 1/2 and 2.

    Raises ValueError for an empty list or a side below 1.
    """
    if buckets is False:
        return ()
    if buckets is not True:
        sizes = [(int(height), int(width)) for height, width in buckets]
        if not sizes or min(map(min, sizes)) < 1:
            raise ValueError(f"buckets={buckets}: give true, or a list of [height, width] in pixels of at least 1")
        return tuple(sorted(set(sizes)))
    step = min(64, max(8, side // 8))
    if side % step:
        raise ValueError(
            f"buckets=true needs a size that is a multiple of {step}, got {side}: change it, or give a list"
        )
    heights = range(step, side + 1, step)
    flat = [(height, side * side // height // step * step) for height in heights]
    flat = [(height, width) for height, width in flat if width <= WIDEST * height]
    return tuple(sorted({*flat, *((width, height) for height, width in flat)}))


def nearest(sizes: np.ndarray, buckets: Sequence[Size]) -> np.ndarray:
    """(n,) the bucket of each image by its size (n,2), height and width: the one with the nearest log aspect ratio."""
    ratios = np.log([height / width for height, width in buckets])
    distances = [np.abs(np.log(sizes[:, 0] / sizes[:, 1]) - ratio) for ratio in ratios]
    return np.argmin(distances, axis=0).astype(np.int32)


def image_sizes(images: Sequence[Source]) -> np.ndarray:
    """(n,2) height and width of all images, by their headers; (1,1) for a damaged header.

    They are kept below `cache_folder` for the next start, until a name, a file or an archive changes. Raises
    `rad.images.remote.Unreachable`.
    """

    def build() -> np.ndarray:
        with ThreadPoolExecutor(8) as pool:
            return np.array(list(pool.map(_size, images)), np.int32).reshape(-1, 2)

    if any(isinstance(image, Decoded) for image in images[:1]):
        return build()
    file = cache_folder() / "sizes" / f"{_version(images)}.npz"
    return built_once(file, build, lambda path, sizes: np.savez(path, sizes=sizes), partial(_load, len(images)))


def _load(count: int, file: Path) -> np.ndarray:
    with np.load(file, allow_pickle=False) as kept:
        sizes = kept["sizes"]
    if sizes.shape != (count, 2) or sizes.min(initial=1) < 1:
        raise ValueError(f"{file} holds other sizes")
    return sizes


def _size(image: Source) -> Size:
    try:
        width, height = image.size()
    except ValueError:
        return 1, 1
    return height, width


def _version(images: Sequence[Source]) -> str:
    """A hash of the names of all images, and of the versions of their files or archives."""
    digest, readers = sha256(), {}
    for image in images:
        assert not isinstance(image, Decoded)
        source = image.source
        if isinstance(source, Path):
            status = source.stat()
            version = f"{source.absolute()} {status.st_size} {status.st_mtime_ns}"
        elif (version := readers.get(id(source))) is None:
            version = readers[id(source)] = f"{source.path} {source.version()}"
        digest.update(f"{image.name}\0{version}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:40]


@dataclass(frozen=True, eq=False)
class Buckets:
    """Image and size of each position of the stream.

    Args:
        sizes: (H,W) of each bucket.
        assigned: (n,) bucket of each image, all sources one after another.
        block: G, the samples of an optimiser step over all devices; each block has one bucket.
        seed: of the order.
        counts: images of each source, and weights: blocks of each, as for `Stream`. None: all images are one source.
    """

    sizes: tuple[Size, ...]
    assigned: np.ndarray
    block: int
    seed: int
    counts: tuple[int, ...] = ()
    weights: tuple[int, ...] | None = None

    def __call__(self, position: int) -> tuple[int, Size]:
        """Index of the image, and the size (H,W) of the sample."""
        block, place = divmod(position, self.block)
        source, counts = 0, (len(self.assigned),)
        if self.weights is not None:
            (source, block), counts = Turns(self.weights)(block), self.counts
        first = sum(counts[:source])
        bucket, start = self._block(source, first, counts[source], block)
        epoch, place = divmod(start + place, self._contents(first, counts[source])[bucket])
        return first + int(_epoch(self, source, first, counts[source], epoch).images[bucket][place]), self.sizes[bucket]

    def _contents(self, first: int, count: int) -> list[int]:
        return _contents(self, first, count)

    def _block(self, source: int, first: int, count: int, block: int) -> tuple[int, int]:
        """Bucket of a block of a source, and the number of earlier samples of this bucket."""
        contents, epoch = self._contents(first, count), block * self.block // count
        while self._complete(contents, epoch + 1) <= block:
            epoch += 1
        done = self._complete(contents, epoch)
        return _epoch(self, source, first, count, epoch).blocks[block - done]

    def _complete(self, contents: Sequence[int], epochs: int) -> int:
        """Number of whole blocks after `epochs` epochs."""
        return sum(content * epochs // self.block for content in contents)


@lru_cache(maxsize=64)
def _contents(order: Buckets, first: int, count: int) -> list[int]:
    """Number of images of a source in each bucket."""
    return np.bincount(order.assigned[first : first + count], minlength=len(order.sizes)).tolist()


@dataclass(frozen=True)
class _Epoch:
    """An epoch of a source: the images of each bucket in order; and (bucket, earlier samples of it) of completed blocks."""

    images: list[np.ndarray]
    blocks: list[tuple[int, int]]


@lru_cache(maxsize=16)
def _epoch(order: Buckets, source: int, first: int, count: int, epoch: int) -> _Epoch:
    images = epoch_order(order.seed, epoch, count, source).numpy()
    assigned = order.assigned[first : first + count][images]
    places = np.argsort(assigned, kind="stable")  # by bucket, each in the order of the epoch
    contents = _contents(order, first, count)
    parts = np.split(places, np.cumsum(contents)[:-1])
    completed = []
    for bucket, (content, part) in enumerate(zip(contents, parts, strict=True)):
        for number in range(content * epoch // order.block, content * (epoch + 1) // order.block):
            last = (number + 1) * order.block - 1 - content * epoch
            completed.append((int(part[last]), bucket, number * order.block))
    return _Epoch([images[part] for part in parts], [(bucket, start) for _, bucket, start in sorted(completed)])
