"""The report of a comparison: summary.md to read anywhere, and report.html with plots and images, in one file."""

import json
import math
import re
import shlex
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from rad.console import counted
from rad.evaluation.plots import family, plot_quality
from rad.evaluation.results import Comparison, Difference, Interval, Metric, Result, Row
from rad.images.atomic import write_text
from rad.images.codecs import blank, open_image, to_tensor
from rad.images.sources import ImageFile
from rad.masks.files import read_mask

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE_BYTES = 10_000_000  # of images, estimated before they are made: the page stays well under 15 MB
LADDER = (
    (256, 100),
    (256, 85),
    (192, 80),
    (128, 75),
    (96, 70),
)  # longest side and WebP quality; 100: files as they are
TINY, SHEET_ROWS, CASES = 48, 8, 3
COSTS = {
    "nfe": ("NFE", "network calls for one sample of an image"),
    "vjp": ("VJP", "backward passes through the network for one sample of an image"),
    "seconds": ("seconds", "for one sample of an image"),
    "peak_mib": ("peak MiB", "the largest memory of all images; on a CPU that of the process, the model included"),
}
READING = (
    "Numbers in brackets are bootstrap 95 % intervals over images; there is none where all values are equal, and those of fewer "
    "than six images are too narrow.",
    "the best value of a group and all that cannot be told from it, by the test where one of the two is the baseline, "
    "otherwise because their intervals overlap; nothing where that would be all, or where the best has no interval.",
    "Means over images are compared with the baseline on the images that both have: paired sign-flip test, Holm over the "
    "methods of one metric and mask set, not over metrics or mask sets.",
    "marks a difference that may be chance (p ≥ 0.05, or too few images); for the others p is given. Distances between "
    "sets, precision and recall are not tested: look at their intervals.",
)
"""How to read the tables: intervals, what is bold, what is tested, and what the sign "≈" says."""
Kind = Literal["input", "result", "original"]
Opener = Callable[[Result], Image.Image]


@dataclass(frozen=True)
class Column:
    """Head of a column: `hint` explains it, `better` is as in `Metric`."""

    title: str
    hint: str
    better: str = "none"


@dataclass(frozen=True)
class MethodRun:
    """What a cell says; `order` sorts it, None comes last. `mark` is a word on the difference from the baseline."""

    text: str = "–"
    order: float | None = None
    interval: str = ""
    mark: str = ""
    verdict: str = ""
    hint: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table, its cells in the order of the columns."""

    row: Row
    cells: list[MethodRun]


@dataclass(frozen=True)
class Case:
    """A result to be shown, with its value."""

    result: Result
    value: str


@dataclass(frozen=True)
class MaskSet:
    """All about one mask set. `groups`: lines by group, best first. `sheet`: for each image the results of all methods.

    `cases`: the best and the worst results of each method by `case_metric`.
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


@dataclass(frozen=True)
class Shown:
    """An image as a data URI with the width and height to show it at; `missing` says why there is none."""

    uri: str = ""
    size: tuple[int, int] = (0, 0)
    tiny: bool = False
    missing: str = ""


def open_reference(result: Result) -> Image.Image:
    """The reference of a result as 8-bit RGB. Raises ValueError where it cannot be read."""
    reference = result.reference
    return reference.open() if isinstance(reference, ImageFile) else open_image(reference)


def write_report(comparison: Comparison, output: Path, *, open_reference: Opener = open_reference) -> list[Path]:
    """Write `output`/summary.md and `output`/report.html, each under a temporary name first; returns both paths.

    The page asks nothing of a network: images are inside. Those of at most 256 pixels are the files themselves, larger
    ones are reduced; where all together would go beyond `PAGE_BYTES`, every image is reduced further. An image that
    cannot be read leaves a gap that says so.

    Args:
        open_reference: gives the original of a result as 8-bit RGB; raises ValueError or OSError where it cannot.
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
    images = _Images(open_reference)
    images.fit(_all_images(mask_sets))
    content: dict[str, Any] = {
        "comparison": comparison,
        "commands": _commands(comparison.run),
        "facts": _facts(comparison.run),
        "columns": _columns(comparison),
        "mask_sets": mask_sets,
        "plots": plots,
        "ranked": ranked,
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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    return environment


def _plain(text: object) -> str:
    """Text on one line in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", " ".join(str(text).split()))


