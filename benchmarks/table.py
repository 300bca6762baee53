"""Prints the Markdown table of one or several scored comparisons: a row a method, columns of each mask set.

python benchmarks/table.py --results runs/compare --metric perceptual-crop/nature64-resnet
"""

import argparse
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="folders with sets.csv")
    parser.add_argument("--metric", required=True)
    parser.add_argument("--digits", type=int, default=3)
    parser.add_argument("--interval", action="store_true", help="also the 95 %% interval")
    options = parser.parse_args()
    rows = [row for folder in options.results for row in csv.DictReader((folder / "sets.csv").open())]
    if options.metric not in rows[0]:
        raise SystemExit(f"no {options.metric} in {options.results[0] / 'sets.csv'}; there are {', '.join(rows[0])}")
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
