"""Inpainting of files: one picture, a folder or a zip; what is finished stays, what failed is listed at the end."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from rad.cli.fill import Failures, RunLog, WindowCount, Worker, cut, encoding, fill_here, write_picture
from rad.cli.guidance_options import add_conditions, check_conditions, networks_of
from rad.cli.plan import Job, Label, MethodRun, make_plan, share
from rad.cli.record import Record, scoring
from rad.cli.workers import Setup, fill_by_workers
from rad.console import EXIT_INPUT, EXIT_OK, EXIT_SOME, Parser, counted, tell
from rad.device import find_devices
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.images.codecs import pictures_up_to
from rad.images.sources import Picture
from rad.masks import MaskGenerator
from rad.masks.files import looks_inverted, same_mask
from rad.masks.shapes import main_names

if TYPE_CHECKING:
    from rad.diffusion.processes import Process
    from rad.evaluation.features import Extractor
    from rad.inpainting.inpainter import Inpainter
    from rad.sampling.method import Method, Schedule


def run(options: argparse.Namespace) -> int:
    """Carry out `python sample.py ...`. Written paths go to stdout, everything else to stderr. Returns the exit code.

    Raises:
        ValueError, FileNotFoundError: nothing could be begun.
    """
    from rad.methods.registry import create, parse_settings

    labels = list(dict.fromkeys(Label.of(text) for text in options.method or ["rad"]))
    settings = parse_settings(options.set, list(dict.fromkeys(label.method for label in labels)))
    methods = {label: create(label.method, settings[label.method]) for label in labels}
    _check_numbers(options)
    check_conditions(options)
    plan = make_plan(options, labels)
    whole = options.shard is None
    cells = plan.cells if whole else share(plan.cells, options.shard, options.batch_size)
    record = Record(options, methods) if plan.tree else None
    fresh = [
        replace(cell, jobs=[job for job in cell.jobs if options.overwrite or not all(p.exists() for p in job.files)])
        for cell in cells
    ]
    for cell, new in zip(cells, fresh, strict=True):
        if len(new.jobs) < len(cell.jobs):
            tell(
                f"{cell.label.text}{f' on {cell.mask}' if plan.tree else ''}: "
                f"the files of {len(cell.jobs) - len(new.jobs)} of {counted(len(cell.jobs), 'picture')} are there already "
                "and are not compared with the present settings (--overwrite to make them again)"
            )
    fresh = [cell for cell in fresh if cell.jobs]
    report, sheets = options.report and whole, plan.sheets if whole else []
    if not fresh and not report and all(sheet.exists() for sheet in sheets):
        return EXIT_OK
    if options.margin is not None and options.size_policy != "crop":
        tell("warning: --margin has no effect without --size_policy crop")
    if options.mask_polarity != "white_is_fill" and isinstance(plan.cells[0].jobs[0].mask, MaskGenerator):
        tell(f"warning: --mask_polarity has no effect on the generator {plan.cells[0].mask}")
    if not options.report and (options.feature_net or options.lpips or options.fid or options.baseline):
        tell("warning: --feature_net, --lpips, --fid and --baseline have no effect without --report")
    networks = _networks(options, record.methods) if report and record else []
    failures = Failures()
    if fresh:
        _check_writable(fresh[0].folder, options.output)
        _make(options, methods, fresh, record, failures)
    for sheet in sheets:
        shown = {cell.label.text: cell.jobs for cell in cells if cell.folder.parent == sheet.parent}
        _write_sheet(options, sheet, shown, failures)
    if report:
        _report(options, networks, failures)
    for message in failures.messages:
        tell(f"failed: {' '.join(message.split())}")
    if not failures.messages:
        return EXIT_OK
    wanted = {job.picture for cell in cells for job in cell.jobs}
    tell(f"{len(failures.pictures)} of {counted(len(wanted), 'picture')} failed")
    some = failures.written or sum(len(cell.jobs) for cell in fresh) < sum(len(cell.jobs) for cell in cells)
    return EXIT_SOME if some or not failures.pictures else EXIT_INPUT


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
    if options.feather < 0 or options.dilate < 0:
        raise ValueError(f"--feather {options.feather} --dilate {options.dilate}: give 0 (off) or more")
    if options.guidance is not None and not 0 <= options.guidance < float("inf"):
        raise ValueError(f"--guidance {options.guidance}: give 0 to 1 (the prompt as it is) or more")
    if options.devices < 1:
        raise ValueError(f"--devices {options.devices}: give 1, or the number of devices to share the pictures")


def _check_writable(folder: Path, output: str) -> None:
    """Hours of work are not begun for a folder that takes no files."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(
            f"--output {output} cannot be written, for {there} takes no files ({error.strerror})"
        ) from None


