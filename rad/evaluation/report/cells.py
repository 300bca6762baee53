"""The tables of the report: columns, cells, best values, and the words for a difference from the baseline."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rad.evaluation.results import Comparison, Difference, Interval, Metric, Row

COSTS = {
    "nfe": ("NFE", "network evaluations for one sample of an image"),
    "vjp": ("VJP", "backward passes through the network for one sample of an image"),
    "seconds": ("seconds", "for one sample of an image"),
    "peak_mib": ("peak MiB", "largest memory over all images; on a CPU, memory of the process including the model"),
}


@dataclass(frozen=True)
class Column:
    """Head of a column with its explanation; `better` as in `Metric`."""

    title: str
    hint: str
    better: str = "none"


@dataclass(frozen=True)
class Cell:
    """A cell: `order` is its sort key, None comes last; `mark` is the test against the baseline in a word."""

    text: str = "–"
    order: float | None = None
    interval: str = ""
    mark: str = ""
    verdict: str = ""
    hint: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row with its cells in the order of the columns."""

    row: Row
    cells: list[Cell]


def columns(comparison: Comparison) -> list[Column]:
    """The columns of a table: numbers of images, costs, and the metrics that have values."""
    images = Column("images", "number of images, times samples of each")
    costs = [Column(*COSTS[name]) for name in _known_costs(comparison)]
    metrics = [Column(metric.title, metric.name, metric.better) for metric in _known_metrics(comparison)]
    return [*costs, images, *metrics]


def grouped_lines(comparison: Comparison, mask: str) -> dict[str, list[Line]]:
    """The lines of a mask set by group, best first."""
    rows = [row for row in comparison.rows if row.mask == mask]
    groups: dict[str, list[Line]] = {}
    for group in dict.fromkeys(row.group for row in rows):
        some = sorted((row for row in rows if row.group == group), key=lambda row: _rank(row, comparison))
        best = {metric.name: _best(metric, some, comparison.baseline) for metric in comparison.metrics}
        groups[group] = [Line(row, _cells(row, comparison, best)) for row in some]
    return groups


def number(value: float, digits: int) -> str:
    """A value with fixed decimals; "–" for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _known_costs(comparison: Comparison) -> list[str]:
    return [n for n in COSTS if n != "peak_mib" or any(row.cost.peak_mib is not None for row in comparison.rows)]


def _known_metrics(comparison: Comparison) -> list[Metric]:
    return [metric for metric in comparison.metrics if any(metric.name in row.values for row in comparison.rows)]


def _rank(row: Row, comparison: Comparison) -> tuple[bool, float]:
    """Sort key: the best first, rows without a value last."""
    better = next((metric.better for metric in comparison.metrics if metric.name == comparison.rank_by), "none")
    interval = row.values.get(comparison.rank_by)
    if interval is None or math.isnan(interval.value) or better == "none":
        return True, 0.0
    return False, interval.value if better == "lower" else -interval.value


def _best(metric: Metric, rows: Sequence[Row], baseline: str) -> set[str]:
    """Methods that are statistically indistinguishable from the best; none if all are, or without its interval."""
    known = [row for row in rows if metric.name in row.values and not math.isnan(row.values[metric.name].value)]
    if metric.better == "none" or not known:
        return set()
    best = (max if metric.better == "higher" else min)(known, key=lambda row: row.values[metric.name].value)
    alike = {row.method for row in known if _is_alike(row, best, metric, baseline)}
    return set() if math.isnan(best.values[metric.name].low) or len(alike) == len(known) else alike


def _is_alike(row: Row, best: Row, metric: Metric, baseline: str) -> bool:
    """By the paired test if one of both is the baseline, otherwise by overlapping intervals."""
    value, other = row.values[metric.name], best.values[metric.name]
    if number(value.value, metric.digits) == number(other.value, metric.digits):
        return True
    if baseline in (row.method, best.method):
        tested = (best if row.method == baseline else row).against.get(metric.name)
        if tested is not None:
            return tested.is_noise
    return value.low <= other.high and other.low <= value.high


def _cells(row: Row, comparison: Comparison, best: dict[str, set[str]]) -> list[Cell]:
    cells = [_cost(getattr(row.cost, name)) for name in _known_costs(comparison)]
    cells.append(
        Cell(
            f"{row.images}" if row.samples == 1 else f"{row.images} × {row.samples}",
            row.images * row.samples,
            mark=f"{row.missing} missing" if row.missing else "",
            verdict="worse",
            hint="images of the mask set without a result of this method" if row.missing else "",
        )
    )
    for metric in _known_metrics(comparison):
        interval = row.values.get(metric.name)
        if interval is None or math.isnan(interval.value):
            cells.append(Cell(hint="not known"))
            continue
        tested = row.against.get(metric.name)
        mark, verdict, hint = _judge(tested, metric, comparison.baseline) if tested else ("", "", "")
        ends = _ends(interval, lambda end, digits=metric.digits: number(end, digits))
        text, is_best = number(interval.value, metric.digits), row.method in best[metric.name]
        cells.append(Cell(text, interval.value, ends, mark, verdict, hint, is_best))
    return cells


def _ends(interval: Interval | Difference, written: Callable[[float], str]) -> str:
    ends = interval.low, interval.high
    return "" if any(math.isnan(end) for end in ends) else f"[{written(ends[0])}, {written(ends[1])}]"


def _judge(difference: Difference, metric: Metric, baseline: str) -> tuple[str, str, str]:
    def signed(value: float) -> str:
        return f"{value:+.{metric.digits + 1}f}"

    size = " ".join(part for part in (signed(difference.value), _ends(difference, signed)) if part)
    hint = f"{size} against {baseline} on {difference.images} images"
    if difference.p is None:
        return "≈", "noise", f"not tested: {hint}, too few images for a test"
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    if difference.is_noise:
        return "≈", "noise", f"statistically indistinguishable: {hint}; paired test, {p}"
    direction = "higher" if difference.value > 0 else "lower"
    verdict = "" if metric.better == "none" else "better" if direction == metric.better else "worse"
    return f"{verdict or direction}, {p}", verdict, f"{hint}; paired test, {p}"


def _cost(value: float | None) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell()
    digits = 0 if value >= 100 or value == round(value) else 1 if value >= 10 else 2
    return Cell(f"{value:.{digits}f}" if value == 0 or value >= 0.01 else f"{value:.1g}", value)
