"""Chunks filled by several processes, one a device: each asks for the next one, and what it does is told and recorded here."""

import argparse
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import torch

from rad.cli.fill import EXPECTED, Chunk, Failures, RunLog, Worker, told
from rad.cli.guidance_options import networks_of
from rad.cli.plan import Label
from rad.console import Progress
from rad.device import threads_of_each
from rad.evaluation.run_log import Usage
from rad.images.codecs import images_up_to

if TYPE_CHECKING:
    from rad.sampling.method import Method, Schedule


PATIENCE = 10.0
"""Seconds that a process has for leaving, when it is told to."""


@dataclass(frozen=True)
class Setup:
    """What every process is told: options, methods as they were given, schedules of each, all chunks."""

    options: argparse.Namespace
    methods: Mapping[Label, "Method"]
    schedules: Mapping[Label, "Schedule"]
    chunks: Sequence[Chunk]

    def filler(self, device: str) -> Worker:
        from rad.inpainting.inpainter import Inpainter

        options = self.options
        inpainter = Inpainter.from_pretrained(
            options.checkpoint,
            base=options.base,
            device=device,
            precision=options.precision,
            size=options.size,
            **networks_of(options),
        )
        methods = {label: inpainter.complete(method) for label, method in self.methods.items()}
        return Worker(inpainter, methods, self.schedules, options)


def fill_by_workers(setup: Setup, accounts: Sequence[RunLog], devices: Sequence[str], failures: Failures) -> None:
    """Fill all chunks, by a process on each device.

    A process that dies costs the chunk that it was at; the others take what is left. None outlives this call.
    """
    busy, devices = [account for account in accounts if account.chunks], devices[: len(setup.chunks)]
    if not busy:
        return
    for account in busy:
        account.begin()
    with Progress(sum(account.calls for account in busy)) as progress:
        crew = _Crew(setup, accounts, failures, progress.update)
        try:
            crew.work(devices)
        finally:
            crew.end()
    for account in busy:
        account.end()


@dataclass
class _Worker:
    """A process as it is seen from here: the chunk it is at, and the network calls of it that are done."""

    device: str
    process: BaseProcess
    connection: Connection
    chunk: Chunk | None = None
    done: int = 0
    dismissed: bool = False


class _Crew:
    def __init__(
        self, setup: Setup, accounts: Sequence[RunLog], failures: Failures, update: Callable[[int], None]
    ) -> None:
        self.setup, self.accounts, self.failures, self.update = setup, accounts, failures, update
        self.waiting = deque(range(len(setup.chunks)))
        self.workers: list[_Worker] = []
        self.finished = 0

    def work(self, devices: Sequence[str]) -> None:
        from rad.methods.own import loaded_from

        context, threads = multiprocessing.get_context("spawn"), threads_of_each(devices)
        files = [file for file in map(loaded_from, map(type, self.setup.methods.values())) if file]
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, device, threads, files), daemon=True)
            with _deaf_to_interrupts():
                process.start()
            theirs.close()
            self.workers.append(_Worker(device, process, ours))
        present = {worker.connection: worker for worker in self.workers}
        while present:
            for connection in wait(list(present)):
                worker = present[connection]  # pyright: ignore[reportArgumentType]
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, OSError):
                    del present[worker.connection]
                    self._gone(worker)
                    continue
                self._hear(worker, kind, content)
            self.update(self.finished + sum(worker.done for worker in self.workers))
        for number in self.waiting:
            self._account(self.setup.chunks[number]).lost(self.setup.chunks[number], "no process is left to fill it")

    def end(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()

    def _account(self, chunk: Chunk) -> RunLog:
        return self.accounts[chunk.cell]

    def _hear(self, worker: _Worker, kind: str, content: Any) -> None:
        if kind == "up":
            _send(worker, self.setup)
        elif kind == "ready":
            worker.dismissed = not self.waiting
            number = self.waiting.popleft() if self.waiting else None
            worker.chunk = None if number is None else self.setup.chunks[number]
            _send(worker, number)
        elif kind == "lost":
            worker.dismissed = True
            self.failures.add(f"the process on {worker.device} cannot begin: {content}")
        elif kind == "step":
            worker.done = content
        else:
            assert worker.chunk is not None
            chunk, account = worker.chunk, self._account(worker.chunk)
            if kind != "made":
                self._leave(worker)
            {"made": account.made, "written": account.written, "failed": account.failed}[kind](chunk, content)

    def _leave(self, worker: _Worker) -> None:
        """The worker is no longer at its chunk."""
        assert worker.chunk is not None
        self.finished += self._account(worker.chunk).calls_of(worker.chunk)
        worker.chunk, worker.done = None, 0

    def _gone(self, worker: _Worker) -> None:
        worker.process.join()
        code, chunk = worker.process.exitcode or 0, worker.chunk
        if worker.dismissed:
            return
        how = f"ended with exit code {code}"
        if code < 0:
            perhaps = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
            how = f"was killed by {signal.Signals(-code).name}{perhaps}"
        if chunk is None:
            self.failures.add(f"the process on {worker.device} {how}")
            return
        self._leave(worker)
        self._account(chunk).lost(
            chunk, f"the process on {worker.device} {how}; the same command makes what is missing"
        )


def _send(worker: _Worker, message: object) -> None:
    with suppress(OSError):  # if it is dead, the end of its messages says so
        worker.connection.send(message)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that is begun now never hears Ctrl-C, which is for this one alone: it ends the others."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(connection: Connection, device: str, threads: int, files: Sequence[tuple[str, str]] = ()) -> None:
    """`files`: the arguments of `rad.methods.own.load` for methods that `Setup` holds, without which it cannot be read."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # leaves no half-written file
    torch.set_num_threads(threads)
    with suppress(EOFError, ConnectionError):  # there may be no one left to work for
        try:
            from rad.methods.own import load

            for text, sha256 in files:
                load(text, sha256=sha256)
        except EXPECTED as error:
            connection.send(("lost", str(error)))
            return
        connection.send(("up", None))
        _fill(connection, connection.recv(), device)


def _fill(connection: Connection, setup: Setup, device: str) -> None:
    with images_up_to(setup.options.max_megapixels):
        try:
            filler = setup.filler(device)
        except EXPECTED as error:
            connection.send(("lost", str(error)))
            return
        while True:
            connection.send(("ready", None))
            number = connection.recv()
            if number is None:
                return
            filler.fill(setup.chunks[number], _Messenger(connection), lambda done: connection.send(("step", done)))


@dataclass(frozen=True)
class _Messenger:
    """Tells the account, which is in the first process."""

    connection: Connection

    def made(self, chunk: Chunk, effort: Usage) -> None:
        self.connection.send(("made", effort))

    def written(self, chunk: Chunk, problems: list[str]) -> None:
        self.connection.send(("written", problems))

    def failed(self, chunk: Chunk, error: Exception) -> None:
        if os.environ.get("RAD_DEBUG"):
            traceback.print_exception(error)
        kinds = (torch.OutOfMemoryError, *EXPECTED)  # others may not be picklable
        plain = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        self.connection.send(("failed", plain(told(error))))
