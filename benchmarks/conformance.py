"""Measures the distance of every method from the exact posterior on Gaussian data.

    python benchmarks/conformance.py             writes conformance.md, conformance.png and fewstep.png in docs/results
    python benchmarks/conformance.py --fewstep   writes only the section on few steps and fewstep.png, in seconds

The data are 8x8 grey images from a known Gaussian, the hole is 4x4, and the denoiser is exact. All remaining error is therefore
the method's own. Every method runs at its preset. Methods that are affine in x are propagated exactly, without random numbers.
The others are sampled; the page states the error of sampling.
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

from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing, spaced_timesteps
from rad.methods import METHODS
from rad.methods.rad import RAD
from rad.methods.registry import cost
from rad.sampling.method import Method, SamplingMethod
from rad.sampling.state import Cost
from tests.gaussian import Distance, distance, law, law_of_draws, make_world, moments, sampled, with_needs

DRAWS = {"repaint": 16, "lanpaint": 12}
"""Maximum number of draws between two steps, for methods with more than four."""

NOT_AFFINE = ("flowchef", "flowdps", "latino")
"""Callback methods without gradients that are not affine in x: they normalise their step length, or clip."""

NO_NETWORK = ("inpainting_model", "lama")
"""They need a network of their own, and no exact one is known."""

BLIND = [name for name, kind in METHODS.items() if not kind.needs_text and name not in NO_NETWORK]
"""Methods that need no text: Gaussian data have none."""


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
    exact = isinstance(method, SamplingMethod) and not method.needs_grad and name not in NOT_AFFINE
    if exact:
        reached = distance(world, *law(world, method, steps=method.preset_steps, draws=DRAWS.get(name, 4)))
    else:
        reached = distance(world, *moments(sampled(world, method, steps=method.preset_steps, rows=rows)))
    return Row(
        name, method.preset_steps, cost(method, method.preset_steps), exact, reached, time.perf_counter() - began
    )


def floor_of_sampling(rows: int, unknown: int) -> tuple[float, float]:
    """Mean error and KL of `rows` perfect samples of `unknown` values."""
    return (1 / rows) ** 0.5, unknown * (unknown + 3) / (4 * rows)


FEW: dict[str, tuple[Solver, Spacing, float]] = {
    "DDPM, even (the paper)": ("ddpm", "even", 1.0),
    "DDPM, trailing": ("ddpm", "trailing", 1.0),
    "DDIM, even": ("ddim", "even", 0.0),
    "DDIM, quad": ("ddim", "quad", 0.0),
    "2M, even (refused)": ("dpm++2m", "even", 0.0),
    "2M, quad": ("dpm++2m", "quad", 0.0),
    "2M, logsnr (the preset)": ("dpm++2m", "logsnr", 0.0),
    "SDE-2M, logsnr": ("dpm++2m", "logsnr", 1.0),
}
NFE = (5, 8, 10, 20, 50, 100)
FEW_STEPS = "## Few steps: solver and spacing"


def few_steps() -> dict[str, list[Distance]]:
    """Distances of RAD's exact law, for each solver and spacing, at each of `NFE`."""
    world, rad = make_world(), RAD()
    table = {}
    for name, (solver, spacing, eta) in FEW.items():
        table[name] = []
        for steps in NFE:
            if solver == "dpm++2m" and spacing == "even":
                reached = law_of_draws(world, rad, rad.choose(steps=steps), times=spaced_timesteps(1000, steps))
            else:
                reached = law(world, rad, steps=steps, solver=solver, spacing=spacing, eta=eta)
            table[name].append(distance(world, *reached))
    return table


def section(table: dict[str, list[Distance]]) -> str:
    """The section of the page on few steps."""
    lines = [
        FEW_STEPS,
        "",
        "RAD on the same data: variance ratio / KL, propagated exactly. The error of the mean is at most 0.006 deviations.",
        "Written by `python benchmarks/conformance.py --fewstep`.",
        "",
        f"| NFE | {' | '.join(table)} |",
        f"|---:|{'---|' * len(table)}",
    ]
    for row, steps in enumerate(NFE):
        cells = [f"{column[row].variance_ratio:.2f} / {column[row].kl:.2g}" for column in table.values()]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![Variance and KL against network calls](fewstep.png)", "", *FEW_REMARKS, ""])


FEW_REMARKS = [
    "- First-order steps lose most of the variance at few network calls, so images are too smooth.",
    "- DPM-Solver++(2M) on levels evenly spaced in log(a / s) has the right variance from 8 calls on. At 10 calls it is",
    "  nearer to the posterior than DDPM at 1,000 calls (KL 0.016).",
    "- On even spacing the same solver has too much variance, so the sampler refuses the pair.",
    "- `quad` and `logsnr` use fractional timesteps here. With rounded timesteps, as zero-shot methods get them, 2M on",
    "  `logsnr` has a KL of 0.019 at 8 calls and 0.0023 at 10.",
]


