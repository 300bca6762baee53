"""The queue of the service: bounded in jobs, threads, memory and age."""

import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable

from rad.inpainting.result import Cancelled
from rad.studio.jobs.job import STATES, Job, State

REMEMBERED = 10_000
"""Ids of jobs that were removed, for a clear error."""

PATIENCE = 10.0
"""Seconds that running jobs have for their end when the queue closes."""


class Full(Exception):
    """No place for another job; `seconds`: when to try again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class JobQueue:
    """Runs jobs in threads, first in, first out, and keeps their files for a while.

    Args:
        lanes: threads; limit: jobs that wait.
        most_bytes: of inputs and files in memory; the oldest finished jobs are removed first.
        most_seconds: for which a finished job is kept.
        explain: an error as a sentence for the client.
    """

    def __init__(
        self, *, lanes: int, limit: int, most_bytes: float, most_seconds: float, explain: Callable[[Exception], str]
    ) -> None:
        self.limit, self._most_bytes, self._most_seconds, self._explain = limit, most_bytes, most_seconds, explain
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._removed: dict[str, None] = {}
        self._served: set[Job] = set()  # by a thread, also after a cancel
        self._condition, self._closed = threading.Condition(), False
        self.ended: Counter[str] = Counter()
        self.nfe, self.seconds = 0, 0.0
        self._threads = [threading.Thread(target=self._serve, name=f"rad-lane-{n}", daemon=True) for n in range(lanes)]
        for thread in self._threads:
            thread.start()

    def add(self, job: Job) -> None:
        """Queue a job. Raises Full."""
        with self._condition:
            if self._closed:
                raise Full("the server is shutting down", 5)
            if len(self._waiting) >= self.limit:
                raise Full(f"{self.limit} jobs are waiting, which is the limit: try again later", self._delay())
            unfinished = sum(other.held if other.is_over else other.size for other in self._all())
            if unfinished + job.held > self._most_bytes:  # no results are removed for a job that is refused
                raise Full("the memory for waiting jobs and results is full: try again later", self._delay())
            self._sweep(room=job.held)
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._condition.notify()

    def get(self, id: str) -> Job | None:
        """The job, or None."""
        job = self._jobs.get(id)
        if job is not None:
            job.see()
        return job

    def was_removed(self, id: str) -> bool:
        return id in self._removed

    def remove(self, job: Job) -> None:
        """Forget a finished job."""
        with self._condition:
            self._remove(job)

    def cancel(self, job: Job) -> None:
        """Stop a job, at once if it waits."""
        job.cancel()
        with self._condition:
            if job in self._waiting:
                self._waiting.remove(job)
                self._count(job)

    def position(self, job: Job) -> int | None:
        """Place of a waiting job, 0 = next; None for others."""
        waiting = list(self._waiting)
        return next((place for place, other in enumerate(waiting) if other is job), None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._served)

    @property
    def bytes(self) -> int:
        """Bytes of inputs and files in memory."""
        return sum(job.size for job in self._all())

    def _all(self) -> set[Job]:
        """The jobs that are kept, and those that a thread serves, which a client may have removed."""
        return {*list(self._jobs.values()), *list(self._served)}

    def states(self) -> dict[str, int]:
        """Number of jobs by state; ended ones since the start."""
        return {state: self.ended[state] for state in STATES} | {"queued": self.waiting, "running": self.running}

    def sweep(self) -> None:
        """Cancel abandoned jobs, and remove old ones. To be called about once a second."""
        for job in list(self._jobs.values()):
            if not job.is_over and job.is_abandoned:
                self.cancel(job)
        with self._condition:
            self._sweep()

    def close(self) -> None:
        """Cancel all jobs."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for job in list(self._jobs.values()):
            if not job.is_over:
                self.cancel(job)

    def join(self) -> None:
        """Wait for the threads after `close`."""
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _sweep(self, room: int = 0) -> None:
        """Remove jobs that are too old, and the oldest while memory lacks `room` bytes. Needs the lock."""
        over = sorted((job.ended, job.id) for job in self._jobs.values() if job.ended is not None and not job.held)
        total, now = self.bytes, time.monotonic()
        for ended, id in over:
            if now - ended > self._most_seconds or total + room > self._most_bytes:
                total -= self._jobs[id].size
                self._remove(self._jobs[id])

    def _remove(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is not None:
            self._removed[job.id] = None
            if len(self._removed) > REMEMBERED:
                del self._removed[next(iter(self._removed))]

    def _delay(self) -> int:
        """Seconds until a place may be free: the mean time of a job, 1 to 60."""
        count = sum(self.ended.values())
        return min(60, max(1, round(self.seconds / count))) if count else 5

    def _count(self, job: Job) -> None:
        self.ended[job.state] += 1
        self.nfe, self.seconds = self.nfe + job.nfe, self.seconds + job.seconds

    def _serve(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._served.add(job)
            self._run(job)
            with self._condition:
                self._served.remove(job)
                self._count(job)
                self._sweep()
            del job  # else an idle thread keeps its files

    def _run(self, job: Job) -> None:
        work = job.work
        if not job.begin() or work is None:
            return
        state: State = "done"
        reason, files = None, None
        try:
            job.check()
            files = work(job)
        except Cancelled:
            state = "cancelled"
        except Exception as error:  # a job never ends the server
            if not isinstance(error, ValueError):
                traceback.print_exc()
            state, reason = "failed", self._explain(error)
        job.held = 0
        job.end(state, error=reason, files=files)
