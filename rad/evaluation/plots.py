"""Quality against cost as an SVG image: a panel for network calls, one for seconds, log axes, labels that keep apart."""

import math
import re
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from rad.evaluation.results import Metric, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#1f5f8b", "#b4532a", "#3b7d4f", "#7a5195", "#8a6d1d", "#b03a5b", "#2f8a8a", "#555555")
MARKERS = "osD^vPX*"
WIDTH, HEIGHTS = 11.6, (4.1, 6.5)  # inches; the more methods, the higher
Box = tuple[float, float, float, float]  # left, bottom, right, top


def plot_quality(rows: Sequence[Row], metric: Metric, *, families: Sequence[str], prefix: str) -> str | None:
    """An <svg> of `metric` with its intervals against NFE and against seconds for one sample, or None where nothing is known.

    Rows of one method with several steps (`ddnm@20`, `ddnm@50`) share a colour and are joined. Methods that never call
    the network are horizontal lines, in both panels. Each group of rows has its own marker.

    Args:
        families: method names without what follows "@", in the order of their colours.
        prefix: put before all ids of the image, so that several fit into one page.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if metric.name in row.values and math.isfinite(row.values[metric.name].value)]
    priced = [[(row, cost) for row in rows if _is_positive(cost := getattr(row.cost, name))] for name in COSTS]
    if not any(priced):
        return None
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.size": 9,
        "axes.edgecolor": "#888888",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, min(max(HEIGHTS[0], 2.5 + 0.17 * len(rows)), HEIGHTS[1])))
        FigureCanvasAgg(figure)
        figure.subplots_adjust(left=0.07, right=0.985, bottom=0.55 / figure.get_figheight(), top=0.97, wspace=0.12)
        for number, (points, title) in enumerate(zip(priced, COSTS.values(), strict=True)):
            axes = figure.add_subplot(1, 2, 1 + number)
            _panel(axes, rows, [(row, cost) for row, cost in points if row.cost.nfe != 0], metric, families)
            axes.set_xlabel(title)
            if number == 0:
                sense = f" ({metric.better} is better)" if metric.better != "none" else ""
                axes.set_ylabel(f"{metric.title}{sense}", parse_math=False)
        text = StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    image = text.getvalue()
    image = image[image.index("<svg") :]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", image)


COSTS = {"nfe": "network calls for one sample (NFE)", "seconds": "seconds for one sample"}


def family(method: str) -> str:
    """The method without its number of steps: "ddnm" of "ddnm@50", "rad,solver=ddim" of "rad@10,solver=ddim"."""
    call, comma, words = method.partition(",")
    return call.split("@")[0] + comma + words


def _is_positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _panel(
    axes: "Axes", rows: Sequence[Row], points: list[tuple[Row, float]], metric: Metric, families: Sequence[str]
) -> None:
    """Points, intervals and lines of one panel, then their labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    groups = list(dict.fromkeys(row.group for row in rows))
    free = [row for row in rows if row.cost.nfe == 0]
    axes.set_xscale("log")
    costs = [cost for _, cost in points] or [1.0]
    low, high = min(costs), max(costs)
    room = max((high / low) ** 0.14, 1.5)
    axes.set_xlim(low / room, high * room)
    wide = high / low > 300
    subs = (1,) if wide else (1, 2, 5) if high / low > 5 else range(1, 10)
    axes.xaxis.set_major_locator(LogLocator(subs=tuple(subs), numticks=12))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5), numticks=30) if wide else NullLocator())
    for which in ("major", "minor"):
        axes.xaxis.set_tick_params(which=which, color="#888888")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for name in dict.fromkeys((family(row.method), row.group) for row, _ in points):
        line = sorted(
            (cost, row.values[metric.name].value) for row, cost in points if (family(row.method), row.group) == name
        )
        axes.plot(*zip(*line, strict=True), color=_color(name[0], families), linewidth=1, alpha=0.5)
    for row, cost in points:
        value, (below, above) = row.values[metric.name].value, _reach(row, metric)
        axes.errorbar(
            cost,
            value,
            yerr=[[value - below], [above - value]],
            fmt=MARKERS[groups.index(row.group) % len(MARKERS)],
            color=_color(family(row.method), families),
            markersize=5,
            capsize=2.5,
            linewidth=1,
        )
    for row in free:
        axes.axhline(
            row.values[metric.name].value, color=_color(family(row.method), families), linestyle="--", linewidth=1
        )
    axes.margins(y=0.12)
    axes.set_ylim(axes.get_ylim())
    _label(axes, points, free, metric, families)


