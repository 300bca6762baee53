"""The files of a comparison: metrics.csv, sets.csv and provenance.json, each written whole."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path

from rad.evaluation.layout import MaskResults
from rad.evaluation.results import Comparison, Cost
from rad.evaluation.run_log import COSTS
from rad.images.atomic import write_text
from rad.streams import to_cell

NAMES = ("metrics.csv", "sets.csv", "provenance.json")


def write_tables(comparison: Comparison, output: Path, files: Sequence[MaskResults], seed: int) -> None:
    """Write a line per image, a line per row, and the provenance of every number."""
    texts = (_metrics(comparison, files), _sets(comparison), _provenance(comparison, seed))
    for name, text in zip(NAMES, texts, strict=True):
        write_text(output / name, text)


def _metrics(comparison: Comparison, files: Sequence[MaskResults]) -> str:
    names = [metric.name for metric in comparison.metrics if any(metric.name in r.values for r in comparison.results)]
    costs = {mask_set.name: mask_set.costs for mask_set in files}
    lines: list[list[object]] = [["mask", "method", "image", "sample", *names, *COSTS[1:]]]
    for result in comparison.results:
        cost = costs[result.mask].get(result.method, {}).get(result.image, Cost())
        values = [result.values.get(name) for name in names]
        names_of = map(to_cell, (result.mask, result.method, result.image))
        lines.append([*names_of, result.sample, *values, *_costs(cost)])
    return _csv(lines)


def _sets(comparison: Comparison) -> str:
    names = [metric.name for metric in comparison.metrics]
    heads = [head for name in names for head in (name, f"{name}_low", f"{name}_high")]
    lines: list[list[object]] = [["mask", "method", "group", "images", "samples", "missing", *COSTS[1:], *heads]]
    for row in comparison.rows:
        bounds = [asdict(row.values[name]) if name in row.values else {} for name in names]
        values = [interval.get(part) for interval in bounds for part in ("value", "low", "high")]
        line = [to_cell(row.mask), to_cell(row.method), row.group, row.images, row.samples, row.missing]
        lines.append([*line, *_costs(row.cost), *values])
    return _csv(lines)


def _provenance(comparison: Comparison, seed: int) -> str:
    keys = ("mask", "method", "group", "images", "samples")
    content = {
        "metrics": {metric.name: asdict(metric) for metric in comparison.metrics},
        "rows": [{name: getattr(row, name) for name in keys} | row.provenance for row in comparison.rows],
        "baseline": comparison.baseline,
        "rank_by": comparison.rank_by,
        "seed": seed,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _costs(cost: Cost) -> list[float | None]:
    return [getattr(cost, name) for name in COSTS[1:]]


def _csv(lines: Iterable[Sequence[object]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in line] for line in lines)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.8g}"