def _make(
    options: argparse.Namespace,
    methods: dict[Label, "Method"],
    fresh: list[MethodRun],
    record: Record | None,
    failures: Failures,
) -> None:
    """Fill the fresh jobs of each method. What cannot be done at all is said before anything is."""
    from rad.inpainting.inpainter import Inpainter

    devices, given = find_devices(options.device, options.devices), methods
    inpainter = Inpainter.from_pretrained(
        options.checkpoint,
        base=options.base,
        device=devices[0] if len(devices) == 1 else "cpu",  # several processes have each its own
        precision=options.precision,
        size=options.size,
        **networks_of(options),
    )
    _check_told(inpainter, options, methods, [job for cell in fresh for job in cell.jobs])
    if options.margin is not None and options.size_policy == "crop" and 2 * options.margin >= inpainter.size[0]:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to {(inpainter.size[0] - 1) // 2} with this model")
    methods = {label: inpainter.complete(method) for label, method in methods.items()}
    schedules = {
        label: _schedule(label, method, options, inpainter.model.base_process) for label, method in methods.items()
    }
    work = {}
    for label, method in methods.items():
        try:
            work[label] = inpainter.sampler(method, **vars(schedules[label])).cost
        except ValueError as error:
            preset = method.preset_solver if label.given(options)["solver"] is None else "ddpm"
            hint = "" if preset == "ddpm" else f" ({preset!r} is its preset; {label.text},solver=ddpm takes another)"
            raise ValueError(f"{label.text}: {error}{hint}") from None
        for name in method.unused(**label.given(options)):
            tell(f"warning: --{name} has no effect on {label.text}")
        if options.steps is not None and method.weights == "none":
            tell(f"warning: --steps has no effect on {label.text}")
    if record is not None:
        record.complete(inpainter, {label: chosen.steps for label, chosen in schedules.items()}, devices)
    needs: dict[str, dict[Picture, WindowCount]] = {}
    for mask in dict.fromkeys(cell.mask for cell in fresh):
        jobs = {job.picture: job for cell in fresh if cell.mask == mask for job in cell.jobs}
        needs[mask] = _needs(inpainter, list(jobs.values()), options, failures, shared=record is not None)
    chunks = [cut(number, cell, needs[cell.mask], options) for number, cell in enumerate(fresh)]
    accounts = [
        RunLog(
            cell,
            own,
            work[cell.label],
            schedule=schedules[cell.label],
            size=inpainter.size,
            where=", ".join(dict.fromkeys(devices)) + (f" ({len(devices)} processes)" if len(devices) > 1 else ""),
            options=options,
            record=record,
            failures=failures,
        )
        for cell, own in zip(fresh, chunks, strict=True)
    ]
    if len(devices) == 1:
        fill_here(Worker(inpainter, methods, schedules, options), accounts)
        return
    del inpainter, methods
    setup = Setup(options, given, schedules, [chunk for own in chunks for chunk in own])
    fill_by_workers(setup, accounts, devices, failures)


def _check_told(
    inpainter: "Inpainter", options: argparse.Namespace, methods: dict[Label, "Method"], jobs: Sequence[Job]
) -> None:
    """What a model is told is said to be of no use before anything is filled."""
    from rad.models.guidance_inputs import Condition

    told = [
        Condition(prompt, options.negative, options.guidance) for prompt in dict.fromkeys(job.prompt for job in jobs)
    ]
    if any(method.weights != "none" for method in methods.values()):
        inpainter.check(told, **encoding(options))
    elif told != [Condition()]:
        raise ValueError("a prompt has no effect on methods that use no network")


def _schedule(label: Label, method: "Method", options: argparse.Namespace, base_process: "Process") -> "Schedule":
    """How the method is run: the user's choice, or its preset. The solver is checked before anything is filled."""
    given = label.given(options)
    steps = _steps(label, method, options, base_process, method.choose(**given).spacing)
    return method.choose(steps=steps, **given)


def _steps(
    label: Label, method: "Method", options: argparse.Namespace, base_process: "Process", spacing: Spacing
) -> int:
    from rad.methods.registry import cost, steps_within

    fixed = label.steps is not None or label.budget is not None
    wanted, budget = (label.steps, label.budget) if fixed else (options.steps, options.budget_nfe)
    if method.weights == "none":
        return method.preset_steps
    if budget is None:
        return method.preset_steps if wanted is None else wanted
    steps = steps_within(method, budget, base_process=base_process, spacing=spacing)
    work = cost(method, steps, base_process=base_process, spacing=spacing)
    unused = ""
    if 2 * work.units < budget and steps < base_process.sampled_steps:
        more = cost(method, steps + 1, base_process=base_process, spacing=spacing).units
        unused = (
            f"; {counted(steps + 1, 'step')} would cost {more}, so much of the budget is not used: change its settings"
        )
    tell(
        f"{label.text}: {counted(steps, 'step')} for a budget of {budget}: "
        f"{counted(work.nfe, 'network call')}, {work.vjp} VJP{unused}"
    )
    return steps


def _needs(
    inpainter: "Inpainter",
    jobs: Sequence[Job],
    options: argparse.Namespace,
    failures: Failures,
    *,
    shared: bool,
) -> dict[Picture, WindowCount]:
    """What each picture needs that can be done. `shared`: its mask file belongs to other methods' results too."""
    needs: dict[Picture, WindowCount] = {}
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
        needs[job.picture] = WindowCount(count, picture.width * picture.height)
    return needs


def _write_sheet(options: argparse.Namespace, sheet: Path, jobs: dict[str, list[Job]], failures: Failures) -> None:
    """Write the contact sheet of the first pictures of which any result is there."""
    from rad.cli.contact_sheet import ROWS, contact_sheet

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


def _report(options: argparse.Namespace, networks: list["Extractor"], failures: Failures) -> None:
    """Score what was written, in a second pass over the files."""
    from rad.evaluation.compare import evaluate
    from rad.evaluation.report import write_report

    output = Path(options.output)
    try:
        comparison = evaluate(
            output,
            references=options.image,
            extractors=networks,
            baseline=options.baseline,
            scoring=scoring(),
            remarks=failures.messages,
        )
        for path in write_report(comparison, output):
            print(path)
        for note in comparison.notes:
            tell(f"note: {note}")
    except (ValueError, OSError) as error:
        failures.add(
            f"the report: {error}; pictures are kept: `python -m rad.evaluation --results {output}` tries again"
        )


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: give 1/4 to 4/4 for the parts of a run on four machines")
    return int(number), int(count)


class _ListMethods(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        from rad.methods.registry import table

        for text in namespace.method or []:
            Label.of(text)  # registers a method of a file
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
    made.add_argument(
        "--image",
        required=True,
        help="picture, folder of any depth, zip, tar or LMDB, or hf:ID:SPLIT; 8 bits are read, of the first frame, "
        "turned upright, without transparency. An RGB colour profile is kept in the results, grey and CMYK with one become sRGB",
    )
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
        "ddnm@100nfe: as many steps as 100 network calls allow; rad@10,solver=ddim,spacing=quad,eta=0: with its own solver, "
        "spacing and eta; mine.py:Mine: your own, the class Mine of the file mine.py, whose code is run, as mine. "
        f"There are {', '.join(METHODS)}",
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="METHOD.SETTING=VALUE", help="see --list_methods"
    )
    made.add_argument(
        "--list_methods",
        action=_ListMethods,
        nargs=0,
        help="print all methods, their cost and settings; with --method FILE.py:CLASS before it yours too",
    )
    made.add_argument("--steps", type=int, help="noise levels visited; the method's preset if not given")
    made.add_argument(
        "--budget_nfe",
        type=int,
        help="as many steps as cost at most this many network calls an image; a VJP is two, line searches not counted",
    )
    made.add_argument(
        "--solver",
        choices=get_args(Solver),
        help="ddpm: first order, with fresh noise by --eta; ddim: without; dpm++2m: second order, for few steps, an ODE "
        "(--eta 0) or SDE (--eta 1), for rad and tdpaint, with --spacing logsnr or quad. The method's preset if not given",
    )
    made.add_argument(
        "--spacing",
        choices=get_args(Spacing),
        help="where the noise levels lie. even: in time; trailing: even, but the last network call goes farther; quad: closer "
        "together at low noise; logsnr: even in log(a/s); official: as the official RAD sampler. The method's preset if not "
        "given, or that of --solver",
    )
    made.add_argument(
        "--eta",
        type=float,
        help="fresh noise, 0 (none) to 1 (DDPM's); the method's preset if not given, or that of --solver",
    )
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
    made.add_argument("--feather", type=int, default=0, help="pixels over which what is known passes into the filling")
    made.add_argument(
        "--size", type=int, help="side of the pictures in pixels, for SD3 and Flux; the model's own if not given"
    )
    latent = made.add_argument_group("for models that work on latents")
    latent.add_argument(
        "--grid",
        choices=["average", "bilinear", "nearest"],
        help="how the hole comes to the latent grid; average, where a cell is known if 95%% of it is, if not given",
    )
    latent.add_argument("--dilate", type=int, default=0, help="rings of cells that are added to the hole")
    latent.add_argument(
        "--encode_full",
        action="store_true",
        help="let the encoder see what is in the hole, as other programs do: the result knows something of it",
    )
    made.add_argument("--batch_size", type=int, default=8, help="windows that go through the network together")
    made.add_argument("--precision", default="32", choices=["32", "bf16"])
    made.add_argument("--device", default="auto", help="auto: an accelerator if there is one, or cpu")
    made.add_argument(
        "--devices",
        type=int,
        default=1,
        help="share the pictures between so many processes, one an accelerator or all on the CPU, whose threads they divide. "
        "Files are those of one process with as many threads as each; seconds are counted in each, and on a CPU they are not "
        "those of one that is alone",
    )
    made.add_argument(
        "--shard",
        type=_shard,
        metavar="NUMBER/COUNT",
        help="do only this part of the pictures, as 2/4, for example one on each of four machines that share a disk; "
        "sheet and report are made by the same call without it, when all are done",
    )
    made.add_argument(
        "--max_megapixels",
        type=float,
        default=179,
        help="larger pictures are refused, for they may be decompression bombs",
    )
    made.add_argument("--raw", action="store_true", help="also write NAME-raw.png, before known pixels are put back")
    made.add_argument("--save_mask", action="store_true", help="also write NAME-mask.png, white = filled")
    made.add_argument(
        "--report",
        action="store_true",
        help="then score the files: metrics.csv, summary.md and report.html in --output",
    )
    made.add_argument("--overwrite", action="store_true", help="make finished pictures again")
    add_conditions(made.add_argument_group("for text-to-image models"))
    add_options(made.add_argument_group("for --report"))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.num_samples < 1 or options.batch_size < 1:
        raise ValueError(
            f"--num_samples {options.num_samples} --batch_size {options.batch_size}: both must be at least 1"
        )
    if not 0 < options.max_megapixels < float("inf"):
        raise ValueError(f"--max_megapixels {options.max_megapixels}: give a number of megapixels above 0")
    try:
        with pictures_up_to(options.max_megapixels):
            return run(options)
    except torch.OutOfMemoryError:
        raise ValueError(
            "not enough memory for a single window: use --device cpu, a smaller model, --precision bf16 or, where the method "
            "differentiates the network, one that does not (--list_methods)"
        ) from None
