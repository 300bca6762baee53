"""Inpainting of files: one picture, a folder or a zip; what is finished stays, what failed is listed at the end."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rad.console import EXIT_INPUT, EXIT_OK, EXIT_SOME, Parser, Progress, counted, tell
from rad.files import replacing
from rad.jobs import Cell, Job, Label, make_plan
from rad.masks import MaskGenerator
from rad.masks.files import looks_inverted, same_mask, write_mask
from rad.masks.shapes import main_names
from rad.pictures import Picture
from rad.record import Record, add_costs

if TYPE_CHECKING:
    from rad.evaluation.features import Extractor
    from rad.inpainter import Inpainted, Inpainter
    from rad.sampler import Method


def run(options: argparse.Namespace) -> int:
    """Carry out `python sample.py ...`. Written paths go to stdout, everything else to stderr. Returns the exit code.

    Raises:
        ValueError, FileNotFoundError: nothing could be begun.
    """
    from rad.catalogue import create, parse_settings

    labels = list(dict.fromkeys(Label.of(text) for text in options.method or ["rad"]))
    settings = parse_settings(options.set, list(dict.fromkeys(label.method for label in labels)))
    methods = {label: create(label.method, settings[label.method]) for label in labels}
    _check_numbers(options)
    plan = make_plan(options, labels)
    record = Record(options, methods) if plan.tree else None
    fresh = [
        replace(cell, jobs=[job for job in cell.jobs if options.overwrite or not all(p.exists() for p in job.files)])
        for cell in plan.cells
    ]
    for cell, new in zip(plan.cells, fresh, strict=True):
        if len(new.jobs) < len(cell.jobs):
            tell(
                f"{cell.label.text}{f' on {cell.mask}' if plan.tree else ''}: "
                f"the files of {len(cell.jobs) - len(new.jobs)} of {counted(len(cell.jobs), 'picture')} are there already "
                "(--overwrite to make them again)"
            )
    fresh = [cell for cell in fresh if cell.jobs]
    if not fresh and not options.report and all(sheet.exists() for sheet in plan.sheets):
        return EXIT_OK
    if options.margin is not None and options.size_policy != "crop":
        tell("warning: --margin has no effect without --size_policy crop")
    if options.mask_polarity != "white_is_fill" and isinstance(plan.cells[0].jobs[0].mask, MaskGenerator):
        tell(f"warning: --mask_polarity has no effect on the generator {plan.cells[0].mask}")
    if not options.report and (options.feature_net or options.lpips or options.fid or options.baseline):
        tell("warning: --feature_net, --lpips, --fid and --baseline have no effect without --report")
    networks = _networks(options, record.methods) if options.report and record else []
    failures = _Failures()
    if fresh:
        _make(options, methods, fresh, record, failures)
    for sheet in plan.sheets:
        cells = [cell for cell in plan.cells if cell.folder.parent == sheet.parent]
        _write_sheet(options, sheet, {cell.label.text: cell.jobs for cell in cells}, failures)
    if options.report:
        _report(options, networks, failures)
    for message in failures.messages:
        tell(f"failed: {' '.join(message.split())}")
    if not failures.messages:
        return EXIT_OK
    wanted = {job.picture for cell in fresh for job in cell.jobs}
    tell(f"{len(failures.pictures)} of {counted(len(wanted), 'picture')} failed")
    return EXIT_SOME if failures.written or not failures.pictures else EXIT_INPUT


class _Failures:
    """What could not be done: a message each, and the pictures; and how many results were written."""

    def __init__(self) -> None:
        self.written = 0
        self.messages: list[str] = []
        self.pictures: set[Picture] = set()

    def add(self, message: str, picture: Picture | None = None) -> None:
        self.messages.append(message)
        if picture is not None:
            self.pictures.add(picture)


def _check_numbers(options: argparse.Namespace) -> None:
    """What is wrong whatever the model: told before anything is loaded."""
    if options.steps is not None and options.budget_nfe is not None:
        raise ValueError("--steps and --budget_nfe both set the number of steps: give one of them")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps {options.steps}: allowed are 1 to the number of noise levels of the model (1000)")
    if options.eta is not None and not 0 <= options.eta <= 1:
        raise ValueError(f"--eta {options.eta}: allowed are 0 (DDIM, no fresh noise) to 1 (DDPM)")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit}: give a number of pictures of at least 1")
    if options.margin is not None and options.margin < 0:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to less than half the model's size")


def _make(
    options: argparse.Namespace,
    methods: dict[Label, "Method"],
    fresh: list[Cell],
    record: Record | None,
    failures: _Failures,
) -> None:
    """Fill the fresh jobs of each method. What cannot be done at all is said before anything is."""
    from rad.inpainter import Inpainter  # the import of peft takes seconds, which an error before need not wait for

    inpainter = Inpainter.from_pretrained(
        options.checkpoint, base=options.base, device=options.device, precision=options.precision
    )
    if options.margin is not None and options.size_policy == "crop" and 2 * options.margin >= inpainter.size[0]:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to {(inpainter.size[0] - 1) // 2} with this model")
    methods = {label: inpainter.complete(method) for label, method in methods.items()}
    steps = {label: _steps(label, method, options, inpainter.base.betas) for label, method in methods.items()}
    for label, method in methods.items():
        inpainter.sampler(method, steps=steps[label], eta=options.eta)
        if options.eta is not None and not method.uses_eta:
            tell(f"warning: --eta has no effect on {label.text}")
        if options.steps is not None and method.weights == "none":
            tell(f"warning: --steps has no effect on {label.text}")
    if record is not None:
        record.complete(inpainter, steps)
    windows: dict[str, dict[Picture, int]] = {}
    for mask in dict.fromkeys(cell.mask for cell in fresh):
        jobs = {job.picture: job for cell in fresh if cell.mask == mask for job in cell.jobs}
        windows[mask] = _windows(inpainter, list(jobs.values()), options, failures, shared=record is not None)
    for cell in fresh:
        ready = [job for job in cell.jobs if job.picture in windows[cell.mask]]
        if ready:
            filling = Filling(inpainter, methods[cell.label], steps[cell.label], cell, options, failures, record)
            filling.run(ready, windows[cell.mask])


def _steps(label: Label, method: "Method", options: argparse.Namespace, betas: Tensor) -> int:
    from rad.catalogue import cost, steps_within

    fixed = label.steps is not None or label.budget is not None
    wanted, budget = (label.steps, label.budget) if fixed else (options.steps, options.budget_nfe)
    if method.weights == "none":
        return method.preset_steps
    if budget is None:
        return method.preset_steps if wanted is None else wanted
    steps = steps_within(method, budget, betas=betas)
    work = cost(method, steps, betas=betas)
    unused = ""
    if 2 * work.units < budget and steps < len(betas):
        more = cost(method, steps + 1, betas=betas).units
        unused = (
            f"; {counted(steps + 1, 'step')} would cost {more}, so much of the budget is not used: change its settings"
        )
    tell(
        f"{label.text}: {counted(steps, 'step')} for a budget of {budget}: "
        f"{counted(work.nfe, 'network call')}, {work.vjp} VJP{unused}"
    )
    return steps


def _windows(
    inpainter: "Inpainter",
    jobs: Sequence[Job],
    options: argparse.Namespace,
    failures: _Failures,
    *,
    shared: bool,
) -> dict[Picture, int]:
    """The number of windows of each picture that can be done. `shared`: its mask file belongs to other methods' results too."""
    windows: dict[Picture, int] = {}
    for job in jobs:
        try:
            picture = job.picture.open()
            hole = job.hole((picture.height, picture.width), options)
            count = inpainter.count_windows(hole, size_policy=options.size_policy, margin=options.margin)
            there = job.mask_output if shared and job.mask_output and job.mask_output.exists() else None
            same = there is None or same_mask(there, hole)
        except (ValueError, OSError) as error:
            failures.add(f"{job.picture}: {error}", job.picture)
            continue
        if not same:
            raise ValueError(
                f"{there} is another mask than that of {job.picture} now, so results would not be comparable: "
                "give another --output, or delete those"
            )
        if options.mask_polarity == "white_is_fill" and isinstance(job.mask, Picture) and looks_inverted(hole):
            tell(
                f"warning: the mask of {job.picture.name} looks inverted; for white = known use --mask_polarity white_is_known"
            )
        windows[job.picture] = count
    return windows


