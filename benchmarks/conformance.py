"""How far every method lies from the exact posterior on Gaussian data: writes docs/conformance.md and docs/conformance.png.

    python benchmarks/conformance.py

The data are 8x8 grey images from a known Gaussian, the hole is 4x4, and the denoiser is the exact one, so whatever is
missing is the method's own error. Every method runs at its preset. Methods that are affine in x are propagated exactly,
without a random number; the others are sampled, and their figures hold to the deviations that the page states.
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rad.catalogue import cost
from rad.methods import METHODS
from rad.sampler import Cost, Method, SamplingCallback
from tests.gaussian import Distance, distance, law, make_world, moments, sampled, with_needs

DRAWS = {"repaint": 16, "lanpaint": 12}
"""The most draws between two steps, where they are more than four."""

NOT_AFFINE = ("flowchef", "flowdps")
"""Of the methods that are callbacks and differentiate no network: their steps have a length."""


BLIND = [name for name, kind in METHODS.items() if not kind.needs_text]
"""Methods that need no text, which Gaussian data do not have."""


@dataclass(frozen=True)
class Row:
    name: str
    steps: int
    cost: Cost
    exact: bool
    distance: Distance
    seconds: float


def measure(name: str, rows: int) -> Row:
    method: Method = with_needs(METHODS[name]())
    world, began = make_world(), time.perf_counter()
    exact = isinstance(method, SamplingCallback) and not method.needs_grad and name not in NOT_AFFINE
    if exact:
        reached = distance(world, *law(world, method, steps=method.preset_steps, draws=DRAWS.get(name, 4)))
    else:
        reached = distance(world, *moments(sampled(world, method, steps=method.preset_steps, rows=rows)))
    return Row(
        name, method.preset_steps, cost(method, method.preset_steps), exact, reached, time.perf_counter() - began
    )


def floor_of_sampling(rows: int, unknown: int) -> tuple[float, float]:
    """Mean error and KL that perfect samples of `unknown` values would show, for their number."""
    return (1 / rows) ** 0.5, unknown * (unknown + 3) / (4 * rows)


def page(rows: list[Row], count: int) -> str:
    mean_floor, kl_floor = floor_of_sampling(count, 16)
    lines = [
        "# Conformance",
        "",
        "Every method against the exact posterior, on data where it is known: 8x8 grey images from a Gaussian with smooth",
        "covariance, a 4x4 hole, one image, and the exact denoiser for any noise level, so that all errors are the method's",
        "own. Each method runs at its preset. Written by `python benchmarks/conformance.py`.",
        "",
        "- mean: root mean square error of the mean of the hole, in posterior standard deviations.",
        "- variance: trace of the covariance in the hole over the posterior's.",
        "- KL: from the posterior, in nats, 16 unknown values.",
        "- NFE, VJP: network calls and backward passes an image; a VJP costs about two calls.",
        f"- sampled: methods with gradients or loops of their own, {count} samples each. Perfect samples",
        f"  would show a mean error of {mean_floor:.3f} and a KL of {kl_floor:.3f}; the others are propagated exactly.",
        "",
        "| method | steps | NFE | VJP | mean | variance | KL | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in sorted(rows, key=lambda row: row.distance.mean_error):
        d = row.distance
        kl = f"{d.kl:.3g}" if d.variance_ratio > 1e-6 else "-"
        how = "" if row.exact else ("no network" if not row.cost.nfe else "sampled")
        lines.append(
            f"| `{row.name}` | {row.steps} | {row.cost.nfe} | {row.cost.vjp} | {d.mean_error:.3f} | {d.variance_ratio:.3f} "
            f"| {kl} | {how} |"
        )
    return "\n".join([*lines, "", *REMARKS, ""])


REMARKS = [
    "The denoiser takes a level for every pixel, as a perfectly trained RAD network would; `rad`, `tdpaint` and `growrad` use it",
    "so, the others with one level for the image. RAD's mean is exact, and its variance is that of DDPM's steps: with the true",
    "kernel between two levels it is the posterior to 1e-3 nats at 10 steps (`tests/test_gaussian.py`). That small variance at",
    "few steps is the floor of every method here. Nothing in this table says how good pictures look: the data are Gaussian and",
    "the denoiser is perfect. It says whether a method samples what it claims to sample. Optimisers (`reddiff`) and floors",
    "(`mean`, `biharmonic`) give one image, so their variance is not a posterior's.",
]


def figure(text: str, path: Path) -> None:
    """The methods of a page, by cost and error of the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.transforms import Bbox

    chart, axes = pyplot.subplots(figsize=(8, 5), dpi=110)
    rows = re.findall(r"^\| `(\w+)` \| \d+ \| (\d+) \| (\d+) \| ([\d.]+)", text, re.MULTILINE)
    points = [(name, Cost(int(nfe), int(vjp)), float(mean)) for name, nfe, vjp, mean in rows if int(nfe)]
    for name, spent, mean in points:
        plain = "tab:orange" if spent.vjp else "tab:blue"
        axes.plot(spent.units, mean, "o", ms=5, color="tab:red" if METHODS[name].weights == "adapter" else plain)
    axes.set_xscale("log")
    axes.set_xlabel("network calls an image at the preset (a backward pass counted as two)")
    axes.set_ylabel("error of the mean, in posterior deviations")
    axes.set_title(
        "Distance from the exact posterior on Gaussian data (red: per-pixel noise, orange: gradients)", fontsize=9
    )
    axes.grid(True, which="both", alpha=0.2)
    axes.margins(0.08)
    chart.tight_layout()
    taken = [axes.transData.transform((spent.units, mean)) for _, spent, mean in points]
    boxes = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in taken]
    renderer: Any = chart.canvas
    for name, spent, mean in points:  # each label at the first place that is free
        label = axes.annotate(name, (spent.units, mean), (0, 0), textcoords="offset points", fontsize=8)
        for far, (x, y) in product((5, 12, 20, 28), ((1, 0), (0.7, 0.7), (0.7, -0.7), (-1, 0), (-0.7, 0.7))):
            label.set_position((x * far, y * far - 3))
            label.set_horizontalalignment("left" if x > 0 else "right")
            box = label.get_window_extent(renderer.get_renderer())
            if not box.count_overlaps(boxes):
                break
        boxes.append(label.get_window_extent(renderer.get_renderer()))
    chart.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="samples of a method that is not affine")
    parser.add_argument("--only", nargs="+", default=BLIND, choices=BLIND)
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    parser.add_argument("--redraw", action="store_true", help="the figure alone, of the page that is there")
    options = parser.parse_args()
    written = options.output / "conformance.md"
    if options.redraw:
        figure(written.read_text(), options.output / "conformance.png")
        return
    if len(options.only) < len(BLIND) and options.output == ROOT / "docs":
        parser.error("--only would leave a page of a few methods in docs/: give --output")
    rows = []
    for name in options.only:
        rows.append(measure(name, options.rows))
        row = rows[-1]
        print(name, row.cost, row.distance, "exact" if row.exact else "sampled", f"{row.seconds:.1f} s", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    written.write_text(page(rows, options.rows))
    figure(written.read_text(), options.output / "conformance.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
