"""Reading of the next batch and writing of the last one beside the network, in order and with bounded memory."""

import threading
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from rad.cli.sample.run import Pipeline

SECONDS = 10


class Log:
    """Records the messages of batches 0, 1, 2, ..."""

    def __init__(self, count):
        self.batches, self.messages = range(count), []

    def filled(self, batch, usage):
        self.messages.append(f"filled {batch}")

    def written(self, batch, problems):
        self.messages.append(f"written {batch}")

    def failed(self, batch, error):
        self.messages.append(f"failed {batch}: {error}")


class Worker:
    """`hooks` are called with the batch at the start of each kind of work; `begun` holds an event for each (kind, batch)."""

    def __init__(self, **hooks):
        self.hooks, self.begun = hooks, defaultdict(threading.Event)

    def _work(self, kind, batch):
        self.begun[kind, batch].set()
        self.hooks.get(kind, lambda batch: None)(batch)

    def read(self, batch):
        self._work("read", batch)

    def fill(self, batch, inputs, on_step):
        self._work("fill", batch)
        return SimpleNamespace(nfe=1, vjp=0, seconds=0.0, peak_memory=0, training=0)

    def write(self, batch, inputs, result):
        self._work("write", batch)
        return [""]


def run(worker, count):
    """The messages of a run, and its error."""
    log, error = Log(count), None
    pipeline_of: Any = Pipeline
    try:
        with pipeline_of(worker, log) as pipeline:
            for batch in log.batches:
                pipeline.fill(batch, lambda done: None)
    except KeyboardInterrupt as interruption:
        error = interruption
    return log.messages, error


def test_the_next_batch_is_read_and_the_last_one_written_beside_the_network():
    def beside(batch):
        assert batch == 3 or worker.begun["read", batch + 1].wait(SECONDS), "the next batch is read"
        assert batch == 0 or worker.begun["write", batch - 1].wait(SECONDS), "the last batch is written"
        assert not worker.begun["read", batch + 2].is_set(), "one batch ahead, not more"

    worker = Worker(fill=beside)
    expected = [f"{what} {batch}" for batch in range(4) for what in ("filled", "written")]
    assert run(worker, 4)[0] == expected


def test_messages_keep_their_order_where_reading_and_filling_fail():
    def fail(numbers, error):
        def check(batch):
            if batch in numbers:
                raise error

        return check

    worker = Worker(read=fail({0, 3}, OSError("unreadable")), fill=fail({2}, RuntimeError("no memory")))
    assert run(worker, 5)[0] == [
        "failed 0: unreadable",
        "filled 1",
        "written 1",
        "failed 2: no memory",
        "failed 3: unreadable",
        "filled 4",
        "written 4",
    ]


def test_an_interruption_keeps_the_filled_batches():
    def interrupt(batch):
        if batch == 2:
            raise KeyboardInterrupt

    messages, error = run(Worker(fill=interrupt), 5)
    assert isinstance(error, KeyboardInterrupt)
    assert messages == ["filled 0", "written 0", "filled 1", "written 1"]