@dataclass
class Filling:
    """One method at work on one mask: fills jobs in batches; a batch that fails does not stop the next."""

    inpainter: "Inpainter"
    method: "Method"
    steps: int
    cell: Cell
    options: argparse.Namespace
    failures: _Failures
    record: Record | None

    def run(self, jobs: list[Job], windows: dict[Picture, int]) -> None:
        """Fill `jobs`; `windows`: how many each picture needs."""
        options, label = self.options, self.cell.label.text
        work = self.inpainter.sampler(self.method, steps=self.steps, eta=options.eta).cost
        count = options.num_samples * sum(windows[job.picture] for job in jobs)
        backward = f" and {counted(count * work.vjp, 'backward pass')}" if work.vjp else ""
        how = f" with {counted(self.steps, 'step')}" if work.nfe else ""
        tell(
            f"{f'{self.cell.mask}: ' if self.record else ''}"
            f"{counted(len(jobs), 'picture')}, {counted(count, 'window')}, {label}{how}: "
            f"{counted(count * work.nfe, 'network call')}{backward} "
            f"of a {self.inpainter.size[1]}x{self.inpainter.size[0]} image on {self.inpainter.device}"
        )
        nfe, vjp, seconds, peak = 0, 0, 0.0, 0
        with Progress(count * work.nfe) as progress:
            for start in range(0, len(jobs), options.batch_size):
                chunk = jobs[start : start + options.batch_size]
                try:
                    pictures = [job.picture.open() for job in chunk]
                    holes = [
                        job.hole((picture.height, picture.width), options)
                        for job, picture in zip(chunk, pictures, strict=True)
                    ]
                    result = self._inpaint(chunk, pictures, holes, progress)
                except (ValueError, RuntimeError, OSError) as error:
                    if self.record is None:
                        raise
                    for job in chunk:
                        self.failures.add(f"{job.picture} by {label} on {self.cell.mask}: {error}", job.picture)
                    continue
                nfe, vjp, seconds = nfe + result.nfe, vjp + result.vjp, seconds + result.seconds
                peak = max(peak, result.peak_memory)
                self._record(chunk, result, [windows[job.picture] for job in chunk])
                self._write(chunk, pictures, holes, result)
        backward = f", {vjp} VJP" if vjp else ""
        each = f", {1000 * seconds / nfe:.1f} ms a network call of one image" if nfe else ""
        tell(f"{label}: {nfe} NFE{backward}, {seconds:.1f} s in the sampler{each}, peak memory {peak / 2**20:.0f} MiB")

    def _record(self, jobs: list[Job], result: "Inpainted", windows: list[int]) -> None:
        """Of a comparison, what the batch cost; a failure loses no pictures."""
        if self.record is None:
            return
        try:
            self.record.write()
            add_costs(self.cell, jobs, result, windows)
        except (ValueError, OSError) as error:
            self.failures.add(f"costs of {self.cell.label.text} on {self.cell.mask}: {error}")

    def _inpaint(
        self, jobs: list[Job], pictures: list[Image.Image], holes: list[Tensor], progress: "Progress"
    ) -> "Inpainted":
        options, before = self.options, progress.done
        return self.inpainter(
            pictures,
            holes,
            method=self.method,
            steps=self.steps,
            eta=options.eta,
            seed=options.seed,
            num_samples=options.num_samples,
            size_policy=options.size_policy,
            margin=options.margin,
            batch_size=options.batch_size,
            names=[job.name for job in jobs],
            on_step=lambda done, _: progress.update(before + done),
        )

    def _write(self, jobs: list[Job], pictures: list[Image.Image], holes: list[Tensor], result: "Inpainted") -> None:
        samples = self.options.num_samples
        for number, (job, picture, hole) in enumerate(zip(jobs, pictures, holes, strict=True)):
            try:
                for sample, path in enumerate(job.outputs):
                    index = number * samples + sample
                    write_picture(path, result.images[index])
                    check_known(path, picture, hole)
                    if job.raw:
                        write_picture(job.raw[sample], result.raw[index])
                if job.mask_output is not None:
                    write_mask(job.mask_output, hole)
            except OSError as error:
                self.failures.add(f"{job.picture}: cannot be written: {error}", job.picture)
                continue
            self.failures.written += 1
            for path in job.outputs:
                print(path)


