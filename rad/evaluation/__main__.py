"""`rad evaluate --results DIR`, or with --reference and --mask for the results of other systems."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rad.console import EXIT_OK, EXIT_SOME, Parser, guarded, print_line, program, report
from rad.evaluation.options import add_options
from rad.masks.reading.format import MaskChannel, MaskFormat, Polarity


def parser() -> Parser:
    """The options of `rad evaluate`, also `python -m rad.evaluation`."""
    options = Parser(
        prog=program("evaluate"),
        description="Score inpainted images: tables with provenance, confidence intervals and paired tests, and a report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument(
        "--results",
        required=True,
        nargs="+",
        metavar="LABEL=DIR",
        help="--output folder of rad sample, or a folder for each of several systems or runs (LABEL= is optional)",
    )
    options.add_argument("--reference", help="folder, zip or file of the originals; default: --image of rad sample")
    options.add_argument(
        "--mask", help="one image for all, or a folder or zip by name; default: the masks in the results"
    )
    options.add_argument("--mask_polarity", default="white_is_fill", choices=get_args(Polarity))
    options.add_argument("--mask_channel", default="auto", choices=get_args(MaskChannel), help="part of the files")
    options.add_argument("--mask_threshold", type=float, help="brighter pixels, of 0 to 1, are white")
    options.add_argument("--soft_mask", action="store_true", help="keep grey values; such pixels count as hole")
    add_options(options)
    options.add_argument("--output", help="folder of the tables; default: the folder of rad sample, or `evaluation`")
    options.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and of the tests")
    options.add_argument("--batch_size", type=int, default=32, help="images per batch of a network")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Written paths go to stdout, everything else to stderr. Returns the exit code."""
    options = parser().parse_args(arguments)
    from rad.evaluation.compare import evaluate, evaluate_folders, extractors
    from rad.evaluation.layout import is_tree
    from rad.evaluation.provenance import scoring
    from rad.evaluation.report import write_report
    from rad.evaluation.tables import NAMES
    from rad.images.sources import absolute
    from rad.lock import EVALUATION, holder, one_at_a_time

    folders = _folders(options.results)
    first = next(iter(folders.values()))
    written_masks = not options.mask
    if not written_masks and is_tree(first):
        raise ValueError(
            f"--results {first} is a comparison with masks of its own: leave out --mask, or give a folder of results in it"
        )
    tree = written_masks and len(folders) == 1 and is_tree(first)
    if not tree:
        folders = _methods(options, folders)
    if written_masks and (options.mask_polarity, options.mask_channel) != ("white_is_fill", "auto"):
        report("warning: --mask_polarity and --mask_channel have no effect on the masks written by rad sample")
    mask_format = MaskFormat(
        polarity=options.mask_polarity,
        channel="grey" if written_masks else options.mask_channel,
        threshold=options.mask_threshold,
        soft=options.soft_mask or written_masks,
    )
    reference = Path(_reference(first) if options.reference is None else options.reference)
    networks = extractors(options.feature_net, options.lpips, options.fid, device=options.device)
    if not networks:
        report("note: pixel metrics only; --feature_net, --lpips and --fid add perceptual metrics")
    output = Path(options.output or (first if tree else "evaluation"))
    if output.is_file():
        raise ValueError(f"--output {output} is a file: give a folder")
    progress = _Progress()
    how = scoring(
        reference=absolute(str(reference)), mask=options.mask, mask_polarity=options.mask_polarity, seed=options.seed
    )
    common = {
        "references": reference,
        "extractors": networks,
        "baseline": options.baseline,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "on_progress": progress,
        "scoring": how,
    }
    if tree and (process := holder(first)):
        report(f"note: {first} is being written by {process}; the scores cover the files so far")
    with one_at_a_time(output / EVALUATION, patience=1.0):
        if tree:
            comparison = evaluate(first, tables=output, **common)
        else:
            mask = None if options.mask is None else Path(options.mask)
            comparison = evaluate_folders(folders, output=output, mask=mask, mask_format=mask_format, **common)
        paths = [*(output / name for name in NAMES), *write_report(comparison, output)]
    for path in paths:
        print_line(path)
    for note in comparison.notes:
        report(f"note: {note}")
    unscored = progress.total - len(comparison.results)
    unmatched = comparison.unknown + sum(row.missing for row in comparison.rows)
    return EXIT_SOME if unscored + unmatched else EXIT_OK


def _folders(results: Sequence[str]) -> dict[str, Path]:
    """Folders by label: the text before "=", or the name of the folder."""
    folders: dict[str, Path] = {}
    for text in results:
        label, equals, rest = text.partition("=")
        labelled = bool(equals) and not Path(text).exists()
        path = Path(rest if labelled else text)
        if not path.is_dir():
            raise ValueError(f"--results {text}: there is no folder {path}")
        label = label if labelled else path.resolve().name
        if label in folders:
            raise ValueError(f"--results: two folders are called {label}; give them labels, as in other={path}")
        folders[label] = path
    return folders


def _methods(options: argparse.Namespace, folders: dict[str, Path]) -> dict[str, Path]:
    """The folder of each method. Sets a missing --reference and --mask of a mask set of rad sample.

    Raises ValueError if the originals or the masks are unknown.
    """
    from rad.evaluation.layout import by_name, method_folders, saved_masks

    first = next(iter(folders.values()))
    if (first / "masks").is_dir():
        options.mask = options.mask or str(first / "masks")
        options.reference = options.reference or _reference(first.parent)
    if options.reference is None:
        missing = "--reference" if options.mask else "--reference and --mask"
        raise ValueError(
            f"--results {first} has no record of its images and masks (run.json of rad sample --report): give {missing} too"
        )
    names = set(by_name(Path(options.reference)))
    methods: dict[str, Path] = {}
    for label, folder in folders.items():
        inside = method_folders(folder, names) or {"": folder}
        methods |= {
            (f"{label}-{name}" if name and len(folders) > 1 else name or label): path for name, path in inside.items()
        }
    if options.mask is None and not saved_masks(methods.values(), names):
        raise ValueError(
            f"--results {first} holds no masks: give --mask, or call rad sample with --save_mask, which writes NAME-mask.png"
        )
    return methods


def _reference(folder: Path) -> str:
    """The --image of rad sample."""
    from rad.evaluation.run_log import RUN, read_run
    from rad.images.sources import is_source

    image = str(read_run(folder).get("options", {}).get("image") or "")
    if not image:
        raise ValueError(f"{folder / RUN} does not name the original images: give --reference")
    if not is_source(image):
        raise ValueError(f"the original images {image} do not exist: give --reference")
    return image


class _Progress:
    """Reports every tenth of the files."""

    def __init__(self) -> None:
        self.total, self._tenths = 0, 0

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        if done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            report(f"{done} of {total} files scored")


if __name__ == "__main__":
    sys.exit(guarded(main))
