"""The program `rad sample`. Finished files are kept, and failures are listed at the end."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from PIL import Image

from rad.cli.sample.fill import Batch, Inputs, Worker, make_batches, usage_of, write_image
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import MethodRun, contact_sheets, make_plan, select_part
from rad.cli.sample.prepare import check_model, count_windows, preview
from rad.cli.sample.record import Record
from rad.cli.sample.request import Finished, Requests, text_hash
from rad.cli.sample.run_log import Failures, RunLog, is_out_of_memory
from rad.cli.sample.runtimes.base import Runtime
from rad.cli.sample.runtimes.choice import find_runtime
from rad.cli.sample.workers import Setup, fill_by_processes
from rad.console import EXIT_INPUT, EXIT_OK, EXIT_SOME, Progress, counted, did_you_mean, print_line, program, report
from rad.evaluation.provenance import scoring
from rad.images.atomic import remove_temporaries, require_writable, unwritable
from rad.images.codecs import images_up_to
from rad.images.formats import open_file
from rad.images.grid import blend, contact_sheet
from rad.images.remote import Unreachable
from rad.images.sources import is_source
from rad.inpainting.canvas.layout import WITH_MARGIN
from rad.inpainting.inputs import changed_options
from rad.lock import EVALUATION, locked, one_at_a_time

if TYPE_CHECKING:
    from rad.evaluation.features import Extractor

GREY = (0.5, 0.5, 0.5)
"""The hole in a contact sheet."""

SHEET_ROWS, SMALLEST_CELL, LARGEST_CELL = 12, 128, 256


def run(options: SampleOptions) -> int:
    """Carry out `rad sample` and return the exit code. Paths of results go to stdout, all else to stderr.

    Raises ValueError or FileNotFoundError if nothing could start.
    """
    try:
        with images_up_to(options.max_megapixels):
            return _run(options)
    except Unreachable as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            "not enough memory for a single window: use --device cpu, a smaller model, --precision bf16, or a method "
            "without gradients (--list_methods)"
        ) from None


def _run(options: SampleOptions) -> int:
    runtime = find_runtime(options)
    options = runtime.options
    runs = make_plan(options, list(runtime.methods))
    sheets, reporting = contact_sheets(runs) if options.part is None else [], options.report and options.part is None
    if options.part is not None:
        runs = select_part(runs, options.part, options.batch_size)
    if options.preview_masks:
        _warn(options, runs)
        failures = Failures()
        preview(options, runs, failures)
        return _exit_code(runs, runs, failures)
    with _held(options) as problem:
        return _run_held(runtime, runs, sheets, reporting, problem)


def _run_held(
    runtime: Runtime,
    runs: Sequence[MethodRun],
    sheets: Sequence[Path],
    reporting: bool,
    problem: str,
) -> int:
    """Fill what is missing, while no other process writes to --output; `problem`: why it cannot be written."""
    options = runtime.options
    record = Record(runtime) if options.tree else None
    missing = _unfinished(options, runs, Requests(runtime))
    if not missing and not reporting and all(sheet.exists() for sheet in sheets):
        return EXIT_OK
    if problem:
        raise ValueError(problem)
    if runtime.from_checkpoint:
        report(f"settings of the checkpoint: {runtime.from_checkpoint}")
    _warn(options, runs)
    networks = _load_metrics(options, record.methods) if reporting and record else []
    failures = Failures()
    if missing:
        require_writable(missing[0].jobs[0].outputs[0].parent, options.output)
        if options.part is None:
            remove_temporaries({path.parent for run in missing for job in run.jobs for path in job.files})
        _fill(runtime, missing, record, failures)
    for sheet in sheets:
        _write_sheet(options, sheet, [run for run in runs if run.folder.parent == sheet.parent], failures)
    if reporting:
        _write_report(options, networks, failures)
    return _exit_code(runs, missing, failures)


def _exit_code(runs: Sequence[MethodRun], missing: Sequence[MethodRun], failures: Failures) -> int:
    """Report the failures. The code says whether images failed, and whether others have their files."""
    for message in failures.messages:
        report(f"failed: {' '.join(message.split())}")
    if not failures.messages:
        return EXIT_OK
    images = {job.image for run in runs for job in run.jobs}
    if failures.images:
        report(f"{len(failures.images)} of {counted(len(images), 'image')} failed")
    some = failures.written or sum(len(run.jobs) for run in missing) < sum(len(run.jobs) for run in runs)
    return EXIT_SOME if some or not failures.images else EXIT_INPUT


@contextmanager
def _held(options: SampleOptions) -> Iterator[str]:
    """Hold --output, or its part for a shard or a single file; yields why it cannot be written, empty if it can."""
    folder, part, beside, problem = Path(options.output), "", "", ""
    if not options.tree and folder.suffix.lower() == ".png" and not folder.is_dir():
        folder, part, beside = folder.parent, text_hash(folder.name), "*"
    elif options.part is not None:
        number, count = options.part
        part, beside = f"{number}of{count}", f"*of{count}"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, part=part, beside=beside))
        except OSError as error:
            problem = unwritable(folder, options.output, error)
        yield problem


def _unfinished(options: SampleOptions, runs: Sequence[MethodRun], requests: Requests) -> list[MethodRun]:
    """The runs with the jobs whose files are not all there and whole; with --overwrite all jobs.

    Raises ValueError for results of another request.
    """
    if options.overwrite:
        return [run for run in runs if run.jobs]
    finished = Finished.find(runs, requests)
    if finished.different:
        (path, difference), number = finished.different[0], len(finished.different)
        few = f"{path} is a result" if number == 1 else f"{number} files, such as {path}, are results"
        raise ValueError(
            f"{few} of another request ({difference}): delete what is to be filled again, or give --overwrite or another --output"
        )
    for run, jobs, unrecorded in zip(runs, finished.missing, finished.unrecorded, strict=True):
        if done := len(run.jobs) - len(jobs):
            name = f"{run.label.text}{f' on {run.mask}' if options.tree else ''}"
            unknown = f"; {unrecorded} of them do not record their settings" if unrecorded and not options.tree else ""
            report(f"{name}: skipped {done} of {counted(len(run.jobs), 'image')}, finished before{unknown}")
    return [replace(run, jobs=jobs) for run, jobs in zip(runs, finished.missing, strict=True) if jobs]


def _warn(options: SampleOptions, runs: Sequence[MethodRun]) -> None:
    if options.margin is not None and options.size_policy not in WITH_MARGIN:
        report("warning: --margin has no effect without --size_policy crop, zoom or pyramid")
    generators = [mask for mask in options.mask if not is_source(mask)]
    if generators and (unused := changed_options(options.mask_format)):
        names = ", ".join(f"--{name}" for name in unused)
        report(f"warning: {names} has no effect on the generator {generators[0]}")
    if not options.report and (options.feature_net or options.lpips or options.fid or options.baseline):
        report("warning: --feature_net, --lpips, --fid and --baseline have no effect without --report")


def _fill(runtime: Runtime, runs: Sequence[MethodRun], record: Record | None, failures: Failures) -> None:
    options, devices = runtime.options, runtime.find_devices()
    several = len(devices) > 1
    model = runtime.load("cpu" if several else devices[0], planning=several)
    check_model(model, options, [job for run in runs for job in run.jobs])
    plans, costs = {}, {}
    for label in runtime.methods:
        plans[label], costs[label] = model.prepare(label)
    if record is not None:
        record.complete(model, {label: plan.steps for label, plan in plans.items()}, devices)
    thin, window_counts = {label.given_thin_steps(options) is not None for label in runtime.methods}, {}
    for mask in dict.fromkeys(run.mask for run in runs):
        jobs = {job.image: job for run in runs if run.mask == mask for job in run.jobs}.values()
        window_counts[mask] = count_windows(model, jobs, options, failures, thin)
    size, where = model.size, ", ".join(dict.fromkeys(devices))
    where = f"of a {size[1]}x{size[0]} image on {where}{f' ({len(devices)} processes)' if several else ''}"
    logs = []
    for number, run in enumerate(runs):
        batches = make_batches(number, run, window_counts[run.mask], options)
        cost, plan = costs[run.label], plans[run.label]
        logs.append(RunLog(run, batches, cost, plan, where, options, record, failures))
    if not several:
        _fill_here(Worker(model, plans, options, Requests(runtime)), logs)
        return
    del model
    batches, files = [batch for log in logs for batch in log.batches], runtime.method_files()
    setup = Setup(options, plans, batches, files, runtime.threads(devices))
    fill_by_processes(setup, logs, devices, failures)


def _fill_here(worker: Worker, logs: Sequence[RunLog]) -> None:
    for log in (log for log in logs if log.batches):
        log.begin()
        with Progress(log.calls + log.training, unit=log.unit) as progress, Pipeline(worker, log) as pipeline:
            for batch in log.batches:
                before = progress.done
                pipeline.fill(batch, lambda done, before=before: progress.update(before + done))
        log.end()


class Pipeline:
    """Fills the batches of a log in their order. A context manager, which writes the last batch at its end.

    While the network fills a batch, one thread reads the next batch and another writes the last one. At most three batches are
    in memory. Results and messages come in the order of the batches; an interruption keeps every filled batch.
    """

    def __init__(self, worker: Worker, log: RunLog) -> None:
        self.worker, self.log = worker, log
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rad-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rad-write")
        self._waiting = iter(log.batches)
        self._ahead: Future[Inputs] | None = None
        self._writing: tuple[Batch, Future[list[str]]] | None = None
        self._read_ahead()

    def fill(self, batch: Batch, on_step: Callable[[int], None]) -> None:
        """Fill the next batch of the log, which is `batch`, and begin to write it."""
        assert self._ahead is not None
        ahead, result, problem = self._ahead, None, None
        try:
            inputs = ahead.result()
            self._read_ahead()
            result = self.worker.fill(batch, inputs, on_step)
        except Exception as error:  # a user's method may raise any; the other batches go on
            problem = error
        if self._ahead is ahead:
            self._read_ahead()
        self._finish()
        if problem is not None or result is None:
            assert problem is not None
            self.log.failed(batch, problem)
            return
        self.log.filled(batch, usage_of(result))
        self._writing = batch, self._writer.submit(self.worker.write, batch, inputs, result)

    def _read_ahead(self) -> None:
        batch = next(self._waiting, None)
        self._ahead = None if batch is None else self._reader.submit(self.worker.read, batch)

    def _finish(self) -> None:
        """Wait for the files of the last batch, and report them."""
        if self._writing is not None:
            (batch, problems), self._writing = self._writing, None
            self.log.written(batch, problems.result())

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)
        try:
            self._finish()
        finally:
            self._writer.shutdown()


def _write_sheet(options: SampleOptions, path: Path, runs: Sequence[MethodRun], failures: Failures) -> None:
    """Write the contact sheet of the first images that have a result: input, first sample of each method, original."""
    columns = [{job.image: job for job in run.jobs} for run in runs]
    finished = {image for jobs in columns for image, job in jobs.items() if job.outputs[0].exists()} - failures.images
    try:
        rows: list[list[Image.Image | None]] = []
        for image_file, job in [pair for pair in columns[0].items() if pair[0] in finished][:SHEET_ROWS]:
            image, mask = job.read(options)
            results = [jobs[image_file].outputs[0] for jobs in columns]
            shown = [open_file(result) if result.exists() else None for result in results]
            rows.append([image and _shrunk(image) for image in (blend(image, GREY, mask.hole), *shown, image)])
        if rows:
            side = max(max(image.size) for row in rows for image in row if image is not None)
            side = max(SMALLEST_CELL, min(LARGEST_CELL, side))
            labels = ["input", *(run.label.text for run in runs), "as given"]
            write_image(path, contact_sheet(rows, column_labels=labels, cell_size=side))
            print_line(path)
    except (ValueError, OSError) as error:
        failures.add(f"{path} cannot be written: {error}")


def _shrunk(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((LARGEST_CELL, LARGEST_CELL), Image.Resampling.LANCZOS)
    return image


def _load_metrics(options: SampleOptions, methods: Sequence[str]) -> list["Extractor"]:
    """The networks of the report, loaded before hours of sampling to find mistakes."""
    from rad.evaluation.compare import extractors

    if options.baseline is not None and options.baseline not in methods:
        hint = did_you_mean(options.baseline, methods)
        raise ValueError(f"--baseline {options.baseline}{hint}: give one of {', '.join(methods)}")
    return extractors(options.feature_net, options.lpips, options.fid, device=options.device)


def _write_report(options: SampleOptions, networks: list["Extractor"], failures: Failures) -> None:
    from rad.evaluation.compare import evaluate
    from rad.evaluation.report import write_report

    output = Path(options.output)
    try:
        with one_at_a_time(output / EVALUATION):
            comparison = evaluate(
                output,
                references=options.image,
                extractors=networks,
                baseline=options.baseline,
                scoring=scoring(),
                remarks=failures.messages,
            )
            paths = write_report(comparison, output)
        for path in paths:
            print_line(path)
        for note in comparison.notes:
            report(f"note: {note}")
    except (ValueError, OSError) as error:
        failures.add(f"the report: {error}; images are kept: `{program('evaluate')} --results {output}` tries again")
