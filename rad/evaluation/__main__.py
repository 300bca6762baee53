"""Scores from the command line: `rad evaluate --results DIR`, or with --reference and --mask for any other system."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rad.cli.sample.record import scoring
from rad.console import EXIT_OK, EXIT_SOME, Parser, guarded, program, report
from rad.evaluation.compare import BATCH_SIZE, evaluate, evaluate_folders, extractors
from rad.evaluation.layout import is_tree
from rad.evaluation.options import add_options
from rad.evaluation.results import Comparison
from rad.evaluation.run_log import RUN, read_run
from rad.images.sources import absolute, is_source

FILES = ("metrics.csv", "sets.csv", "provenance.json")


def parser() -> Parser:
    """The options of `rad evaluate`, also `python -m rad.evaluation`."""
    made = Parser(
        prog=program("evaluate"),
        description="Score inpainted images: tables with provenance, intervals and paired tests, and a report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--results",
        required=True,
        nargs="+",
        metavar="LABEL=DIR",
        help="--output of rad sample with several masks; or a folder for each of other systems (the label may be left out)",
    )
    made.add_argument("--reference", help="folder, zip or file of the original images; that of rad sample if not given")
    made.add_argument("--mask", help="for other systems: an image for all, or a folder or zip of them by name")
    made.add_argument("--mask_polarity", default="white_is_fill", choices=["white_is_fill", "white_is_known"])
    add_options(made)
    made.add_argument("--output", help="folder of the tables; --results of rad sample, or else `evaluation`")
    made.add_argument("--seed", type=int, default=0, help="of the resamples")
    made.add_argument("--batch_size", type=int, default=BATCH_SIZE, help="images that go through a network together")
    made.add_argument("--device", default="auto")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command. Written paths go to stdout, everything else to stderr. Returns the exit code."""
    options = parser().parse_args(arguments)
    folders = _folders(options.results)
    first = next(iter(folders.values()))
    tree = not options.mask and len(folders) == 1 and is_tree(first)
    missing = [f"--{name}" for name, value in vars(options).items() if name in ("reference", "mask") and value is None]
    if not tree and missing:
        raise ValueError(
            f"--results {first} is not a folder that rad sample wrote for several masks: give {' and '.join(missing)} too"
        )
    if tree and options.mask_polarity != "white_is_fill":
        report("warning: --mask_polarity has no effect, for the masks that rad sample writes are white = fill")
    reference = Path(_reference(first)) if options.reference is None else Path(options.reference)
    networks = extractors(options.feature_net, options.lpips, options.fid, device=options.device)
    if not networks:
        report("note: pixels only; --feature_net, --lpips or --fid add perceptual distances and distances between sets")
    output = Path(options.output or (first if tree else "evaluation"))
    progress = _Progress()
    how = scoring(
        reference=absolute(str(reference)), mask=options.mask, mask_polarity=options.mask_polarity, seed=options.seed
    )
    if tree:
        comparison = evaluate(
            first,
            tables=output,
            references=reference,
            extractors=networks,
            baseline=options.baseline,
            seed=options.seed,
            batch_size=options.batch_size,
            on_progress=progress,
            scoring=how,
        )
    else:
        comparison = evaluate_folders(
            folders,
            output=output,
            references=reference,
            mask=Path(options.mask),
            mask_polarity=options.mask_polarity,
            extractors=networks,
            baseline=options.baseline,
            seed=options.seed,
            batch_size=options.batch_size,
            on_progress=progress,
            scoring=how,
        )
    _report(comparison, output)
    observation_residual = (
        progress.total - len(comparison.results) + comparison.unknown + sum(row.missing for row in comparison.rows)
    )
    return EXIT_SOME if observation_residual else EXIT_OK


def _report(comparison: Comparison, output: Path) -> None:
    from rad.evaluation.report import write_report

    for path in (*(output / name for name in FILES), *write_report(comparison, output)):
        print(path)
    for note in comparison.notes:
        report(f"note: {note}")


def _folders(given: Sequence[str]) -> dict[str, Path]:
    """Folders by label: what stands before "=", or the name of the folder."""
    folders: dict[str, Path] = {}
    for text in given:
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


def _reference(folder: Path) -> str:
    """What rad sample was given as --image."""
    image = str(read_run(folder).get("options", {}).get("image") or "")
    if not image:
        raise ValueError(f"{folder / RUN} does not say where the original images are: give --reference")
    if not is_source(image):
        raise ValueError(f"the original images {image} are not there any more: give --reference")
    return image


class _Progress:
    """A line every tenth of the files."""

    def __init__(self) -> None:
        self.total, self._told = 0, 0

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        if done * 10 // total > self._told:
            self._told = done * 10 // total
            report(f"{done} of {total} files scored")


if __name__ == "__main__":
    sys.exit(guarded(main))
