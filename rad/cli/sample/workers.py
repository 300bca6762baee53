"""Several processes, one for each device: each takes the next batch when it has finished one."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_long
from dataclasses import dataclass
from typing import Any, TypeVar

from rad.cli.sample.fill import Batch, ReadError, Worker, usage_of
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Label
from rad.cli.sample.record import OtherSettings
from rad.cli.sample.request import Requests
from rad.cli.sample.run_log import EXPECTED, Failures, RunLog, describe, is_out_of_memory
from rad.cli.sample.runtimes.base import Plan
from rad.cli.sample.runtimes.choice import open_runtime
from rad.console import Progress
from rad.errors import NotFiniteError
from rad.evaluation.run_log import Usage
from rad.images.codecs import images_up_to

PATIENCE, TICK = 10.0, 0.2
"""Seconds that a process has for its end, and between two updates of the progress bar."""

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What each process needs.

    Args:
        files: method files and their hashes, as arguments of `rad.methods.own.load`; threads: of the CPU, for each process.
    """

    options: SampleOptions
    schedules: Mapping[Label, Plan]
    batches: Sequence[Batch]
    files: Sequence[tuple[str, str]] = ()
    threads: int | None = None

    def worker(self, device: str) -> Worker:
        """Load the model on a device. Raises ValueError for a method file that has changed."""
        if self.files:
            from rad.methods.own import load

            for text, sha256 in self.files:
                load(text, sha256=sha256)
        runtime = open_runtime(self.options)
        return Worker(runtime.load(device, threads=self.threads), self.schedules, self.options, Requests(runtime))


@dataclass
class _Process:
    """A process with a model; `calls`: finished network calls of its batch, in shared memory."""

    device: str
    pool: ProcessPoolExecutor
    loading: "Future[None]"
    calls: "c_long"

    def call(self, task: Callable[..., T], *arguments: object) -> "asyncio.Future[T]":
        return asyncio.wrap_future(self.pool.submit(_run, task, *arguments))


def fill_by_processes(setup: Setup, logs: Sequence[RunLog], devices: Sequence[str], failures: Failures) -> None:
    """Fill all batches with a process on each device. The others go on if one dies; all end with this call, also after Ctrl-C."""
    busy = [log for log in logs if log.batches]
    for log in busy:
        log.begin()
    with (
        Progress(
            sum(log.calls + log.training for log in busy), unit=max((log.unit for log in busy), default="")
        ) as progress,
        _processes(setup, devices[: len(setup.batches)]) as processes,
    ):
        asyncio.run(_fill_all(setup, processes, logs, failures, progress))
    for log in busy:
        log.end()


async def _fill_all(
    setup: Setup, processes: Sequence[_Process], logs: Sequence[RunLog], failures: Failures, progress: Progress
) -> None:
    waiting, finished = deque(range(len(setup.batches))), 0

    async def show() -> None:
        while True:
            progress.update(finished + sum(process.calls.value for process in processes))
            await asyncio.sleep(TICK)

    async def serve(process: _Process) -> None:
        nonlocal finished
        try:
            await asyncio.wrap_future(process.loading)
        except BrokenProcessPool:
            failures.add(f"the process on {process.device} died before its first batch, perhaps for lack of memory")
            return
        except EXPECTED as error:
            failures.add(f"the process on {process.device} cannot begin: {error}")
            return
        while waiting:
            number = waiting.popleft()
            batch, log = setup.batches[number], logs[setup.batches[number].run]
            try:
                log.filled(batch, await process.call(_fill, number))
                log.written(batch, await process.call(_write))
            except BrokenProcessPool:
                log.lost(batch, f"the process on {process.device} died, perhaps for lack of memory; rerun to resume")
                return
            except OtherSettings:
                raise
            except EXPECTED as error:
                log.failed(batch, error)
            finally:
                finished, process.calls.value = finished + log.calls_of(batch) + log.training_of(batch), 0

    bar = asyncio.create_task(show())
    await asyncio.gather(*map(serve, processes))
    bar.cancel()
    progress.update(finished)
    for number in waiting:
        batch = setup.batches[number]
        logs[batch.run].lost(batch, "no process is left to fill it")


@contextmanager
def _processes(setup: Setup, devices: Sequence[str]) -> Iterator[list[_Process]]:
    context = multiprocessing.get_context("spawn")
    others, processes = set(multiprocessing.active_children()), []
    try:
        for device in devices:
            calls = context.RawValue(c_long, 0)
            pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(calls,))
            with _ignored_interrupts():
                processes.append(_Process(device, pool, pool.submit(_run, _load, setup, device), calls))
        yield processes
    except BaseException:
        ours = set(multiprocessing.active_children()) - others
        for process in ours:
            process.terminate()
        for process in ours:
            process.join(PATIENCE)
            process.kill()
        raise
    finally:
        for process in processes:
            process.pool.shutdown(cancel_futures=True)


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """A process that starts here ignores Ctrl-C: the first process ends it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# In a worker process ------------------------------------------------------------------------------

_state: dict[str, Any] = {}
"""`setup`, `worker`, `calls` and the `filled` batch of this process; an executor offers no other place between two tasks."""


def _begin(calls: "c_long") -> None:
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # used by peft; its own lock is a semaphore, which a stopped process leaves behind
    _state["calls"] = calls
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _leave(*_: object) -> None:
    raise SystemExit  # removes half-written files on its way


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _run(task: Callable[..., T], *arguments: object) -> T:
    """Run a task. Its errors become builtin ones, since others may not be picklable."""
    try:
        return task(*arguments)
    except SystemExit:
        os._exit(1)  # the executor would catch it and go on
    except Exception as error:
        kinds = (NotFiniteError, ReadError, *EXPECTED)
        kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        kind = type(error) if is_out_of_memory(error) else kind
        raise kind(describe(error)) from error


def _load(setup: Setup, device: str) -> None:
    _state.update(setup=setup, worker=setup.worker(device))


def _fill(number: int) -> Usage:
    setup, worker, calls = _state["setup"], _state["worker"], _state["calls"]
    with images_up_to(setup.options.max_megapixels):
        batch = setup.batches[number]
        inputs = worker.read(batch)
        result = worker.fill(batch, inputs, lambda done: setattr(calls, "value", done))
    _state["filled"] = batch, inputs, result
    return usage_of(result)


def _write() -> list[str]:
    with images_up_to(_state["setup"].options.max_megapixels):
        return _state["worker"].write(*_state.pop("filled"))
