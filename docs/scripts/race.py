"""Draws docs/images/race.webp from a scored comparison: network calls against quality, with 95 % intervals.

    python docs/scripts/race.py runs/photographs
    python docs/scripts/race.py runs/photographs --items strokes objects --metric fd-crop --output runs/race.webp
    python docs/scripts/race.py runs/race --items box half --metric fd-crop --one_window

Reads results/sets.csv and computes no result. Calls are those of one window: an image with several windows needs a multiple.
Systems without a network are shown by the best of them, as a line.
"""

import argparse
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, NullLocator

from rad.methods import METHODS
from rad.methods.registry import cost

OUTPUT = Path(__file__).resolve().parents[1] / "images" / "race.webp"
ITEMS = ("lettering", "strokes")
WIDTH, HEIGHT, DPI = 1256, 470, 100
"""Of the picture, in pixels; README shows it at about 900."""
RAD, OTHER, INK, FAINT = "#c2410c", "#475569", "#202124", "#d6d9de"

NAMES = {
    "replacement": "Replacement",
    "repaint": "RePaint",
    "ddrm": "DDRM",
    "ddnm": "DDNM",
    "diffpir": "DiffPIR",
    "diffusers-repaint": "RePaint (diffusers)",
    "deepinv-ddrm": "DDRM (deepinv)",
    "deepinv-diffpir": "DiffPIR (deepinv)",
    "biharmonic": "biharmonic",
    "telea": "OpenCV Telea",
    "navier_stokes": "OpenCV Navier-Stokes",
    "opencv-telea": "OpenCV Telea",
    "opencv-navier-stokes": "OpenCV Navier-Stokes",
    "patchmatch": "PatchMatch",
}
METRICS = {
    "perceptual-crop": "distance from the original",
    "lpips-crop": "LPIPS",
    "psnr-hole": "PSNR in the hole (dB)",
    "fd-crop": "Fréchet distance",
}
HIGHER = ("psnr-hole",)
LINES = 17
"""Lines of labels in the height of a plot."""


@dataclass(frozen=True)
class Point:
    """A system on an item: calls of one window (0: no network), and quality with its 95 % interval."""

    system: str
    calls: float
    value: float
    low: float
    high: float
    images: int


def calls(system: str, measured: float, *, one_window: bool = False) -> float:
    """Network calls of one window: by the label for methods of this project, as measured for other systems.

    `one_window`: each image is one window, so all are as measured.
    """
    label = re.fullmatch(r"(\w+?)(?:@(\d+)(nfe)?)?", system)
    if one_window or label is None or label[1] not in METHODS or not measured:
        return measured
    if label[3]:
        return float(label[2])
    method = METHODS[label[1]]()
    return float(cost(method, int(label[2]) if label[2] else method.preset_steps).nfe)


