"""Writes summary.md and report.html from a comparison with the templates beside this file."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rad.console import counted
from rad.evaluation.report.cells import Line, columns, grouped_lines
from rad.evaluation.report.images import Case, Images, Kind, Opener, best_and_worst, case_metric, open_reference, sheet
from rad.evaluation.report.plots import family, plot_quality
from rad.evaluation.results import Comparison, Metric, Result, Row
from rad.evaluation.run_log import Run
from rad.images.atomic import write_text
from rad.streams import printable

if TYPE_CHECKING:
    from jinja2 import Environment

SHEET_ROWS = 8
READING = {
    "intervals": "Brackets: bootstrap 95 % confidence intervals over images. Equal values have no interval. With fewer than "
    "six images, intervals are too narrow.",
    "bold": "the best value of a group, and every value that is statistically indistinguishable from it. The paired test "
    "decides if one of the two is the baseline; otherwise their intervals must overlap. Nothing is bold if this holds for all "
    "values, or if the best value has no interval.",
    "test": "Test: a paired sign-flip permutation test compares the mean over the common images with the baseline. Holm's "
    "correction covers the methods of one metric and mask set.",
    "noise": "marks a method that is statistically indistinguishable from the baseline (p ≥ 0.05, or fewer than six images); "
    "other differences show p. Distances between sets, precision and recall are not tested: compare their intervals.",
}
"""How to read the tables."""


@dataclass(frozen=True)
class MaskSet:
    """The content of one mask set: lines by group, images of the sheet, best and worst results of each method.

    `several`: whether an image has several samples.
    """

    name: str
    groups: dict[str, list[Line]]
    methods: list[str]
    sheet: list[tuple[str, dict[str, Case]]]
    cases: dict[str, tuple[list[Case], list[Case]]]
    case_metric: Metric | None
    several: bool

    @property
    def rows(self) -> list[Row]:
        return [line.row for lines in self.groups.values() for line in lines]

    def shown(self) -> list[tuple[Kind, Result]]:
        """The images on the page, with repetitions."""
        images: list[tuple[Kind, Result]] = []
        for _, row in self.sheet:
            results = [case.result for case in row.values()]
            images.extend([("input", results[0]), ("original", results[0])])
            images.extend(("result", result) for result in results)
        for result in (case.result for best, worst in self.cases.values() for case in best + worst):
            images.extend([("input", result), ("result", result), ("original", result)])
        return images


def write_report(comparison: Comparison, output: Path, *, open_reference: Opener = open_reference) -> list[Path]:
    """Write summary.md and report.html atomically into `output`; returns both paths.

    The page contains all its images and needs no network. Images above 256 pixels are reduced, and all images if they
    would exceed 10 MB together. An unreadable image leaves a labelled gap. `open_reference` opens the original of a
    result as 8-bit RGB; it may raise ValueError or OSError.
    """
    from markupsafe import Markup

    mask_sets = [_mask_set(comparison, name) for name in dict.fromkeys(row.mask for row in comparison.rows)]
    families = list(dict.fromkeys(family(row.method) for row in comparison.rows))
    ranked = next((metric for metric in comparison.metrics if metric.name == comparison.rank_by), None)
    plots = {
        mask_set.name: Markup(plot_quality(mask_set.rows, ranked, families=families, prefix=f"plot{number}") or "")
        for number, mask_set in enumerate(mask_sets)
        if ranked is not None
    }
    images = Images(open_reference)
    images.fit([shown for mask_set in mask_sets for shown in mask_set.shown()])
    content = {
        "comparison": comparison,
        "commands": _commands(comparison.run),
        "facts": _facts(comparison.run),
        "columns": columns(comparison),
        "mask_sets": mask_sets,
        "plots": plots,
        "ranked": ranked,
        "rank_title": ranked.title if ranked else comparison.rank_by,
        "image": images.show,
        "reading": READING,
        "reduction": images.describe(),
        "method_count": len({row.method for row in comparison.rows}),
        "row_keys": list(dict.fromkeys(key for row in comparison.rows for key in row.provenance)),
        "provenance_keys": list(dict.fromkeys(key for metric in comparison.metrics for key in metric.provenance)),
        "arrow": {"higher": " ↑", "lower": " ↓", "none": ""},
        "sorted_as": {"higher": "descending", "lower": "ascending", "none": "none"},
        "counted": counted,
    }
    output.mkdir(parents=True, exist_ok=True)
    return [
        write_text(output / name, _templates().get_template(name).render(content))
        for name in ("summary.md", "report.html")
    ]


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("rad.evaluation.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    environment.filters["plain"] = _plain
    return environment


def _printable(value: object) -> object:
    """Text with its lines, and escapes in place of other control characters and broken letters of file names."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


def _plain(text: object) -> str:
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", " ".join(str(text).split()))


def _commands(run: Run) -> list[str]:
    entries = [*run.get("runs", []), run.get("scoring", {})]
    return list(dict.fromkeys(str(entry["command"]) for entry in entries if "command" in entry))


def _facts(run: Run) -> dict[str, dict[str, str]]:
    """run.json as titled lists, without commands."""
    runs = run.get("runs", [])
    facts = {"run": _merged([{key: entry[key] for key in ("created", "commit") if key in entry} for entry in runs])}
    if "seed" in run.get("options", {}):
        facts["run"]["seed"] = _text(run["options"]["seed"])
    facts["environment"] = _merged([entry.get("environment", {}) for entry in runs])
    facts["options"] = _merged([entry.get("options", run.get("options", {})) for entry in runs])
    for title, entries in run.items():
        if isinstance(entries, dict) and title not in facts:
            facts[title] = {str(key): _text(value) for key, value in entries.items() if key != "command"}
    return {title: entries for title, entries in facts.items() if entries}


def _merged(runs: Sequence[Run]) -> dict[str, str]:
    """A value that all runs share once, otherwise the value of each run."""
    facts = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        texts = [_text(run.get(key)) for run in runs]
        each = "; ".join(f"run {number}: {text}" for number, text in enumerate(texts))
        facts[str(key)] = each if len(set(texts)) > 1 else texts[0]
    return facts


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return shlex.join(str(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _mask_set(comparison: Comparison, name: str) -> MaskSet:
    groups = grouped_lines(comparison, name)
    rows = [line.row for lines in groups.values() for line in lines]
    results: dict[str, list[Result]] = {row.method: [] for row in rows}
    for result in comparison.results:
        if result.mask == name and result.method in results:
            results[result.method].append(result)
    metric = case_metric(comparison, [result for some in results.values() for result in some])
    mask_count = len({row.mask for row in comparison.rows})
    sheet_rows = max(3, min(SHEET_ROWS, 400 // ((len(results) + 2) * mask_count)))
    return MaskSet(
        name=name,
        groups=groups,
        methods=list(results),
        sheet=sheet(results, metric, sheet_rows),
        cases=best_and_worst(results, metric),
        case_metric=metric,
        several=any(row.samples > 1 for row in rows),
    )