def _write_sheet(options: argparse.Namespace, sheet: Path, jobs: dict[str, list[Job]], failures: _Failures) -> None:
    """Write the contact sheet of the first pictures of which any result is there."""
    from rad.sheet import ROWS, contact_sheet

    made = {job.picture for some in jobs.values() for job in some if job.outputs[0].exists()} - failures.pictures
    shown = [job for job in next(iter(jobs.values())) if job.picture in made][:ROWS]
    try:
        rows = []
        for job in shown:
            picture = job.picture.open()
            rows.append((job.picture.name, picture, job.hole((picture.height, picture.width), options)))
        if rows:
            write_picture(sheet, contact_sheet(jobs, rows))
            print(sheet)
    except (ValueError, OSError) as error:
        failures.add(f"{sheet} cannot be written: {error}")


def _networks(options: argparse.Namespace, methods: Sequence[str]) -> list["Extractor"]:
    """The networks of the report, so that a mistake is told before hours of sampling."""
    from rad.evaluation.compare import extractors

    if options.baseline is not None and options.baseline not in methods:
        raise ValueError(f"--baseline {options.baseline}: give one of {', '.join(methods)}")
    return extractors(options.feature_net, options.lpips, options.fid, device=options.device)


def _report(options: argparse.Namespace, networks: list["Extractor"], failures: _Failures) -> None:
    """Score what was written, in a second pass over the files."""
    from rad.evaluation.compare import BASELINE, evaluate
    from rad.evaluation.report import write_report

    output = Path(options.output)
    try:
        comparison = evaluate(
            output, references=options.image, extractors=networks, baseline=options.baseline or BASELINE
        )
        for path in write_report(comparison, output):
            print(path)
        for note in comparison.notes:
            tell(f"note: {note}")
    except (ValueError, OSError) as error:
        failures.add(
            f"the report: {error}; pictures are kept: `python -m rad.evaluation --results {output}` tries again"
        )


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a PNG, which is whole if it is there."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def check_known(path: Path, picture: Image.Image, hole: Tensor) -> None:
    """Read the file again and compare its known pixels with the input's, bit for bit."""
    known = (hole[0] == 0).numpy()
    with Image.open(path) as written:
        assert np.array_equal(np.asarray(written)[known], np.asarray(picture)[known]), f"known pixels differ in {path}"


