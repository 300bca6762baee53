"""Sets of masks from the command line: `rad masks --set wide --size 256 --count 1000 --seed 0 --output DIR`."""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rad.console import Parser, guarded, program
from rad.masks.files import looks_inverted
from rad.masks.sets import MaskSet, holes, read_set, write_set
from rad.masks.shapes import ALIASES, main_names

ABOUT = {
    "box": "a box of half the height and width at a random place",
    "extreme": "all but such a box",
    "center": "a box of half the height and width in the middle",
    "half": "the right half",
    "expand": "all but a box of a quarter of the height and width in the middle",
    "lines": "every other row",
    "superres": "all but every other pixel of every other row",
    "pixels": "scattered single pixels",
    "wide": "thick brush strokes, or boxes (LaMa)",
    "thin": "thin brush strokes (LaMa)",
    "blobs": "one to three silhouettes with smooth irregular outlines, as of objects",
    "perlin": "thresholded Perlin noise, any share: what RAD is trained on",
    "lettering": "lines of random letters, and scratches",
    "photos": "the mixture for training on photographs: scratches, strokes, text, boxes, all hole",
}
DEFAULTS = {"size": [256], "count": 100, "seed": 0}


def parser() -> Parser:
    """The options of `rad masks`, also `python -m rad.masks`."""
    made = Parser(
        prog=program("masks"),
        description="Write named sets of masks (white = fill) with a manifest and an overview, or check masks in files.",
    )
    mode = made.add_mutually_exclusive_group(required=True)
    mode.add_argument("--set", nargs="+", metavar="NAME", help=f"write these sets: {', '.join(main_names())}")
    mode.add_argument("--list", action="store_true", help="print all names, what they are and their share of hole")
    mode.add_argument(
        "--check",
        nargs="+",
        metavar="SOURCE",
        help="print count, sizes, shares and hash of the masks in a folder of any depth or a zip, ours or others'",
    )
    made.add_argument(
        "--size", nargs="+", type=int, metavar="IDENTITY", help="one number, or HEIGHT WIDTH (default: 256)"
    )
    made.add_argument(
        "--count", type=int, help="masks in a set; a larger set begins with the smaller one (default: 100)"
    )
    made.add_argument("--seed", type=int, help="of the masks (default: 0)")
    made.add_argument("--output", metavar="DIR", help="folder of the set; several sets go into DIR/NAME each")
    made.add_argument(
        "--mask_polarity",
        choices=["white_is_fill", "white_is_known"],
        help="what white means in the files to be checked (default: white_is_fill)",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out `rad masks ...`: folders written, lists and reports go to stdout, the rest to stderr."""
    options = parser().parse_args(arguments)
    for name in (*DEFAULTS, "output", "mask_polarity"):
        mode = "check" if name == "mask_polarity" else "set"
        if getattr(options, name) is not None and getattr(options, mode) is None:
            _tell(f"warning: --{name} has no effect without --{mode}")
    if options.list:
        _list_names()
    elif options.set is not None:
        _write(options)
    else:
        for source in options.check:
            found = read_set(source, polarity=options.mask_polarity or "white_is_fill")
            print("\n".join(_report(found)))
            if options.mask_polarity is None and found.manifest is None:
                _warn_inverted(found)
    return 0


def _write(options: argparse.Namespace) -> None:
    if options.output is None:
        raise ValueError("--set needs a folder to write to: give --output DIR")
    size, count, seed = (
        DEFAULTS[name] if getattr(options, name) is None else getattr(options, name) for name in DEFAULTS
    )
    if len(size) > 2:
        raise ValueError(f"--size {' '.join(map(str, size))}: give one number, or HEIGHT WIDTH")
    names = list(dict.fromkeys(options.set))
    for name in names:  # a mistake in the last name is told before the first set is made
        holes(name, (size[0], size[-1]), count, seed)
    for name in names:
        folder = Path(options.output) / name if len(names) > 1 else Path(options.output)
        written = write_set(folder, name, size=(size[0], size[-1]), count=count, seed=seed)
        print(folder)
        _tell("; ".join(_report(written)[1:]))


def _list_names() -> None:
    """The shares are those of the first 20 masks of each set, of 128x128 pixels."""
    for name in main_names():
        shares = [hole.mean().item() for _, hole in holes(name, (128, 128), 20, 0)]
        others = [alias for alias, main in ALIASES.items() if main == name]
        also = f"; also called {', '.join(others)}" if others else ""
        print(f"{name:<10} {ABOUT[name]}{also}; hole {_range(shares)}")


def _report(masks: MaskSet) -> list[str]:
    sizes = Counter(f"{entry.height}x{entry.width}" for entry in masks.entries)
    lines = [
        f"{masks.source}, {masks.polarity}",
        f"masks: {len(masks.entries)}",
        f"size: {', '.join(f'{count} of {size}' if len(sizes) > 1 else size for size, count in sizes.most_common())}",
        f"share of hole: {_range([entry.share for entry in masks.entries])}",
        f"hash: {masks.hash}",
    ]
    empty = sum(entry.share == 0 for entry in masks.entries)
    if empty:
        lines.insert(4, f"without any hole: {empty}")
    if masks.manifest is not None:
        lines.append(f"manifest: {masks.manifest['set']}, seed {masks.manifest['seed']}, agrees with the files")
    return lines


def _range(shares: Iterable[float]) -> str:
    """Lowest, highest and middle share in per cent, or one number where they are equal."""
    ordered = sorted(100 * share for share in shares)
    if ordered[-1] - ordered[0] < 0.05:
        return f"{ordered[0]:.4g} %"
    return f"{ordered[0]:.1f} to {ordered[-1]:.1f} %, median {statistics.median(ordered):.1f} %"


def _warn_inverted(masks: MaskSet) -> None:
    inverted = sum(looks_inverted(hole) for _, hole in masks.holes())
    if inverted:
        _tell(
            f"warning: {inverted} of {len(masks.entries)} masks of {masks.source} look inverted; "
            "for white = known use --mask_polarity white_is_known"
        )


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
