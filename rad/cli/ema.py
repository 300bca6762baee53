"""`rad ema`: the average of a training run over another length, from the snapshots of `rad.training.PowerEMA`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rad.console import EXIT_OK, Parser, print_line, program, report

if TYPE_CHECKING:
    from rad.training.posthoc.power_ema import Snapshot

LARGE_ERROR, LARGEST_ERROR = 0.1, 0.5
"""Errors of the profile above which the command warns, and refuses."""

DESCRIPTION = """Average the weights of a training run over another length, after training (post-hoc EMA, Karras et al. 2024).

The run needs snapshots: add rad.training.PowerEMA to trainer.callbacks twice, with sigma_rel 0.05 and 0.1.
Use the result by `rad sample --checkpoint FOLDER`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`rad ema runs/NAME --sigma_rel 0.08 --output FOLDER`. Returns the exit code."""
    parser = Parser(prog=program("ema"), description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run folder, runs/NAME, or its folder ema")
    parser.add_argument(
        "--sigma_rel", type=float, nargs="+", metavar="LENGTH",
        help="length of the average, as a fraction of the run: above 0, up to 0.2886; several lengths write FOLDER/sigmaLENGTH",
    )  # fmt: skip
    parser.add_argument(
        "--step", type=int, metavar="N", help="optimiser step at which the average ends (default: the last snapshot)"
    )
    parser.add_argument("--output", metavar="FOLDER", help="new folder for the averaged adapter or model")
    parser.add_argument("--list", action="store_true", help="list the snapshots and exit")
    options = parser.parse_args(arguments)

    from rad.training.posthoc.power_ema import find_snapshots

    snapshots = find_snapshots(Path(options.run))
    if options.list:
        for snapshot in snapshots:
            print_line(f"step {snapshot.step:>8}  sigma_rel {snapshot.sigma_rel:<6g}  {snapshot.folder}")
        return EXIT_OK
    if not options.sigma_rel or options.output is None:
        raise ValueError("give --sigma_rel and --output for an average, or --list for the snapshots of the run")
    _average(snapshots, options.sigma_rel, options.step, Path(options.output))
    return EXIT_OK


def _average(snapshots: Sequence["Snapshot"], lengths: Sequence[float], step: int | None, output: Path) -> None:
    from rad.images.atomic import require_writable
    from rad.training.posthoc.power_ema import reachable, reconstruct

    several = len(lengths) > 1
    results = [reconstruct(snapshots, length, step=step) for length in lengths]
    for result in results:
        if result.error > LARGEST_ERROR:
            shortest, longest = reachable(snapshots, LARGEST_ERROR, step=step)
            raise ValueError(
                f"--sigma_rel {result.sigma_rel:g}: the snapshots cannot represent it (error of the profile {result.error:.1%}, "
                f"allowed are {LARGEST_ERROR:.0%}): give a length from {shortest:g} to {longest:g}, or train with more "
                "snapshots (every_n_train_steps of rad.training.PowerEMA)"
            )
    folders = [output / f"sigma{length:g}" if several else output for length in lengths]
    if len(set(folders)) < len(folders):
        raise ValueError(
            f"--sigma_rel: two lengths would write {max(folders, key=folders.count)}: give each length once"
        )
    for folder in folders:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"--output {folder} exists: give a new folder")
    require_writable(output if several else output.parent, str(output))
    for result, folder in zip(results, folders, strict=True):
        if result.error > LARGE_ERROR:
            report(
                f"warning: the snapshots cannot represent sigma_rel {result.sigma_rel:g} well (error {result.error:.1%}): use a "
                "length between those of the snapshots, or a run with more of them"
            )
        result.write(folder)
        report(result.describe())
        print_line(folder)
