"""Inpainting of files: one picture, a folder or a zip; what is finished stays, what failed is listed at the end."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rad.masks import MaskGenerator
from rad.masks.files import looks_inverted, read_mask, write_mask
from rad.masks.shapes import MASKS, make
from rad.pictures import Picture, list_pictures
from rad.tape import generator

if TYPE_CHECKING:
    from rad.inpainter import Inpainted, Inpainter
    from rad.sampler import Method

EXIT_OK, EXIT_INPUT, EXIT_SOME = 0, 2, 3


@dataclass(frozen=True)
class Job:
    """A picture, where its mask comes from, and the files to be written: (samples, raw samples, mask)."""

    picture: Picture
    mask: Picture | MaskGenerator | None
    outputs: list[Path]
    raw: list[Path]
    mask_output: Path | None

    @property
    def files(self) -> list[Path]:
        """All files to be written."""
        return [*self.outputs, *self.raw, *([self.mask_output] if self.mask_output else [])]

    @property
    def name(self) -> str:
        """The identity of the picture for masks and noise: its file name, wherever it lies."""
        return PurePosixPath(self.picture.name).name

    def hole(self, size: tuple[int, int], options: argparse.Namespace) -> Tensor:
        """(1,H,W) in [0,1], 1 = fill, for a picture of that (height, width)."""
        if self.mask is None:
            raise ValueError(f"no mask for {self.picture.name} in {options.mask}: expected a picture of the same name")
        if isinstance(self.mask, Picture):
            return read_mask(self.mask.file(), polarity=options.mask_polarity, size=size)
        return self.mask([generator(options.seed, "mask", self.name)], *size)[0]


def run(options: argparse.Namespace) -> int:
    """Carry out `python sample.py ...`. Written paths go to stdout, everything else to stderr. Returns the exit code.

    Raises:
        ValueError, FileNotFoundError: nothing could be begun.
    """
    from rad.catalogue import create, parse_settings

    names = list(dict.fromkeys(options.method or ["rad"]))
    settings = parse_settings(options.set, names)
    methods = {name: create(name, settings[name]) for name in names}
    _check_numbers(options)
    jobs, sheet = plan_methods(options, names)
    fresh = {
        name: [job for job in some if options.overwrite or not all(path.exists() for path in job.files)]
        for name, some in jobs.items()
    }
    for name, some in jobs.items():
        if len(fresh[name]) < len(some):
            tell(
                f"{name}: the files of {len(some) - len(fresh[name])} of {counted(len(some), 'picture')} are there already "
                "(--overwrite to make them again)"
            )
    if not any(fresh.values()) and (sheet is None or sheet.exists()):
        return EXIT_OK
    if options.margin is not None and options.size_policy != "crop":
        tell("warning: --margin has no effect without --size_policy crop")
    if options.mask_polarity != "white_is_fill" and isinstance(jobs[names[0]][0].mask, MaskGenerator):
        tell(f"warning: --mask_polarity has no effect on the generator {options.mask}")
    failures = _Failures()
    if any(fresh.values()):
        _make(options, methods, fresh, failures)
    if sheet is not None:
        _write_sheet(options, sheet, jobs, failures)
    for message in failures.messages:
        tell(f"failed: {' '.join(message.split())}")
    if not failures.messages:
        return EXIT_OK
    wanted = {job.picture for some in fresh.values() for job in some}
    tell(f"{len(failures.pictures)} of {counted(len(wanted), 'picture')} failed")
    return EXIT_INPUT if failures.pictures == wanted else EXIT_SOME


class _Failures:
    """What could not be done: a message each, and the pictures."""

    def __init__(self) -> None:
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
    if options.margin is not None and options.margin < 0:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to less than half the model's size")


def _make(
    options: argparse.Namespace, methods: dict[str, "Method"], fresh: dict[str, list[Job]], failures: _Failures
) -> None:
    """Fill the fresh jobs of each method. What cannot be done at all is said before anything is."""
    from rad.inpainter import Inpainter  # the import of peft takes seconds, which an error before need not wait for

    inpainter = Inpainter.from_pretrained(
        options.checkpoint, base=options.base, device=options.device, precision=options.precision
    )
    if options.margin is not None and options.size_policy == "crop" and 2 * options.margin >= inpainter.size[0]:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to {(inpainter.size[0] - 1) // 2} with this model")
    methods = {name: inpainter.complete(method) for name, method in methods.items()}
    steps = {name: _steps(method, options, inpainter.base.betas) for name, method in methods.items()}
    for name, method in methods.items():
        inpainter.sampler(method, steps=steps[name], eta=options.eta)
        if options.eta is not None and not method.uses_eta:
            tell(f"warning: --eta has no effect on {name}")
        if options.steps is not None and method.weights == "none":
            tell(f"warning: --steps has no effect on {name}")
    pictures = {job.picture: job for some in fresh.values() for job in some}
    windows = _windows(inpainter, list(pictures.values()), options, failures)
    for name, method in methods.items():
        ready = [job for job in fresh[name] if job.picture in windows]
        if ready:
            _fill(inpainter, method, steps[name], ready, windows, options, failures)


def _steps(method: "Method", options: argparse.Namespace, betas: Tensor) -> int:
    from rad.catalogue import cost, steps_within

    if options.budget_nfe is None or method.weights == "none":
        return method.preset_steps if options.steps is None or method.weights == "none" else options.steps
    steps = steps_within(method, options.budget_nfe, betas=betas)
    work = cost(method, steps, betas=betas)
    unused = ""
    if 2 * work.units < options.budget_nfe and steps < len(betas):
        more = cost(method, steps + 1, betas=betas).units
        unused = (
            f"; {counted(steps + 1, 'step')} would cost {more}, so much of the budget is not used: change its settings"
        )
    tell(
        f"{method.name}: {counted(steps, 'step')} for a budget of {options.budget_nfe}: "
        f"{counted(work.nfe, 'network call')}, {work.vjp} VJP{unused}"
    )
    return steps


def _windows(
    inpainter: "Inpainter", jobs: Sequence[Job], options: argparse.Namespace, failures: _Failures
) -> dict[Picture, int]:
    """The number of windows of each picture that can be done."""
    windows: dict[Picture, int] = {}
    for job in jobs:
        try:
            picture = job.picture.open()
            hole = job.hole((picture.height, picture.width), options)
            count = inpainter.count_windows(hole, size_policy=options.size_policy, margin=options.margin)
        except (ValueError, OSError) as error:
            failures.add(f"{job.picture}: {error}", job.picture)
            continue
        if options.mask_polarity == "white_is_fill" and isinstance(job.mask, Picture) and looks_inverted(hole):
            tell(
                f"warning: the mask of {job.picture.name} looks inverted; for white = known use --mask_polarity white_is_known"
            )
        windows[job.picture] = count
    return windows


def _fill(
    inpainter: "Inpainter",
    method: "Method",
    steps: int,
    jobs: list[Job],
    windows: dict[Picture, int],
    options: argparse.Namespace,
    failures: _Failures,
) -> None:
    """Fill `jobs` with one method, in batches."""
    work = inpainter.sampler(method, steps=steps, eta=options.eta).cost
    count = options.num_samples * sum(windows[job.picture] for job in jobs)
    backward = f" and {counted(count * work.vjp, 'backward pass')}" if work.vjp else ""
    how = f" with {counted(steps, 'step')}" if work.nfe else ""
    tell(
        f"{counted(len(jobs), 'picture')}, {counted(count, 'window')}, {method.name}{how}: "
        f"{counted(count * work.nfe, 'network call')}{backward} "
        f"of a {inpainter.size[1]}x{inpainter.size[0]} image on {inpainter.device}"
    )
    nfe, vjp, seconds, peak = 0, 0, 0.0, 0
    with Progress(count * work.nfe) as progress:
        for start in range(0, len(jobs), options.batch_size):
            chunk = jobs[start : start + options.batch_size]
            result = _inpaint(inpainter, method, steps, chunk, options, progress, failures)
            nfe, vjp, seconds = nfe + result.nfe, vjp + result.vjp, seconds + result.seconds
            peak = max(peak, result.peak_memory)
    backward = f", {vjp} VJP" if vjp else ""
    each = f", {1000 * seconds / nfe:.1f} ms a network call of one image" if nfe else ""
    tell(
        f"{method.name}: {nfe} NFE{backward}, {seconds:.1f} s in the sampler{each}, peak memory {peak / 2**20:.0f} MiB"
    )


def _inpaint(
    inpainter: "Inpainter",
    method: "Method",
    steps: int,
    jobs: list[Job],
    options: argparse.Namespace,
    progress: "Progress",
    failures: _Failures,
) -> "Inpainted":
    pictures = [job.picture.open() for job in jobs]
    holes = [job.hole((picture.height, picture.width), options) for job, picture in zip(jobs, pictures, strict=True)]
    before = progress.done
    result = inpainter(
        pictures,
        holes,
        method=method,
        steps=steps,
        eta=options.eta,
        seed=options.seed,
        num_samples=options.num_samples,
        size_policy=options.size_policy,
        margin=options.margin,
        batch_size=options.batch_size,
        names=[job.name for job in jobs],
        on_step=lambda done, _: progress.update(before + done),
    )
    for number, (job, picture, hole) in enumerate(zip(jobs, pictures, holes, strict=True)):
        try:
            for sample, path in enumerate(job.outputs):
                index = number * options.num_samples + sample
                write_picture(path, result.images[index])
                check_known(path, picture, hole)
                if job.raw:
                    write_picture(job.raw[sample], result.raw[index])
            if job.mask_output is not None:
                write_mask(job.mask_output, hole)
        except OSError as error:
            failures.add(f"{job.picture}: cannot be written: {error}", job.picture)
    for job in jobs:
        for path in job.outputs:
            if job.picture not in failures.pictures:
                print(path)
    return result


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


def plan_methods(options: argparse.Namespace, names: Sequence[str]) -> tuple[dict[str, list[Job]], Path | None]:
    """The jobs of each method, and the contact sheet where there are several."""
    output = Path(options.output)
    if len(names) == 1:
        return {names[0]: plan(options, output)}, None
    if output.suffix.lower() == ".png" and not output.is_dir():
        raise ValueError(f"--output {output}: several methods write a folder each; give a folder")
    sheet = output / "methods.png"
    if sheet.is_dir():
        raise ValueError(f"--output {output}: the contact sheet {sheet} cannot be written, for it is a folder")
    return {name: plan(options, output / name, sheet=sheet) for name in names}, sheet


def plan(options: argparse.Namespace, output: Path, *, sheet: Path | None = None) -> list[Job]:
    """One job a picture of --image, with its mask and its files in `output`; nothing is read yet but lists of names."""
    pictures = list_pictures(options.image)
    source = Path(options.image)
    one = source.is_file() and source.suffix.lower() != ".zip"
    if not one and output.suffix.lower() == ".png" and not output.is_dir():
        raise ValueError(f"--output {output}: {source} holds several pictures; give a folder")
    into_file = one and output.suffix != "" and not output.is_dir()
    if into_file and output.suffix.lower() != ".png":
        raise ValueError(
            f"--output {output}: results are written as PNG, which keeps every pixel; end the name in .png"
        )
    folder = output.parent if into_file else output
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"--output {output} lies in {source}, and would be an input of the next run: give another folder"
        )
    if any(path.is_file() for path in (folder, *folder.parents)):
        raise ValueError(f"--output {output} cannot be written: there is a file where the folder {folder} has to be")
    find_mask = _mask_finder(options.mask)
    jobs = []
    for picture in pictures:
        relative = PurePosixPath(picture.name.lstrip("/"))  # a zip may hold absolute names
        stem = output.with_suffix("") if into_file else output / relative.with_suffix("")
        stems = (
            [stem]
            if options.num_samples == 1
            else [stem.with_name(f"{stem.name}-{n}") for n in range(options.num_samples)]
        )
        outputs = [path.with_name(f"{path.name}.png") for path in stems]
        raw = [path.with_name(f"{path.name}-raw.png") for path in stems] if options.raw else []
        mask_output = stem.with_name(f"{stem.name}-mask.png") if options.save_mask else None
        jobs.append(Job(picture, find_mask(picture), outputs, raw, mask_output))
    written = Counter(path for job in jobs for path in job.files)
    double = sorted(str(path) for path, count in written.items() if count > 1)
    if double:
        raise ValueError(
            f"{len(double)} files would be written twice, the first {double[0]}: rename pictures of {source}"
        )
    read = {
        entry.source.resolve()
        for job in jobs
        for entry in (job.picture, job.mask)
        if isinstance(entry, Picture) and isinstance(entry.source, Path)
    }
    lost = sorted(str(path) for path in [*written, *([sheet] if sheet else [])] if path.resolve() in read)
    if lost:
        raise ValueError(f"--output {output} would write over the input {lost[0]}: give another folder or name")
    return jobs


def _mask_finder(mask: str) -> Callable[[Picture], Picture | MaskGenerator | None]:
    path = Path(mask)
    if not path.exists():
        if mask not in MASKS:
            raise ValueError(
                f"--mask {mask} is neither a file, a folder, a zip nor a generator; there are {', '.join(MASKS)}"
            )
        made = make(mask)
        return lambda _: made
    found = list_pictures(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        return lambda _: found[0]
    by_stem: dict[PurePosixPath, Picture] = {}
    for entry in found:
        other = by_stem.setdefault(PurePosixPath(entry.name).with_suffix(""), entry)
        if other is not entry:
            raise ValueError(f"--mask {mask} has two masks for one picture, {other.name} and {entry.name}: remove one")
    return lambda picture: by_stem.get(PurePosixPath(picture.name).with_suffix(""))


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a PNG under a temporary name and rename it, so that a file of that name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        image.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_known(path: Path, picture: Image.Image, hole: Tensor) -> None:
    """Read the file again and compare its known pixels with the input's, bit for bit."""
    known = (hole[0] == 0).numpy()
    with Image.open(path) as written:
        assert np.array_equal(np.asarray(written)[known], np.asarray(picture)[known]), f"known pixels differ in {path}"


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def counted(number: int, what: str) -> str:
    """ "1 picture", "2 pictures", "2 backward passes"."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


class Progress:
    """Network calls done: a bar with the time left on a terminal, a line every tenth otherwise."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self._bar, self._told = total, 0, None, 0
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and self.total:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("network calls"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self.total and done * 10 // self.total > self._told:
            self._told = done * 10 // self.total
            tell(f"{done} of {self.total} network calls")


class _ListMethods(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from rad.catalogue import table

        print(table())
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Errors are ValueErrors, without the usage of all options before them."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `python sample.py --help` lists the options")


def parser() -> Parser:
    """The options of sample.py."""
    from rad.methods import METHODS

    made = Parser(
        prog="sample.py",
        description="Fill holes in pictures with a saved RAD adapter, or with a zero-shot method on a base model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--checkpoint", required=True, help="adapter folder; or a base model: diffusers folder, hub id, .pt"
    )
    made.add_argument("--base", help="base model of the adapter, where it is not found by itself")
    made.add_argument("--image", required=True, help="picture, folder of any depth, or zip")
    made.add_argument(
        "--mask",
        required=True,
        help=f"picture (for all), folder or zip (by name), or a generator: {', '.join(MASKS)}",
    )
    made.add_argument("--output", required=True, help="PNG file for one picture, or a folder")
    made.add_argument(
        "--method",
        nargs="+",
        action="extend",
        choices=list(METHODS),
        metavar="METHOD",
        help=f"one (rad if none is given), or several on equal noise, each into a folder of its name: {', '.join(METHODS)}",
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
    made.add_argument("--overwrite", action="store_true", help="make finished pictures again")
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
