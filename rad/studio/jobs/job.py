"""A job of the service, from its request to its files."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from rad.inpainting.result import Cancelled

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")

ABANDONED = 5.0
"""Seconds without a reader after which a watched job is cancelled."""

SEEN = 3.0
"""Seconds after a request for its state or preview in which a job draws previews."""


@dataclass
class Files:
    """The files of a finished job, as bytes."""

    images: list[bytes] = field(default_factory=list)
    mask: bytes = b""
    settings: bytes = b""


@dataclass(eq=False)
class Job:
    """State of a job. One thread runs it; others read it, and `cancel` it.

    Args:
        steps: None for methods without a network; planned: network calls, over all windows and samples.
        width, height: of the results; stem: beginning of the names of its files.
        held: bytes of the inputs, until its run is over, also after a cancel.
        work: computes the files; it calls `advance` after each network call.
        watched: cancel the job when nobody has read its events for `ABANDONED` seconds.
    """

    model: str
    method: str
    steps: int | None
    planned: int
    width: int
    height: int
    samples: int
    stem: str
    work: Callable[["Job"], Files] | None
    warnings: list[str] = field(default_factory=list)
    held: int = 0
    watched: bool = False
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "queued"
    nfe: int = 0
    seconds: float = 0.0
    preview: bytes | None = None
    previews: int = 0
    error: str | None = None
    files: Files | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        self._cancelled, self._lock = threading.Event(), threading.Lock()
        self._readers, self._seen = 0, time.monotonic()

    @property
    def is_over(self) -> bool:
        return self.ended is not None

    @property
    def size(self) -> int:
        """Bytes in memory."""
        files = self.files
        kept = 0 if files is None else sum(map(len, files.images)) + len(files.mask) + len(files.settings)
        return kept + self.held + len(self.preview or b"")

    def cancel(self) -> None:
        """Stop before the next network call."""
        self._cancelled.set()
        self.end("cancelled")

    def check(self) -> None:
        """Raise Cancelled if the job is to stop."""
        if self._cancelled.is_set() or self.is_abandoned:
            raise Cancelled

    def begin(self) -> bool:
        """Whether a waiting job may run now."""
        with self._lock:
            if self.ended is None:
                self.state = "running"
            return self.ended is None

    def end(self, state: State, *, error: str | None = None, files: Files | None = None) -> None:
        """Set the last state, unless there is one. A job that never ran frees its inputs; the queue frees those of others."""
        with self._lock:
            if self.ended is None:
                self.error, self.files, self.preview = error, files, self.preview if files else None
                self.held = 0 if self.state == "queued" else self.held
                self.work, self.state, self.ended = None, state, time.monotonic()

    def show(self, preview: bytes) -> None:
        """Keep a preview, unless the job has ended, such as by a cancel while it was drawn."""
        with self._lock:
            if self.ended is None:
                self.preview, self.previews = preview, self.previews + 1

    # ---- readers --------------------------------------------------------------------------------

    def see(self) -> None:
        """Note that somebody asked for the job."""
        self._seen = time.monotonic()

    def read(self, change: int) -> None:
        """Add a reader of the events, or remove one with -1."""
        with self._lock:
            self._readers += change
        self.see()

    @property
    def is_seen(self) -> bool:
        return self._readers > 0 or time.monotonic() - self._seen < SEEN

    @property
    def is_abandoned(self) -> bool:
        return self.watched and self._readers == 0 and time.monotonic() - self._seen > ABANDONED