def read(path: Path, item: str, metric: str, *, one_window: bool = False) -> list[Point]:
    """Points of an item. Raises ValueError if the file lacks the item or the metric."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mask"] == item]
    columns = [name for name in (rows[0] if rows else {}) if name.split("/")[0] == metric and not name.endswith("_low")]
    if not columns:
        raise ValueError(f"{path} has no {metric} of {item}: run benchmarks/photographs.py with this item")
    value, low, high = (f"{columns[0]}{end}" for end in ("", "_low", "_high"))
    return [
        Point(
            row["method"],
            calls(row["method"], float(row["nfe"] or 0), one_window=one_window),
            float(row[value]),
            float(row[low] or "nan"),
            float(row[high] or "nan"),
            int(row["images"]),
        )
        for row in rows
        if row[value]
    ]


def beside(points: Sequence[Point], taken: Sequence[Point]) -> list[Point]:
    """Points of equal calls next to each other instead of on top of each other and of those `taken`."""
    counts = Counter(point.calls for point in taken)
    moved = []
    for point in sorted(points, key=lambda point: point.value):
        moved.append(replace(point, calls=point.calls * 1.09 ** counts[point.calls]))
        counts[point.calls] += 1
    return moved


def show(axes: Axes, points: Sequence[Point], *, higher: bool) -> None:
    """RAD as a curve, other methods as points, the best system without a network as a line."""
    rad = sorted((point for point in points if point.system.startswith("rad@")), key=lambda point: point.calls)
    others = beside([point for point in points if point.calls and not point.system.startswith("rad")], rad)
    classical = [point for point in points if not point.calls]
    if classical:
        best = (max if higher else min)(classical, key=lambda point: point.value)
        axes.axhline(best.value, color=OTHER, linewidth=1.2, linestyle=(0, (4, 3)))
        text = f"{NAMES.get(best.system, best.system)}, no network"
        axes.annotate(
            text,
            (0.995, best.value),
            (0, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=OTHER,
            fontsize=10.5,
        )
    for group, colour, line in ((others, OTHER, ""), (rad, RAD, "-")):
        bars = axes.errorbar(
            [point.calls for point in group],
            [point.value for point in group],
            [[abs(point.value - point.low) for point in group], [abs(point.high - point.value) for point in group]],
            fmt="o" + line, color=colour, markersize=7 if group is rad else 5.5, linewidth=2.2, elinewidth=1.1, capsize=0,
        )  # fmt: skip
        bars[2][0].set_alpha(0.45)
    if rad:
        place = (rad[0].calls, rad[0].value)
        axes.annotate("RAD", place, (9, 9), textcoords="offset points", color=RAD, fontsize=13, fontweight="bold")
    if not higher:
        axes.set_ylim(bottom=0)
    label(axes, others)


def label(axes: Axes, points: Sequence[Point]) -> None:
    """Names to the right of each group of points of similar calls, from low to high, at least a line apart."""
    line = (axes.get_ylim()[1] - axes.get_ylim()[0]) / LINES
    halo = [Stroke(linewidth=3, foreground="white"), Normal()]
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.calls):
        if not groups or point.calls > 1.5 * groups[-1][-1].calls:
            groups.append([])
        groups[-1].append(point)
    for group in groups:
        y = -line
        for point in sorted(group, key=lambda point: point.value):
            y = max(point.value, y + line)
            name = NAMES.get(point.system.partition("@")[0], point.system)
            text = axes.annotate(
                name, (group[-1].calls, y), (8, 0), textcoords="offset points", color=OTHER, va="center"
            )
            text.set_fontsize(10.5)
            text.set_path_effects(halo)


def draw(results: Path, items: Sequence[str], metric: str, output: Path, *, one_window: bool = False) -> None:
    """Write the picture: a plot for each item."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 11, "text.color": INK, "axes.labelcolor": INK})
    path = results / "results" / "sets.csv"
    figure, grid = pyplot.subplots(
        1, len(items), figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, squeeze=False, layout="constrained"
    )
    better = "higher is better" if metric in HIGHER else "lower is better"
    for axes, item in zip(grid[0], items, strict=True):
        points = read(path, item, metric, one_window=one_window)
        axes.set_xscale("log")
        show(axes, points, higher=metric in HIGHER)
        axes.set_title(
            f"{item.capitalize()}, {max(point.images for point in points)} photographs", fontsize=13, loc="left", pad=10
        )
        axes.set_xlabel("network calls")
        ticks = [
            tick for tick in (1, 2, 4, 10, 20, 50, 100, 250, 1000, 4000) if tick <= 1.5 * max(p.calls for p in points)
        ]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{tick:,}" for tick in ticks])
        axes.set_xlim(0.75, 9 * max(point.calls for point in points))
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=INK)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
    grid[0][0].set_ylabel(f"{METRICS[metric]}\n({better})")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        output, facecolor="white", pil_kwargs={"quality": 92, "method": 6} if output.suffix == ".webp" else {}
    )
    print(f"{output}: {output.stat().st_size / 1024:.0f} KB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a scored comparison in results/")
    parser.add_argument("--items", nargs="+", default=ITEMS, help="default: %(default)s")
    parser.add_argument("--metric", choices=METRICS, default="perceptual-crop")
    parser.add_argument("--one_window", action="store_true", help="each image is one window: calls are as measured")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    draw(options.results, options.items, options.metric, options.output, one_window=options.one_window)


if __name__ == "__main__":
    main()
