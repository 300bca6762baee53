"""Training images as a stream indexed by position: a run resumes exactly and does not depend on its split.

Position p = 0, 1, 2, ... is the number of a sample in the whole run. With n images, epoch e = p // n goes
through permutation(seed, e), and crop, flip and hole of the sample come from generators keyed by (seed, p):
batch size, devices, workers and interruptions change nothing. Step k of W processes with batches of B takes
positions k*B*W to (k+1)*B*W - 1.

Several sources with weights take turns in a fixed pattern, see `Turns`; each goes through its own epochs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rad.data.captions import Captions
from rad.data.framing import Framing
from rad.images.sources import Decoded, ImageFile, open_readable
from rad.masks import MaskGenerator
from rad.rng import generator

Source = ImageFile | Decoded


LONGEST_PERIOD = 10_000


@dataclass(frozen=True)
class Turns:
    """Which of several sources a position belongs to: a fixed pattern that repeats every sum(weights) positions.

    Of the weights [3, 1], positions 0 to 3 go to the sources 0, 0, 1, 0, and so on. After p positions the count of
    source s differs from p * weights[s] / sum(weights) by less than the number of sources.

    Args:
        weights: positions of each source in a period, whole numbers of at least 1.
    """

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 1 or sum(self.weights) > LONGEST_PERIOD:
            raise ValueError(
                f"weights={list(self.weights)}: give whole numbers of at least 1, with a sum of at most {LONGEST_PERIOD}"
            )

    def __call__(self, position: int) -> tuple[int, int]:
        """(source, how many earlier positions belong to it)."""
        rounds, place = divmod(position, sum(self.weights))
        source, before = _period(self.weights)[place]
        return source, rounds * self.weights[source] + before


@lru_cache(maxsize=8)
def _period(weights: tuple[int, ...]) -> list[tuple[int, int]]:
    """(source, earlier places of it) for each place: turn i of a source is due at the share (2i + 1) / (2 weight)."""
    turns = [
        (Fraction(2 * turn + 1, 2 * weight), source, turn)
        for source, weight in enumerate(weights)
        for turn in range(weight)
    ]
    return [(source, turn) for _, source, turn in sorted(turns)]


@dataclass(frozen=True)
class Stream(Dataset[dict[str, Any]]):
    """The endless training stream: `stream[p]` is the sample at position p.

    Args:
        images: all of them, one source after another.
        counts: images of each source, if these have `weights`.
        weights: relative share of the samples that each source has, see `Turns`. None: all images are one source.
    """

    images: Sequence[Source]
    framing: Framing
    seed: int = 0
    masks: MaskGenerator | None = None
    strict: bool = False
    captions: Captions | None = None
    counts: tuple[int, ...] = ()
    weights: tuple[int, ...] | None = None

    def number(self, position: int) -> int:
        """Which of `images` a position shows."""
        if self.weights is None:
            source, before, counts = 0, position, (len(self.images),)
        else:
            (source, before), counts = Turns(self.weights)(position), self.counts
        epoch, place = divmod(before, counts[source])
        return sum(counts[:source]) + int(_order(self.seed, epoch, counts[source], source)[place])

    def __getitem__(self, index: int) -> dict[str, Any]:
        original = self.number(index)
        name, image = open_readable(self.images, original, strict=self.strict)
        square = self.framing(image, generator(self.seed, "augment", index))
        hole = draw_hole(self.masks, self.framing.size, generator(self.seed, "hole", index))
        return {"image": square, "position": index, "name": name, **hole, **told(self.captions, name)}


@dataclass(frozen=True)
class HeldOut(Dataset[dict[str, Any]]):
    """The fixed validation list, `length` long, in rounds over the images; keyed by name, not by a seed."""

    images: Sequence[Source]
    framing: Framing
    length: int
    masks: MaskGenerator | None = None
    strict: bool = False
    captions: Captions | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, original = divmod(index, len(self.images))
        name, image = open_readable(self.images, original, strict=self.strict)
        square = self.framing(image, generator("validation", "augment", name, number))
        hole = draw_hole(self.masks, self.framing.size, generator("validation", "hole", name, number))
        return {"image": square, "position": index, "name": name, **hole, **told(self.captions, name)}


@lru_cache(maxsize=8)  # a batch may span two epochs of each of several sources
def _order(seed: int, epoch: int, count: int, source: int) -> Tensor:
    keys = ("order", epoch, source) if source else ("order", epoch)
    return torch.randperm(count, generator=generator(seed, *keys))


def draw_hole(masks: MaskGenerator | None, size: int, random: torch.Generator) -> dict[str, Tensor]:
    """The field "hole" (1,size,size), 1 = fill, or no field without `masks`."""
    return {} if masks is None else {"hole": masks([random], size, size)[0]}


def told(captions: Captions | None, name: str) -> dict[str, str]:
    """The field "text", or no field without `captions`."""
    return {} if captions is None else {"text": captions(name)}


class PositionSampler(Sampler[list[int]]):
    """Batches of positions for one rank: step k takes B positions from start + (k*W + rank)*B on.

    Args:
        start: gives the position training has reached, asked when a pass begins.
        length: batches in the whole run, which is what Lightning counts by.
        done: how many of these were trained on before this loader was made.
        batch_size: B, the batch of one rank.
        rank: of this process.
        world_size: W, the number of ranks.
    """

    def __init__(
        self,
        start: Callable[[], int],
        *,
        length: int,
        batch_size: int,
        done: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.start, self.length, self.done = start, length, done
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start() + self.rank * self.batch_size
        for step in range(self.length - self.done):
            position = first + step * self.world_size * self.batch_size
            yield list(range(position, position + self.batch_size))


class StreamLoader(DataLoader):
    """A loader that Lightning knows to be resumable; its state is the position, which `ImageDataModule` saves."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert not state_dict
