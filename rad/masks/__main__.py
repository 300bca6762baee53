"""`rad masks`: write named sets of masks, list them, or check mask files."""

import argparse
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rad.console import Parser, guarded, print_line, program, report
from rad.masks.names import ABOUT, ALIASES, main_names

if TYPE_CHECKING:
    from rad.masks.sets import MaskSet

DEFAULTS = {"size": [256], "count": 100, "seed": 0}


def parser() -> Parser:
    """The options of `rad masks`, also `python -m rad.masks`."""
    result = Parser(
        prog=program("masks"),
        description="Write named sets of masks (white = fill) with a manifest and an overview, or check mask files.",
    )
    mode = result.add_mutually_exclusive_group(required=True)
    mode.add_argument("--set", nargs="+", metavar="NAME", help=f"write these sets: {', '.join(main_names())}")
    mode.add_argument("--list", action="store_true", help="print the names with a description and the share of hole")
    mode.add_argument(
        "--check",
        nargs="+",
        metavar="SOURCE",
        help="print count, sizes, shares of hole and hash of any masks in a folder of any depth or a zip",
    )
    result.add_argument("--size", nargs="+", type=int, metavar="N", help="one number, or HEIGHT WIDTH (default: 256)")
    result.add_argument(
        "--count", type=int, help="masks in a set; a larger set begins with the smaller one (default: 100)"
    )
    result.add_argument("--seed", type=int, help="seed of the masks (default: 0)")
    result.add_argument("--output", metavar="DIR", help="folder of the set; several sets go to DIR/NAME")
    result.add_argument(
        "--mask_polarity",
        choices=["white_is_fill", "white_is_known"],
        help="meaning of white in the files to check (default: white_is_fill)",
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rad masks ...`. Folders, lists and reports go to stdout, messages to stderr."""
    options = parser().parse_args(arguments)
    for name in (*DEFAULTS, "output", "mask_polarity"):
        mode = "check" if name == "mask_polarity" else "set"
        if getattr(options, name) is not None and getattr(options, mode) is None:
            report(f"warning: --{name} has no effect without --{mode}")
    if options.list:
        _list_names()
    elif options.set is not None:
        _write(options)
    else:
        _check(options)
    return 0


def _write(options: argparse.Namespace) -> None:
    from rad.masks.sets import holes, write_set

    if options.output is None:
        raise ValueError("--set needs a folder to write to: give --output DIR")
    size, count, seed = (
        DEFAULTS[name] if getattr(options, name) is None else getattr(options, name) for name in DEFAULTS
    )
    if len(size) > 2:
        raise ValueError(f"--size {' '.join(map(str, size))}: give one number, or HEIGHT WIDTH")
    names = list(dict.fromkeys(options.set))
    for name in names:  # check all names before the first set is written
        holes(name, (size[0], size[-1]), count, seed)
    for name in names:
        folder = Path(options.output) / name if len(names) > 1 else Path(options.output)
        masks = write_set(folder, name, size=(size[0], size[-1]), count=count, seed=seed)
        print_line(folder)
        report("; ".join(_describe(masks)[1:]))


def _check(options: argparse.Namespace) -> None:
    from rad.masks.reading.hole import looks_inverted
    from rad.masks.sets import read_set

    for source in options.check:
        masks = read_set(source, polarity=options.mask_polarity or "white_is_fill")
        for line in _describe(masks):
            print_line(line)
        if options.mask_polarity is None and masks.manifest is None:
            inverted = sum(looks_inverted(hole[0].numpy()) for _, hole in masks.holes())
            if inverted:
                report(
                    f"warning: {inverted} of {len(masks.entries)} masks of {masks.source} look inverted; "
                    "for white = known use --mask_polarity white_is_known"
                )


def _list_names() -> None:
    """Print each name with the shares of its first 20 masks of 128x128 pixels."""
    from rad.masks.sets import holes

    for name in main_names():
        shares = [hole.mean().item() for _, hole in holes(name, (128, 128), 20, 0)]
        others = [alias for alias, main in ALIASES.items() if main == name]
        also = f"; also called {', '.join(others)}" if others else ""
        print_line(f"{name:<10} {ABOUT[name]}{also}; hole {_range(shares)}")


def _describe(masks: "MaskSet") -> list[str]:
    sizes = Counter(f"{entry.height}x{entry.width}" for entry in masks.entries)
    lines = [
        f"{masks.source}, {masks.polarity}",
        f"masks: {len(masks.entries)}",
        f"size: {', '.join(f'{count} of {size}' if len(sizes) > 1 else size for size, count in sizes.most_common())}",
        f"share of hole: {_range(entry.share for entry in masks.entries)}",
        f"hash: {masks.hash}",
    ]
    empty = sum(entry.share == 0 for entry in masks.entries)
    if empty:
        lines.insert(4, f"without any hole: {empty}")
    if masks.manifest is not None:
        lines.append(f"manifest: {masks.manifest['set']}, seed {masks.manifest['seed']}, agrees with the files")
    return lines


def _range(shares: Iterable[float]) -> str:
    ordered = sorted(100 * share for share in shares)
    if ordered[-1] - ordered[0] < 0.05:
        return f"{ordered[0]:.4g} %"
    return f"{ordered[0]:.1f} to {ordered[-1]:.1f} %, median {statistics.median(ordered):.1f} %"


if __name__ == "__main__":
    raise SystemExit(guarded(main))