def few_figure(table: dict[str, list[Distance]], path: Path) -> None:
    """Variance ratio and KL of each solver and spacing against the number of network calls."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.2), dpi=110)
    colours = {"ddpm": "tab:grey", "ddim": "tab:blue", "dpm++2m": "tab:red"}
    styles = {"even": ":", "trailing": "-.", "quad": "--", "logsnr": "-"}
    for name, distances in table.items():
        solver, spacing, eta = FEW[name]
        colour = "tab:orange" if solver == "dpm++2m" and eta else colours[solver]
        look = {"color": colour, "ls": styles[spacing], "marker": "o", "ms": 3, "label": name}
        left.plot(NFE, [each.variance_ratio for each in distances], **look)
        right.plot(NFE, [each.kl for each in distances], **look)
    left.axhline(1, color="black", lw=0.6)
    for axes, label in ((left, "variance over the posterior's"), (right, "KL from the posterior, nats")):
        axes.set_xscale("log")
        axes.set_xticks(NFE, [str(steps) for steps in NFE])
        axes.minorticks_off()
        axes.set_xlabel("network calls")
        axes.set_title(label, fontsize=9)
        axes.grid(True, which="both", alpha=0.2)
    right.set_yscale("log")
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=3.5)
    chart.tight_layout()
    chart.savefig(path)


def page(rows: list[Row], count: int) -> str:
    mean_floor, kl_floor = floor_of_sampling(count, 16)
    lines = [
        "# Conformance",
        "",
        "This page compares methods with the exact posterior, on data where the posterior is known: 8x8 grey images from a",
        "Gaussian with smooth covariance, one image, a 4x4 hole. The denoiser is exact at every noise level, so all errors are",
        "the method's own. Each method runs at its preset. Written by `python benchmarks/conformance.py`.",
        "",
        "- mean: root mean square error of the mean of the hole, in posterior standard deviations.",
        "- variance: trace of the covariance in the hole, divided by that of the posterior.",
        "- KL: divergence from the posterior, in nats, for 16 unknown values.",
        "- NFE, VJP: network calls and backward passes per image; a VJP costs about two calls.",
        f"- sampled: {count} samples, for methods with gradients or their own loops. Perfect samples would have a mean error of",
        f"  {mean_floor:.3f} and a KL of {kl_floor:.3f}. All other methods are propagated exactly.",
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
    "How to read the table:",
    "",
    "- It shows whether a method samples the posterior. It does not show how good images look: the data are Gaussian.",
    "- The denoiser takes a noise level for every pixel, like a perfectly trained RAD network. `rad`, `tdpaint` and `growrad`",
    "  use this; the other methods use one level for the image.",
    "- `rad` has nearly the exact mean and, with its preset solver, nearly the exact variance.",
    "- The other methods take DDPM or DDIM steps, which have too little variance at few steps. With DDPM steps, RAD has 0.81",
    "  of the variance at 100 calls (below). With the true kernel between two levels, RAD equals the posterior to 1e-3 nats",
    "  at 10 steps (`tests/diffusion/test_gaussian.py`).",
    "- Optimisers (`reddiff`, `flair`) and baselines without a network (`mean`, `biharmonic`, `telea`, `navier_stokes`) give one",
    "  image, not samples of a posterior.",
    "- `latino` is for models distilled to few steps, whose estimates are samples. The exact denoiser returns means, and 8 of",
    "  them are few.",
    "- `growrad`, `gradpaint` and `grow` are reconstructed from an abstract, without official code.",
    "- Not in the table: `pilot` needs text, and `inpainting_model` and `lama` need a network of their own.",
]


def figure(text: str, path: Path) -> None:
    """Plot the methods of a page by cost and error of the mean."""
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
    for name, spent, mean in points:  # put each label at the first free place
        label = axes.annotate(name, (spent.units, mean), (0, 0), textcoords="offset points", fontsize=8)
        for far, (x, y) in product((5, 12, 20, 28), ((1, 0), (0.7, 0.7), (0.7, -0.7), (-1, 0), (-0.7, 0.7))):
            label.set_position((x * far, y * far - 3))
            label.set_horizontalalignment("left" if x > 0 else "right")
            box = label.get_window_extent(renderer.get_renderer())
            if not box.count_overlaps(boxes):
                break
        boxes.append(label.get_window_extent(renderer.get_renderer()))
    chart.savefig(path)


def write(folder: Path, first: str) -> None:
    """Write the page with the given first part, and the figure of few steps."""
    table = few_steps()
    (folder / "conformance.md").write_text(f"{first.rstrip()}\n\n{section(table)}")
    few_figure(table, folder / "fewstep.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="samples per method that is not affine")
    parser.add_argument("--only", nargs="+", default=BLIND, choices=BLIND)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--redraw", action="store_true", help="redraw the figure from the existing page")
    parser.add_argument("--fewstep", action="store_true", help="update the section on few steps of the existing page")
    options = parser.parse_args()
    written = options.output / "conformance.md"
    if options.fewstep:
        write(options.output, written.read_text().partition(f"\n{FEW_STEPS}")[0])
        return
    if options.redraw:
        figure(written.read_text(), options.output / "conformance.png")
        return
    if len(options.only) < len(BLIND) and options.output == ROOT / "docs" / "results":
        parser.error("--only would overwrite docs/results with a page of few methods: give --output")
    rows = []
    for name in options.only:
        rows.append(measure(name, options.rows))
        row = rows[-1]
        print(name, row.cost, row.distance, "exact" if row.exact else "sampled", f"{row.seconds:.1f} s", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    write(options.output, page(rows, options.rows))
    figure(written.read_text(), options.output / "conformance.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