def _color(name: str, families: Sequence[str]) -> str:
    return COLORS[list(families).index(name) % len(COLORS)]


def _reach(row: Row, metric: Metric) -> tuple[float, float]:
    """The interval, as wide as nothing where it is not known."""
    interval = row.values[metric.name]
    known = [end if math.isfinite(end) else interval.value for end in (interval.low, interval.high)]
    return min(known[0], interval.value), max(known[1], interval.value)


def _label(
    axes: "Axes", points: list[tuple[Row, float]], free: list[Row], metric: Metric, families: Sequence[str]
) -> None:
    """Each name goes to the first place beside its point where it covers least of what is there already."""
    from matplotlib.font_manager import FontProperties

    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    pixel = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    font = FontProperties(size=8.5)
    place = axes.transData.transform
    anchors: list[tuple[Row, float, float, float]] = []
    taken: list[Box] = []
    for row, cost in points:
        x, y = place((cost, row.values[metric.name].value))
        (_, low), (_, high) = (place((cost, end)) for end in _reach(row, metric))
        taken += [(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel), (x - pixel, low, x + pixel, high)]
        anchors.append((row, cost, x, y))
    for row in free:
        y = place((1, row.values[metric.name].value))[1]
        taken.append((frame.x0, y - pixel, frame.x1, y + pixel))
        anchors.append((row, 1.0, frame.x1, y))
    for row, across, x, y in anchors:
        width, height, _ = renderer.get_text_width_height_descent(row.method, font, False)
        spots = _line_spots(frame.width / pixel) if row in free else _point_spots()
        best: tuple[float, float, float, Box] | None = None
        for right, up in spots:
            left = x + right * pixel - (width if right < 0 else width / 2 if right == 0 else 0)
            bottom = y + up * pixel - height / 2
            box = (left, bottom, left + width, bottom + height)
            outside = width * height - _overlap(box, (frame.x0, frame.y0, frame.x1 + 8 * pixel, frame.y1))
            covered = 3 * outside + sum(_overlap(box, other) for other in taken)
            if best is None or covered < best[0]:
                best = (covered, right, up, box)
            if covered == 0:
                break
        assert best is not None
        _, right, up, box = best
        taken.append(box)
        far = math.hypot(right, up) > 16 and row not in free
        axes.annotate(
            row.method,
            (across, row.values[metric.name].value),
            xycoords=("axes fraction", "data") if row in free else "data",
            xytext=(right, up),
            textcoords="offset points",
            ha="right" if right < 0 else "center" if right == 0 else "left",
            va="center",
            color=_color(family(row.method), families),
            fontproperties=font,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": 0.5,
                "color": _color(family(row.method), families),
                "alpha": 0.6,
                "shrinkB": 4,
            }
            if far
            else None,
        )


def _point_spots() -> list[tuple[float, float]]:
    """Offsets in points, the nearest first: right, left, above, below, and askew."""
    near: list[tuple[float, float]] = [(7, 0), (-7, 0), (6, 7), (-6, 7), (6, -7), (-6, -7), (0, 10), (0, -10)]
    far = [
        (sign * right, up)
        for up in (14, -14, 22, -22, 32, -32, 44, -44, 60, -60)
        for right in (8, 24)
        for sign in (1, -1)
    ]
    return near + far


def _line_spots(length: float) -> list[tuple[float, float]]:
    """Offsets in points from the right end of a line: above and below it, further and further left."""
    return [(-2 - share * length, up) for share in (0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9) for up in (6, -6)]


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)
