"""What an evaluation says: metrics with their provenance, a row for each mask set and method, intervals and differences."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rad.images.sources import ImageFile


@dataclass(frozen=True)
class Metric:
    """What a column means.

    Args:
        name: as in metrics.csv: "psnr", "perceptual-crop/nature64-resnet", "fd/nature64-resnet".
        title: a few words for the head of a table.
        better: which way is better; "none" where neither is (diversity).
        digits: decimals to be shown.
        provenance: all that the number depends on beside the images: extractor, hash of its weights, resize, range, region,
            library. Numbers with different provenance are never compared.
    """

    name: str
    title: str
    better: Literal["higher", "lower", "none"]
    digits: int
    provenance: dict[str, str]


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap 95 % interval over images; its ends are NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, on the images that both have.

    Args:
        low, high: of the bootstrap 95 % interval; NaN where there is none.
        p: of the paired test, adjusted for the number of methods compared (Holm); None where there are too few images.
        images: how many both have.
    """

    value: float
    low: float
    high: float
    p: float | None
    images: int

    @property
    def is_noise(self) -> bool:
        """Whether the difference may be chance: p >= 0.05, or unknown."""
        return self.p is None or self.p >= 0.05


@dataclass(frozen=True)
class Cost:
    """Of one sample, mean over the images of a row; None where it is not known. `peak_mib`: the largest."""

    nfe: float | None = None
    vjp: float | None = None
    seconds: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True)
class Row:
    """One method on one mask set.

    Args:
        group: hash of mask set, images and reference: rows of different groups are not ranked together.
        images, samples: number of images, and of samples of each.
        values: by name of the metric; absent where it could not be computed.
        against: differences from the baseline, by name of the metric; empty for the baseline itself.
        missing: number of images that others have and this method has not.
        provenance: number and hash of the references, hash of the masks.
    """

    mask: str
    method: str
    group: str
    images: int
    samples: int
    values: dict[str, Interval]
    against: dict[str, Difference] = field(default_factory=dict)
    cost: Cost = Cost()
    missing: int = 0
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One image by one method: its files and its numbers, by name of the metric."""

    mask: str
    method: str
    image: str
    sample: int
    file: Path
    reference: Path | ImageFile
    hole: Path
    values: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """All of it, in the order of mask sets and methods as given.

    Args:
        baseline: the method that others are compared with.
        rank_by: name of the metric by which rows are sorted and best and worst cases are chosen.
        run: how the results were made, from run.json (commands, commits, environments, options), and under "scoring" how they
            were scored.
        notes: remarks for the reader, such as a metric that was left out and why.
        unknown: number of result files that have no reference or no mask of their name.
    """

    metrics: list[Metric]
    rows: list[Row]
    results: list[Result]
    baseline: str
    rank_by: str
    run: dict[str, Any]
    notes: list[str]
    unknown: int = 0
