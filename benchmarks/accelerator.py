"""Times and peak memory of work on an accelerator, and its arithmetic precisions; used by gpu.py.

Variants take turns in blocks of calls (A A B B A A B B ...). A block lies between two synchronisations, so the accelerator may
work while the host prepares the next call, as in a real run.
"""

import gc
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Precision = Literal["float32", "torch default", "tf32", "bf16-mixed"]
"""float32 everywhere; TF32 in convolutions alone, torch's default; TF32 in matrix products too; bfloat16 autocast."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MOST_CALLS = 50
"""Largest number of calls in a block."""


class OutOfTimeError(BaseException):
    """The time limit of a warm-up; libraries that catch Exception do not swallow it."""


@dataclass(frozen=True)
class Work:
    """A variant to measure: the call, and the network, optimiser and other tensors whose memory counts as its own."""

    call: Callable[[], object]
    network: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    others: tuple[Tensor, ...] = ()

    def resident_bytes(self) -> int:
        """Bytes of parameters, buffers, optimiser state and other tensors, each storage once."""
        states = self.optimizer.state.values() if self.optimizer is not None else ()
        tensors = [*self.network.parameters(), *self.network.buffers(), *self.others]
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@dataclass
class Timing:
    """Seconds a call, one value a block; seconds of the first call; peak bytes in all (None on a CPU); an error."""

    seconds: list[float] = field(default_factory=list)
    first_call: float = 0.0
    peak: int | None = None
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(longest - shortest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def ratio(self, to: "Timing") -> float:
        """Median over the rounds of this variant's time over that of `to` in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds, to.seconds, strict=True))


def alternate(
    variants: Mapping[str, Callable[[], Work]], *, device: str, seconds: float, rounds: int, block_seconds: float
) -> dict[str, Timing]:
    """Measure variants side by side. A variant that fails, for want of memory for example, gets an `error`.

    Args:
        variants: name and a function that builds the work; built one after another, so that one failure leaves the others.
        seconds: time limit. Variants that are not ready by then get an error; the rounds end early, after at least one.
        rounds: blocks of each variant. block_seconds: shortest duration of a block; 0: one call.
    """
    end = time.perf_counter() + seconds
    timings = {name: Timing() for name in variants}
    works: dict[str, Work] = {}
    calls: dict[str, int] = {}
    for name, build in variants.items():
        try:
            with time_limit(end - time.perf_counter()):
                works[name] = build()
                timings[name].first_call, timings[name].peak, one_call = _warm_up(works[name], device)
            calls[name] = min(MOST_CALLS, max(1, round(block_seconds / one_call)))
        except (Exception, OutOfTimeError) as error:
            works.pop(name, None)
            timings[name] = Timing(error=describe(error))
        if timings[name].error:
            free(device)  # after the handler, since an error holds on to the memory of its frames
    for number in range(rounds):
        if number and time.perf_counter() > end:
            break
        for name in list(works):
            try:
                timings[name].seconds.append(_seconds_of(works[name].call, device, calls[name]))
            except Exception as error:
                del works[name]
                timings[name] = Timing(error=describe(error))
    return timings


def _warm_up(work: Work, device: str) -> tuple[float, int | None, float]:
    """Seconds of the first call, peak bytes of the second, and seconds of the third."""
    first = _seconds_of(work.call, device)
    peak = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before + work.resident_bytes()
    else:
        work.call()
    return first, peak, _seconds_of(work.call, device)


def _seconds_of(call: Callable[[], object], device: str, count: int = 1) -> float:
    """Seconds a call, over `count` calls."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / count


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def free(device: str) -> None:
    """Release memory that nothing uses any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def describe(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, OutOfTimeError):
        return "not ready within the time limit"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError within the context after `seconds`. Contexts nest. Has no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    begin, before = time.perf_counter(), signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    if 0 < outer < seconds:
        signal.setitimer(signal.ITIMER_REAL, outer)
    try:
        yield
    finally:
        left = max(0.001, outer - (time.perf_counter() - begin)) if outer else 0
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


@contextmanager
def computing(precision: Precision, device: str, *, tuned: bool = False) -> Iterator[None]:
    """Within the context products have this precision. `tuned`: torch.backends.cudnn.benchmark."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark
    products.allow_tf32, convolutions.allow_tf32 = precision == "tf32", precision != "float32"
    convolutions.benchmark = tuned
    try:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            yield
    finally:
        products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark = before
