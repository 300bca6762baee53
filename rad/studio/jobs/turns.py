"""Turns at the network: jobs alternate at every network call, in the order in which they ask."""

import threading
import time
from collections import deque


class Turnstile:
    """A fair lock: threads get it in the order of their calls."""

    def __init__(self) -> None:
        self._lock, self._held = threading.Lock(), False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self) -> None:
        with self._lock:
            if not self._held:
                self._held = True
                return
            ticket = threading.Lock()
            ticket.acquire()
            self._waiting.append(ticket)
        ticket.acquire()  # until `release` hands it over

    def release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


class Turn:
    """A thread's place at a turnstile, as a context. `seconds`: time for which it was held and not paused."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile, self.seconds, self._since = turnstile, 0.0, 0.0

    def __enter__(self) -> "Turn":
        self._turnstile.acquire()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()
        self._turnstile.release()

    def pause(self) -> None:
        """Stop the clock until `pass_on`."""
        if self._since:
            self.seconds, self._since = self.seconds + time.perf_counter() - self._since, 0.0

    def pass_on(self) -> None:
        """Let every waiting thread have its turn, then go on."""
        self.pause()
        self._turnstile.release()
        self._turnstile.acquire()
        self._since = time.perf_counter()