def _commands(run: dict[str, Any]) -> list[str]:
    """Of sampling, and that of scoring where it is another."""
    made = [*run.get("runs", []), run.get("scoring", {})]
    return list(dict.fromkeys(str(one["command"]) for one in made if "command" in one))


def _facts(run: dict[str, Any]) -> dict[str, dict[str, str]]:
    """run.json as titled lists; its commands, and its names of masks and methods, are elsewhere on the page."""
    runs = run.get("runs", [])
    facts = {"run": _of_runs([{key: one[key] for key in ("created", "commit") if key in one} for one in runs])}
    if "seed" in run.get("options", {}):
        facts["run"]["seed"] = _text(run["options"]["seed"])
    facts["environment"] = _of_runs([one.get("environment", {}) for one in runs])
    facts["options"] = _of_runs([one.get("options", run.get("options", {})) for one in runs])
    for title, entries in run.items():
        if isinstance(entries, dict) and title not in facts:
            facts[title] = {str(key): _text(value) for key, value in entries.items() if key != "command"}
    return {title: entries for title, entries in facts.items() if entries}


def _of_runs(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What is equal in all runs once, otherwise that of each, numbered as in the settings of the methods."""
    facts = {}
    for key in dict.fromkeys(key for one in runs for key in one):
        texts = [_text(one.get(key)) for one in runs]
        each = "; ".join(f"run {number}: {text}" for number, text in enumerate(texts))
        facts[str(key)] = each if len(set(texts)) > 1 else texts[0]
    return facts


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return shlex.join(str(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


# Tables


def _columns(comparison: Comparison) -> list[Column]:
    costs = [Column(*COSTS[name]) for name in _known_costs(comparison)]
    images = Column("images", "number of images, times samples of each")
    return [
        *costs,
        images,
        *(Column(metric.title, metric.name, metric.better) for metric in _known_metrics(comparison)),
    ]


def _known_costs(comparison: Comparison) -> list[str]:
    """The first three always, memory where any row has it."""
    return [n for n in COSTS if n != "peak_mib" or any(row.cost.peak_mib is not None for row in comparison.rows)]


def _known_metrics(comparison: Comparison) -> list[Metric]:
    """Those that any row has."""
    return [metric for metric in comparison.metrics if any(metric.name in row.values for row in comparison.rows)]


def _mask_set(comparison: Comparison, name: str) -> MaskSet:
    rows = [row for row in comparison.rows if row.mask == name]
    groups: dict[str, list[Line]] = {}
    for key in dict.fromkeys(row.group for row in rows):
        some = sorted((row for row in rows if row.group == key), key=lambda row: _rank(row, comparison))
        best = {metric.name: _best(metric, some, comparison.baseline) for metric in comparison.metrics}
        groups[key] = [Line(row, _cells(row, comparison, best)) for row in some]
    methods = list(dict.fromkeys(line.row.method for lines in groups.values() for line in lines))
    results = {method: [] for method in methods}
    for result in comparison.results:
        if result.mask == name and result.method in results:
            results[result.method].append(result)
    metric = _case_metric(comparison, [result for some in results.values() for result in some])
    rows_shown = max(3, min(SHEET_ROWS, 400 // ((len(methods) + 2) * len({row.mask for row in comparison.rows}))))
    return MaskSet(
        name=name,
        groups=groups,
        methods=methods,
        sheet=_sheet(results, metric, rows_shown),
        cases=_cases(results, metric),
        case_metric=metric,
        several=any(row.samples > 1 for row in rows),
    )


def _rank(row: Row, comparison: Comparison) -> tuple[bool, float]:
    """Sorts the best first, what has no value last."""
    better = {metric.name: metric.better for metric in comparison.metrics}.get(comparison.rank_by, "none")
    interval = row.values.get(comparison.rank_by)
    if interval is None or math.isnan(interval.value) or better == "none":
        return True, 0.0
    return False, interval.value if better == "lower" else -interval.value


def _best(metric: Metric, rows: Sequence[Row], baseline: str) -> set[str]:
    """The methods of the best value of a group and of those that cannot be told from it.

    None where that would be all, and where the best has no interval.
    """
    known = [row for row in rows if metric.name in row.values and not math.isnan(row.values[metric.name].value)]
    if metric.better == "none" or not known:
        return set()
    best = (max if metric.better == "higher" else min)(known, key=lambda row: row.values[metric.name].value)
    alike = {row.method for row in known if _is_alike(row, best, metric, baseline)}
    return set() if math.isnan(best.values[metric.name].low) or len(alike) == len(known) else alike


def _is_alike(row: Row, best: Row, metric: Metric, baseline: str) -> bool:
    """Whether a value cannot be told from the best one: by the paired test where one is the baseline, or else by intervals."""
    one, other = row.values[metric.name], best.values[metric.name]
    if _number(one.value, metric.digits) == _number(other.value, metric.digits):
        return True
    if baseline in (row.method, best.method):
        tested = (best if row.method == baseline else row).against.get(metric.name)
        if tested is not None:
            return tested.is_noise
    return one.low <= other.high and other.low <= one.high


def _cells(row: Row, comparison: Comparison, best: dict[str, set[str]]) -> list[MethodRun]:
    cells = [_cost(getattr(row.cost, name)) for name in _known_costs(comparison)]
    cells.append(
        MethodRun(
            f"{row.images}" if row.samples == 1 else f"{row.images} × {row.samples}",
            row.images * row.samples,
            mark=f"{row.missing} missing" if row.missing else "",
            verdict="worse",
            hint="images that others have and this method has not" if row.missing else "",
        )
    )
    for metric in _known_metrics(comparison):
        interval = row.values.get(metric.name)
        if interval is None or math.isnan(interval.value):
            cells.append(MethodRun(hint="not known"))
            continue
        text = _number(interval.value, metric.digits)
        difference = row.against.get(metric.name)
        mark, verdict, hint = _judge(difference, metric, comparison.baseline) if difference else ("", "", "")
        ends = _ends(interval, lambda end, metric=metric: _number(end, metric.digits))
        cells.append(MethodRun(text, interval.value, ends, mark, verdict, hint, row.method in best[metric.name]))
    return cells


def _ends(interval: Interval | Difference, written: Callable[[float], str]) -> str:
    """[low, high], nothing where it is not known."""
    ends = interval.low, interval.high
    return "" if any(math.isnan(end) for end in ends) else f"[{written(ends[0])}, {written(ends[1])}]"


def _judge(difference: Difference, metric: Metric, baseline: str) -> tuple[str, str, str]:
    """(mark, verdict, explanation) of a difference from the baseline."""

    def signed(value: float) -> str:
        return f"{value:+.{metric.digits + 1}f}"

    size = " ".join(part for part in (signed(difference.value), _ends(difference, signed)) if part)
    said = f"{size} from {baseline} on {difference.images} images"
    if difference.p is None:
        return "≈", "noise", f"may be chance: {said}, too few for a test"
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    if difference.is_noise:
        return "≈", "noise", f"may be chance: {said}; paired test, {p}"
    more = "higher" if difference.value > 0 else "lower"
    verdict = "" if metric.better == "none" else "better" if more == metric.better else "worse"
    return f"{verdict or more}, {p}", verdict, f"{said}; paired test, {p}"


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _cost(value: float | None) -> MethodRun:
    if value is None or not math.isfinite(value):
        return MethodRun()
    digits = 0 if value >= 100 or value == round(value) else 1 if value >= 10 else 2
    return MethodRun(f"{value:.{digits}f}" if value == 0 or value >= 0.01 else f"{value:.1g}", value)


# Images


def _case_metric(comparison: Comparison, results: Sequence[Result]) -> Metric | None:
    """The metric to rank by, or the first that single images have where that is one of whole sets."""
    metrics = sorted(comparison.metrics, key=lambda metric: metric.name != comparison.rank_by)
    known = {name for result in results for name, value in result.values.items() if not math.isnan(value)}
    return next((metric for metric in metrics if metric.name in known and metric.better != "none"), None)


def _case(result: Result, metric: Metric | None) -> Case:
    if metric is None or metric.name not in result.values:
        return Case(result, "")
    return Case(result, _number(result.values[metric.name], metric.digits))


def _sheet(results: dict[str, list[Result]], metric: Metric | None, rows: int) -> list[tuple[str, dict[str, Case]]]:
    """First samples of images that all methods have (or, where there is none, that any has), evenly over their names."""
    first: dict[str, dict[str, Result]] = {}
    for method, some in results.items():
        first[method] = {result.image: result for result in sorted(some, key=lambda result: -result.sample)}
    sets = [set(some) for some in first.values() if some]
    names = sorted(set.intersection(*sets) or set.union(*sets)) if sets else []
    chosen = [names[round(index)] for index in np.linspace(0, len(names) - 1, min(rows, len(names)))]
    return [
        (name, {method: _case(some[name], metric) for method, some in first.items() if name in some}) for name in chosen
    ]


def _cases(results: dict[str, list[Result]], metric: Metric | None) -> dict[str, tuple[list[Case], list[Case]]]:
    """The best results of each method, best first, and the worst, worst first; no result is in both."""
    if metric is None:
        return {}
    cases = {}
    for method, some in results.items():
        known = [result for result in some if not math.isnan(result.values.get(metric.name, math.nan))]
        known.sort(key=lambda result: (result.image, result.sample))
        known.sort(key=lambda result: result.values[metric.name], reverse=metric.better == "higher")
        best, worst = known[: min(CASES, (len(known) + 1) // 2)], known[::-1][: min(CASES, len(known) // 2)]
        if known:
            cases[method] = tuple([_case(result, metric) for result in part] for part in (best, worst))
    return cases


def _all_images(mask_sets: Sequence[MaskSet]) -> list[tuple[Kind, Result]]:
    """What the page will show, as often as it does."""
    shown: list[tuple[Kind, Result]] = []
    for mask_set in mask_sets:
        for _, row in mask_set.sheet:
            some = [case.result for case in row.values()]
            shown.extend([("input", some[0]), ("original", some[0])])
            shown.extend(("result", result) for result in some)
        for result in (case.result for best, worst in mask_set.cases.values() for case in best + worst):
            shown.extend([("input", result), ("result", result), ("original", result)])
    return shown


class _Images:
    """Data URIs of images, each made once, all by the same rule: `reduction`, a rung of `LADDER`."""

    def __init__(self, open_reference: Opener) -> None:
        self.open_reference = open_reference
        self.reduction = LADDER[0]
        self._made: dict[tuple[Kind, str, str], Shown] = {}

    def fit(self, shown: Sequence[tuple[Kind, Result]]) -> None:
        """Reduce as little as makes all of them fit into `PAGE_BYTES`, judged by forty of them."""
        if not shown:
            return
        chosen = np.random.default_rng(0).choice(len(shown), min(40, len(shown)), replace=False)
        for self.reduction in LADDER:
            self._made.clear()
            sizes = [len(self.show(*shown[index]).uri) for index in chosen]
            if sum(sizes) / len(sizes) * len(shown) <= PAGE_BYTES:
                break

    def show(self, kind: Kind, result: Result, side: int = 112) -> Shown:
        """The image, to be shown at about `side` pixels, tiny ones enlarged by a whole number."""
        file = result.file if kind == "result" else result.reference
        key = (kind, str(file), str(result.hole) if kind == "input" else "")
        if key not in self._made:
            try:
                self._made[key] = self._make(kind, result)
            except (ValueError, OSError) as error:
                self._made[key] = Shown(missing=" ".join(str(error).split()))
        shown = self._made[key]
        longest = max(*shown.size, 1)
        tiny = longest <= TINY
        factor = max(math.ceil(96 / longest), min(side, 160) // longest) if tiny else side / longest
        width, height = (max(1, round(length * factor)) for length in shown.size)
        return replace(shown, size=(width, height), tiny=tiny)

    def describe(self) -> str:
        """The rule in words."""
        longest, quality = self.reduction
        if quality == 100:
            return f"Images of at most {longest} pixels are the files themselves, larger ones are reduced to that."
        return f"Images are reduced to at most {longest} pixels and compressed, to keep the page small."

    def _make(self, kind: Kind, result: Result) -> Shown:
        image = open_image(result.file, name=str(result.file)) if kind == "result" else self.open_reference(result)
        if kind == "input":
            image = blank(to_tensor(image), read_mask(result.hole, size=(image.height, image.width)))
        longest, quality = self.reduction
        if quality == 100 and max(image.size) <= longest:
            data, form = BytesIO(), "png"
            image.save(data, format="PNG")
            raw = result.file.read_bytes() if kind == "result" else b""
            raw = raw if raw.startswith(b"\x89PNG") else data.getvalue()
        else:
            image = image.copy()
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            data, form = BytesIO(), "webp"
            image.save(data, format="WEBP", quality=min(quality, 85))
            raw = data.getvalue()
        return Shown(f"data:image/{form};base64,{b64encode(raw).decode()}", image.size)
