"""Quality against cost as SVG: one panel for NFE, one for seconds, with logarithmic costs and one legend."""

import math
import re
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, TypedDict

from rad.evaluation.results import Metric, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {"nfe": "network evaluations (NFE) per sample", "seconds": "seconds per sample"}
COLORS = ("#1f5f8b", "#b4532a", "#3b7d4f", "#7a5195", "#8a6d1d", "#b03a5b", "#2f8a8a", "#555555")
MARKERS = "osD^vPX*"
FILLS = ("full", "none", "left", "right", "top", "bottom")


class Style(TypedDict):
    """Keyword arguments of matplotlib's lines."""

    color: str
    marker: str
    fillstyle: str
    label: str


def plot_quality(rows: Sequence[Row], metric: Metric, *, families: Sequence[str], prefix: str) -> str | None:
    """An <svg> of `metric` with its intervals against the cost of one sample; None if no cost or value is known.

    Rows of one method with different steps (`ddnm@20`, `ddnm@50`) form one line. Methods without network evaluations are
    horizontal lines. Each group of rows has its own filling of the markers.

    `families` gives method names without steps in the order of their colours. `prefix` makes the ids unique in a page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in rows if metric.name in row.values and math.isfinite(row.values[metric.name].value)]
    if not any(_cost(row, name) for row in rows for name in COSTS):
        return None
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.group, family(row.method)), []).append(row)
    groups = list(dict.fromkeys(row.group for row in rows))
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 9, "axes.edgecolor": "#888888"}
    ):
        figure = Figure(figsize=(11.6, max(4.1, 0.5 + 0.17 * len(lines))), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, cost in zip(panels, COSTS, strict=True):
            for (group, name), some in lines.items():
                place = families.index(name)
                style = Style(
                    color=COLORS[place % len(COLORS)],
                    marker=MARKERS[place // len(COLORS) % len(MARKERS)],
                    fillstyle=FILLS[groups.index(group) % len(FILLS)],
                    label=f"{name} (group {group[:8]})" if len(groups) > 1 else name,
                )
                _draw(axes, some, metric, cost, style)
            _set_axes(axes, [value for row in rows if (value := _cost(row, cost))])
            axes.set_xlabel(COSTS[cost])
        sense = f" ({metric.better} is better)" if metric.better != "none" else ""
        panels[0].set_ylabel(f"{metric.title}{sense}", parse_math=False)
        entries = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        legend = figure.legend(list(entries.values()), list(entries), loc="outside right upper", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        svg = StringIO()
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    image = svg.getvalue()
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", image[image.index("<svg") :])


def family(method: str) -> str:
    """The method without its number of steps: "ddnm" of "ddnm@50", "rad,solver=ddim" of "rad@10,solver=ddim"."""
    call, comma, words = method.partition(",")
    return call.split("@")[0] + comma + words


def _cost(row: Row, name: str) -> float | None:
    value = getattr(row.cost, name)
    return value if value is not None and 0 < value < math.inf else None


def _draw(axes: "Axes", rows: Sequence[Row], metric: Metric, cost: str, style: Style) -> None:
    """The points of one line with their intervals and numbers of steps, or a dashed line for a method without NFE."""
    for row in rows:
        if row.cost.nfe == 0:
            axes.axhline(
                row.values[metric.name].value, color=style["color"], label=style["label"], linestyle="--", linewidth=1
            )
    points = sorted((value, row.method) for row in rows if row.cost.nfe != 0 and (value := _cost(row, cost)))
    if not points:
        return
    intervals = {row.method: row.values[metric.name] for row in rows}
    shown = [intervals[method] for _, method in points]
    ends = [[max(0.0, bar.value - bar.low), max(0.0, bar.high - bar.value)] for bar in shown]
    bars = [[end if math.isfinite(end) else 0.0 for end in side] for side in zip(*ends, strict=True)]
    x, y = [value for value, _ in points], [bar.value for bar in shown]
    axes.errorbar(x, y, yerr=bars, markersize=5, capsize=2.5, linewidth=1, **style)
    for place, (_, method) in zip(zip(x, y, strict=True), points, strict=True):
        steps = method.partition(",")[0].partition("@")[2]
        axes.annotate(steps, place, (5, 4), textcoords="offset points", fontsize=7.5, color=style["color"])


def _set_axes(axes: "Axes", costs: Sequence[float]) -> None:
    """A logarithmic cost axis with as many ticks as its range needs."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    low, high = min(costs, default=1.0), max(costs, default=1.0)
    ratio = high / low
    room = max(ratio**0.15, 1.5)  # wide enough for two ticks
    axes.set_xlim(low / room, high * room)
    wide = ratio > 300
    subs = (1,) if wide else (1, 2, 5) if ratio > 5 else range(1, 10)
    axes.xaxis.set_major_locator(LogLocator(subs=tuple(subs), numticks=12))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5), numticks=30) if wide else NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
