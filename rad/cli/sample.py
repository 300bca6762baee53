"""Inpainting of files: one image, a folder or a zip; what is finished stays, what failed is listed at the end."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rad.cli.fill import Failures, RunLog, WindowCount, Worker, cut, encoding, fill_here, write_image
from rad.cli.guidance_options import check_conditions, networks_of
from rad.cli.plan import Job, Label, MethodRun, make_plan, share
from rad.cli.record import Record, scoring
from rad.cli.workers import Setup, fill_by_workers
from rad.console import EXIT_INPUT, EXIT_OK, EXIT_SOME, counted, program, report
from rad.device import find_devices
from rad.diffusion.spacings import Spacing
from rad.images.codecs import images_up_to
from rad.images.sources import ImageFile
from rad.masks import MaskGenerator
from rad.masks.files import looks_inverted, same_mask

if TYPE_CHECKING:
    from rad.diffusion.processes import Process
    from rad.evaluation.features import Extractor
    from rad.inpainting.inpainter import Inpainter
    from rad.sampling.method import Method, Schedule


def run(options: argparse.Namespace) -> int:
    """Carry out `rad sample ...`. Written paths go to stdout, everything else to stderr. Returns the exit code.

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
            report(
                f"{cell.label.text}{f' on {cell.mask}' if plan.tree else ''}: "
                f"the files of {len(cell.jobs) - len(new.jobs)} of {counted(len(cell.jobs), 'image')} are there already "
                "and are not compared with the present settings (--overwrite to make them again)"
            )
    fresh = [cell for cell in fresh if cell.jobs]
    reporting, sheets = options.report and whole, plan.sheets if whole else []
    if not fresh and not reporting and all(sheet.exists() for sheet in sheets):
        return EXIT_OK
    if options.margin is not None and options.size_policy != "crop":
        report("warning: --margin has no effect without --size_policy crop")
    if options.mask_polarity != "white_is_fill" and isinstance(plan.cells[0].jobs[0].mask, MaskGenerator):
        report(f"warning: --mask_polarity has no effect on the generator {plan.cells[0].mask}")
    if not options.report and (options.feature_net or options.lpips or options.fid or options.baseline):
        report("warning: --feature_net, --lpips, --fid and --baseline have no effect without --report")
    networks = _networks(options, record.methods) if reporting and record else []
    failures = Failures()
    if fresh:
        _check_writable(fresh[0].folder, options.output)
        _make(options, methods, fresh, record, failures)
    for sheet in sheets:
        shown = {cell.label.text: cell.jobs for cell in cells if cell.folder.parent == sheet.parent}
        _write_sheet(options, sheet, shown, failures)
    if reporting:
        _report(options, networks, failures)
    for message in failures.messages:
        report(f"failed: {' '.join(message.split())}")
    if not failures.messages:
        return EXIT_OK
    wanted = {job.image for cell in cells for job in cell.jobs}
    report(f"{len(failures.images)} of {counted(len(wanted), 'image')} failed")
    some = failures.written or sum(len(cell.jobs) for cell in fresh) < sum(len(cell.jobs) for cell in cells)
    return EXIT_SOME if some or not failures.images else EXIT_INPUT


def _check_numbers(options: argparse.Namespace) -> None:
    """What is wrong whatever the model: told before anything is loaded."""
    if options.steps is not None and options.budget_nfe is not None:
        raise ValueError("--steps and --budget_nfe both set the number of steps: give one of them")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps {options.steps}: allowed are 1 to the number of noise levels of the model (1000)")
    if options.eta is not None and not 0 <= options.eta <= 1:
        raise ValueError(f"--eta {options.eta}: allowed are 0 (DDIM, no fresh noise) to 1 (DDPM)")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit}: give a number of images of at least 1")
    if options.margin is not None and options.margin < 0:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to less than half the model's size")
    if options.feather < 0 or options.dilate < 0:
        raise ValueError(f"--feather {options.feather} --dilate {options.dilate}: give 0 (off) or more")
    if options.guidance is not None and not 0 <= options.guidance < float("inf"):
        raise ValueError(f"--guidance {options.guidance}: give 0 to 1 (the prompt as it is) or more")
    if options.devices < 1:
        raise ValueError(f"--devices {options.devices}: give 1, or the number of devices to share the images")


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
            report(f"warning: --{name} has no effect on {label.text}")
        if options.steps is not None and method.weights == "none":
            report(f"warning: --steps has no effect on {label.text}")
    if record is not None:
        record.complete(inpainter, {label: chosen.steps for label, chosen in schedules.items()}, devices)
    needs: dict[str, dict[ImageFile, WindowCount]] = {}
    for mask in dict.fromkeys(cell.mask for cell in fresh):
        jobs = {job.image: job for cell in fresh if cell.mask == mask for job in cell.jobs}
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
    from rad.models.loaded_model import Condition

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
    report(
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
) -> dict[ImageFile, WindowCount]:
    """What each image needs that can be done. `shared`: its mask file belongs to other methods' results too."""
    needs: dict[ImageFile, WindowCount] = {}
    for job in jobs:
        try:
            image = job.image.open()
            hole = job.hole((image.height, image.width), options)
            count = inpainter.count_windows(hole, size_policy=options.size_policy, margin=options.margin)
            there = job.mask_output if shared and job.mask_output and job.mask_output.exists() else None
            same = there is None or same_mask(there, hole)
        except (ValueError, OSError) as error:
            failures.add(f"{job.image}: {error}", job.image)
            continue
        if not same:
            raise ValueError(
                f"{there} is another mask than that of {job.image} now, so results would not be comparable: "
                "give another --output, or delete those"
            )
        if options.mask_polarity == "white_is_fill" and isinstance(job.mask, ImageFile) and looks_inverted(hole):
            report(
                f"warning: the mask of {job.image.name} looks inverted; for white = known use --mask_polarity white_is_known"
            )
        needs[job.image] = WindowCount(count, image.width * image.height)
    return needs


def _write_sheet(options: argparse.Namespace, sheet: Path, jobs: dict[str, list[Job]], failures: Failures) -> None:
    """Write the contact sheet of the first images of which any result is there."""
    from rad.cli.contact_sheet import ROWS, contact_sheet

    made = {job.image for some in jobs.values() for job in some if job.outputs[0].exists()} - failures.images
    shown = [job for job in next(iter(jobs.values())) if job.image in made][:ROWS]
    try:
        rows = []
        for job in shown:
            image = job.image.open()
            rows.append((job.image.name, image, job.hole((image.height, image.width), options)))
        if rows:
            write_image(sheet, contact_sheet(jobs, rows))
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
            report(f"note: {note}")
    except (ValueError, OSError) as error:
        failures.add(f"the report: {error}; images are kept: `{program('evaluate')} --results {output}` tries again")


def main(options: argparse.Namespace) -> int:
    """`run`, after checks of the values and with a limit on the size of images; for options of `sample_options.parser`."""
    if options.num_samples < 1 or options.batch_size < 1:
        raise ValueError(
            f"--num_samples {options.num_samples} --batch_size {options.batch_size}: both must be at least 1"
        )
    if not 0 < options.max_megapixels < float("inf"):
        raise ValueError(f"--max_megapixels {options.max_megapixels}: give a number of megapixels above 0")
    try:
        with images_up_to(options.max_megapixels):
            return run(options)
    except torch.OutOfMemoryError:
        raise ValueError(
            "not enough memory for a single window: use --device cpu, a smaller model, --precision bf16 or, where the method "
            "differentiates the network, one that does not (--list_methods)"
        ) from None
