"""Training images as a stream indexed by position: a run resumes exactly and does not depend on its split.

Position p = 0, 1, 2, ... counts the samples of the whole run. With n images, epoch e = p // n follows permutation(seed, e).
Crop, flip and hole come from generators keyed by (seed, p). Batch size, devices, workers and interruptions change nothing:
step k of W processes with batches of B takes positions k*B*W to (k+1)*B*W - 1.

Several sources with weights take turns in a fixed pattern, see `Turns`; each has its own epochs.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rad.data.captions import Captions
from rad.data.draws import draw_hole
from rad.data.framing import Framing
from rad.images.sources import Decoded, ImageFile, open_readable
from rad.masks import MaskGenerator
from rad.rng import generator

if TYPE_CHECKING:
    from rad.data.buckets import Buckets

Source = ImageFile | Decoded

Sample = dict[str, Tensor | int | str | dict[str, Tensor]]
"""Fields "image", "position" and "name"; with masks "hole", with captions "text", with draws "draws", with a
cache "pixels_hash"."""

Draw = Callable[[int, tuple[int, int]], dict[str, Tensor]]
"""Random draws of the model for the sample at a position, of a size (height, width); it can be pickled."""

LONGEST_PERIOD = 10_000


@dataclass(frozen=True)
class Turns:
    """Assigns positions to sources in a fixed pattern with a period of sum(weights); weights are whole numbers of at least 1.

    With weights [3, 1], positions 0 to 3 go to the sources 0, 0, 1, 0, and so on. After p positions the count of source s
    differs from p * weights[s] / sum(weights) by less than the number of sources.
    """

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 1 or sum(self.weights) > LONGEST_PERIOD:
            raise ValueError(
                f"weights={list(self.weights)}: give whole numbers of at least 1, with a sum of at most {LONGEST_PERIOD}"
            )

    def __call__(self, position: int) -> tuple[int, int]:
        """The source, and the number of its earlier positions."""
        rounds, place = divmod(position, sum(self.weights))
        source, before = _period(self.weights)[place]
        return source, rounds * self.weights[source] + before


@lru_cache(maxsize=8)
def _period(weights: tuple[int, ...]) -> list[tuple[int, int]]:
    """(source, its earlier places) for each place: turn i of a source is due at the share (2i + 1) / (2 weight)."""
    turns = [
        (Fraction(2 * turn + 1, 2 * weight), source, turn)
        for source, weight in enumerate(weights)
        for turn in range(weight)
    ]
    return [(source, turn) for _, source, turn in sorted(turns)]


@dataclass(frozen=True)
class Stream(Dataset[Sample]):
    """The endless training stream: `stream[p]` is the sample at position p.

    Args:
        images: of all sources, one source after another; counts: images of each source, with `weights`.
        weights: relative number of samples of each source, see `Turns`. None: all images are one source.
        draw: draws the model's random numbers for a sample, in the worker that reads it.
        buckets: image and size of each position, see `rad.data.buckets`. None: squares.
        hashed: add a hash of the pixels, by which their latents are cached.
    """

    images: Sequence[Source]
    framing: Framing
    seed: int = 0
    masks: MaskGenerator | None = None
    strict: bool = False
    captions: Captions | None = None
    counts: tuple[int, ...] = ()
    weights: tuple[int, ...] | None = None
    draw: Draw | None = None
    buckets: "Buckets | None" = None
    hashed: bool = False

    def number(self, position: int) -> int:
        """Index in `images` of a position."""
        if self.buckets is not None:
            return self.buckets(position)[0]
        if self.weights is None:
            source, before, counts = 0, position, (len(self.images),)
        else:
            (source, before), counts = Turns(self.weights)(position), self.counts
        epoch, place = divmod(before, counts[source])
        return sum(counts[:source]) + int(epoch_order(self.seed, epoch, counts[source], source)[place])

    def __getitem__(self, index: int) -> Sample:
        sides = None if self.buckets is None else self.buckets(index)[1]
        return _read(self, self.number(index), index, lambda purpose, _: generator(self.seed, purpose, index), sides)


@dataclass(frozen=True)
class HeldOut(Dataset[Sample]):
    """The fixed validation list, `length` long, in rounds over the images; keyed by image name, not by a seed.

    Args:
        counts: images of each source; of several, the key holds the source too, for equal names in two of them.
        hashed: as in `Stream`.
        draw: as in `Stream`.
    """

    images: Sequence[Source]
    framing: Framing
    length: int
    masks: MaskGenerator | None = None
    strict: bool = False
    captions: Captions | None = None
    counts: tuple[int, ...] = ()
    draw: Draw | None = None
    hashed: bool = False

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        turn, number = divmod(index, len(self.images))
        source = bisect_right(list(accumulate(self.counts)), number) if len(self.counts) > 1 else 0
        place = (turn, source) if source else (turn,)  # a single source keeps its draws
        return _read(self, number, index, lambda purpose, name: generator("validation", purpose, name, *place))


def _read(
    data: Stream | HeldOut,
    number: int,
    position: int,
    keyed: Callable[[str, str], torch.Generator],
    sides: tuple[int, int] | None = None,
) -> Sample:
    """Sample of image `number`, of H,W `sides` or square; `keyed` gives the generator for a purpose and an image name."""
    name, image = open_readable(data.images, number, strict=data.strict)
    pixels, size = data.framing(image, keyed("augment", name), sides), sides or (data.framing.size, data.framing.size)
    sample: Sample = {"image": pixels, "position": position, "name": name}
    if data.hashed:
        sample["pixels_hash"] = f"{tuple(pixels.shape)} {sha256(pixels.numpy().tobytes()).hexdigest()}"
    if data.masks is not None:
        sample["hole"] = draw_hole(data.masks, keyed("hole", name), size)
    if data.captions is not None:
        sample["text"] = data.captions(name)
    if data.draw is not None:
        sample["draws"] = data.draw(position, size)
    return sample


@lru_cache(maxsize=8)  # a batch may span two epochs of each of several sources
def epoch_order(seed: int, epoch: int, count: int, source: int) -> Tensor:
    """(n,) the numbers of the images of a source in the order of an epoch."""
    keys = ("order", epoch, source) if source else ("order", epoch)
    return torch.randperm(count, generator=generator(seed, *keys), dtype=torch.int64, device="cpu")


@dataclass(kw_only=True, eq=False)
class PositionSampler(Sampler[list[int]]):
    """Batches of positions for one rank: step k takes B positions from start + (k*W + rank)*B on.

    Args:
        start: returns the position that training has reached, when a pass begins.
        length: batches in the whole run, as Lightning counts them; done: batches before this loader was created.
        batch_size: B, the batch of one rank; world_size: W, the number of ranks.
    """

    start: Callable[[], int]
    length: int
    batch_size: int
    done: int = 0
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start() + self.rank * self.batch_size
        for step in range(self.length - self.done):
            position = first + step * self.world_size * self.batch_size
            yield list(range(position, position + self.batch_size))


class StreamLoader(DataLoader[Sample]):
    """A loader that Lightning accepts as resumable; `ImageDataModule` saves its state, the position."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        assert not state_dict