class _ListMethods(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from rad.catalogue import table

        print(table())
        parser.exit()


def parser() -> Parser:
    """The options of sample.py."""
    from rad.evaluation.options import add_options
    from rad.methods import METHODS

    made = Parser(
        prog="python sample.py",
        description="Fill holes in pictures with a saved RAD adapter, or with a zero-shot method on a base model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--checkpoint", required=True, help="adapter folder; or a base model: diffusers folder, hub id, .pt"
    )
    made.add_argument("--base", help="base model of the adapter, where it is not found by itself")
    made.add_argument("--image", required=True, help="picture, folder of any depth, zip, tar or LMDB")
    made.add_argument(
        "--mask",
        required=True,
        nargs="+",
        action="extend",
        help="picture (for all), folder or archive (by name), or a generator; of several, each has its folder of results: "
        f"{', '.join(main_names())}",
    )
    made.add_argument(
        "--mask_by", default="name", choices=["name", "order"], help="which mask of a folder a picture gets"
    )
    made.add_argument("--limit", type=int, help="only so many pictures, evenly spread over the sorted names")
    made.add_argument("--output", required=True, help="PNG file for one picture, or a folder")
    made.add_argument(
        "--method",
        nargs="+",
        action="extend",
        metavar="METHOD",
        help="one (rad if none is given), or several on equal noise, each into a folder of its name; rad@50: with 50 steps, "
        f"ddnm@100nfe: as many steps as 100 network calls allow. There are {', '.join(METHODS)}",
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="METHOD.SETTING=VALUE", help="see --list_methods"
    )
    made.add_argument("--list_methods", action=_ListMethods, nargs=0, help="print all methods, their cost and settings")
    made.add_argument("--steps", type=int, help="noise levels visited; the method's preset if not given")
    made.add_argument(
        "--budget_nfe",
        type=int,
        help="as many steps as cost at most this many network calls an image; a VJP is two, line searches not counted",
    )
    made.add_argument("--eta", type=float, help="1: DDPM, 0: DDIM (no fresh noise)")
    made.add_argument("--seed", type=int, default=0, help="of noise and generated masks")
    made.add_argument("--num_samples", type=int, default=1, help="fillings of each picture")
    made.add_argument("--mask_polarity", default="white_is_fill", choices=["white_is_fill", "white_is_known"])
    made.add_argument(
        "--size_policy",
        default="error",
        choices=["error", "resize", "crop"],
        help="pictures of another size than the model's; crop: a window around each hole, any size of picture",
    )
    made.add_argument(
        "--margin",
        type=int,
        help="for crop: pixels that a window sees around its core (an eighth of its size)",
    )
    made.add_argument("--batch_size", type=int, default=8, help="windows that go through the network together")
    made.add_argument("--precision", default="32", choices=["32", "bf16"])
    made.add_argument("--device", default="auto")
    made.add_argument("--raw", action="store_true", help="also write NAME-raw.png, before known pixels are put back")
    made.add_argument("--save_mask", action="store_true", help="also write NAME-mask.png, white = filled")
    made.add_argument(
        "--report",
        action="store_true",
        help="then score the files: metrics.csv, summary.md and report.html in --output",
    )
    made.add_argument("--overwrite", action="store_true", help="make finished pictures again")
    add_options(made.add_argument_group("for --report"))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.num_samples < 1 or options.batch_size < 1:
        raise ValueError(
            f"--num_samples {options.num_samples} --batch_size {options.batch_size}: both must be at least 1"
        )
    try:
        return run(options)
    except torch.OutOfMemoryError:
        raise ValueError(
            "not enough memory for a single window: use --device cpu, a smaller model, --precision bf16 or, where the method "
            "differentiates the network, one that does not (--list_methods)"
        ) from None
