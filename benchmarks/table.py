"""Prints a metric of scored comparisons as a Markdown table: one row per method, one column per mask set.

    python benchmarks/table.py --results runs/compare --metric perceptual-crop/nature64-resnet
    python benchmarks/table.py --results runs/compare --metric perceptual-crop/nature64-resnet --against repaint

The second command prints paired differences from one method, on the images that both have. Each cell holds the mean, its
bootstrap 95 % interval, and p of the paired sign-flip test with Holm's correction over the methods of a mask set.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rad.evaluation.statistics import difference, holm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="folders with sets.csv")
    parser.add_argument("--metric", required=True)
    parser.add_argument("--digits", type=int, default=3)
    parser.add_argument("--interval", action="store_true", help="add the 95 %% interval")
    parser.add_argument("--against", help="method to print paired differences from, for metrics of single images")
    options = parser.parse_args()
    for folder in options.results:
        file = folder / ("metrics.csv" if options.against else "sets.csv")
        if not file.is_file():
            raise SystemExit(f"no {file}: score the results first, python -m rad.evaluation --results {folder}")
    if options.against:
        print_differences(options)
        return
    rows = [row for folder in options.results for row in csv.DictReader((folder / "sets.csv").open())]
    if options.metric not in rows[0]:
        raise SystemExit(
            f"{options.results[0] / 'sets.csv'} has no metric {options.metric}: use one of {', '.join(rows[0])}"
        )
    masks = list(dict.fromkeys(row["mask"] for row in rows))
    by_method: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["mask"]] = row
    print(f"| method | NFE | VJP | images | {' | '.join(masks)} |\n|---|---|---|---|{'---|' * len(masks)}")
    for method, cells in by_method.items():
        first = next(iter(cells.values()))
        counts = "/".join(dict.fromkeys(cell["images"] for cell in cells.values()))
        shown = [_cell(cells.get(mask), options) for mask in masks]
        print(f"| `{method}` | {_whole(first['nfe'])} | {_whole(first['vjp'])} | {counts} | {' | '.join(shown)} |")


def print_differences(options: argparse.Namespace) -> None:
    """Method minus baseline for each mask set; several samples of an image count as their mean."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for folder in options.results:
        for row in csv.DictReader((folder / "metrics.csv").open()):
            images = values.setdefault(row["mask"], {}).setdefault(row["method"], {})
            images.setdefault(row["image"], []).append(float(row[options.metric]))
    means = {
        mask: {name: {image: sum(v) / len(v) for image, v in images.items()} for name, images in methods.items()}
        for mask, methods in values.items()
    }
    cells: dict[str, dict[str, str]] = {}
    for mask, methods in means.items():
        baseline = methods[options.against]
        names = [name for name in methods if name != options.against]
        differences = {name: difference(methods[name], baseline, seed=0) for name in names}
        adjusted = holm([None if each is None else each.p for each in differences.values()])
        for (name, each), p in zip(differences.items(), adjusted, strict=True):
            if each is not None:
                significance = "" if p is None else f", p {p:.4f}"
                numbers = [f"{number:+.{options.digits}f}" for number in (each.value, each.low, each.high)]
                cells.setdefault(name, {})[mask] = (
                    f"{numbers[0]} [{numbers[1]}, {numbers[2]}]{significance} ({each.images} images)"
                )
    print(f"| minus {options.against} | {' | '.join(means)} |\n|---|{'---|' * len(means)}")
    for name, row in cells.items():
        print(f"| `{name}` | {' | '.join(row.get(mask, '-') for mask in means)} |")


def _cell(row: dict[str, str] | None, options: argparse.Namespace) -> str:
    if row is None or not row[options.metric]:
        return "-"
    value, low, high = (
        f"{float(row[name]):.{options.digits}f}"
        for name in (options.metric, f"{options.metric}_low", f"{options.metric}_high")
    )
    return f"{value} [{low}, {high}]" if options.interval else value


def _whole(text: str) -> str:
    return f"{float(text):.0f}" if text else "-"


if __name__ == "__main__":
    main()
