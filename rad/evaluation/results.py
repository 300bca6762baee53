"""The content of an evaluation: metrics with their provenance, a row per mask set and method, intervals, differences."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rad.evaluation.run_log import Run

if TYPE_CHECKING:
    from rad.images.sources import ImageFile

Better = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Args:
        name: as in metrics.csv: "psnr", "perceptual-crop/nature64-resnet", "fd/nature64-resnet".
        better, digits: the better direction, "none" for diversity; decimals shown.
        provenance: all that determines the value besides the images: extractor, hash of its weights, resize, range, ...
    """

    name: str
    title: str
    better: Better
    digits: int
    provenance: dict[str, str]


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap 95 % interval over images; unknown ends are NaN."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Method minus baseline on their common images.

    `p` of the paired test is adjusted for the number of methods (Holm); None for too few images.
    """

    value: float
    low: float
    high: float
    p: float | None
    images: int

    @property
    def is_noise(self) -> bool:
        """Whether the two are statistically indistinguishable: p >= 0.05, or too few images for a test."""
        return self.p is None or self.p >= 0.05


@dataclass(frozen=True)
class Cost:
    """Cost of one sample, averaged over the images of a row; None if unknown. `peak_mib` is the maximum."""

    nfe: float | None = None
    vjp: float | None = None
    seconds: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True)
class Row:
    """One method on one mask set.

    Args:
        group: hash of masks, images and references; only rows of one group are ranked together.
        samples: number of samples of each image.
        against: differences from the baseline, by metric name; empty for the baseline.
        missing: number of images of the mask set without a result of this method.
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
    """One output image: its files, and its values by metric name."""

    mask: str
    method: str
    image: str
    sample: int
    file: Path
    reference: "Path | ImageFile"
    hole: Path
    values: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """A whole evaluation; rows keep the order of mask sets and methods.

    Args:
        rank_by: name of the metric that sorts rows and selects the best and worst results.
        run: run.json of the results; its entry "scoring" describes the evaluation itself.
        notes: remarks for the reader, such as an omitted metric and the reason.
        unknown: number of result files without a reference or mask of the same name.
    """

    metrics: list[Metric]
    rows: list[Row]
    results: list[Result]
    baseline: str
    rank_by: str
    run: Run
    notes: list[str]
    unknown: int = 0
