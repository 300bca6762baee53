"""Times variants in turn within one run (A B C A B C ...) and prints Markdown tables; used by the other benchmarks.

The goals are for wall time. CPU time of the process and its children is printed too, because other work on the machine hardly
changes it. With several threads it includes the time they wait for each other.
"""

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Seconds:
    """One value for each repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def interleaved(runs: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, Seconds]:
    """Times of `repeats` calls for each name, after one warm-up call of each."""
    seconds = {name: Seconds() for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            _synchronise()
            wall, cpu = time.perf_counter(), _cpu_seconds()
            run()
            _synchronise()
            seconds[name].wall.append(time.perf_counter() - wall)
            seconds[name].cpu.append(_cpu_seconds() - cpu)
    return seconds


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


COMPARED = ["median s", "min s", "ratio of medians", "ratio of minima", "of CPU medians"]
"""Headings of the cells that `compare` returns."""


def compare(seconds: Mapping[str, Seconds], *, to: str) -> dict[str, list[str]]:
    """Five cells for each name: median and minimum wall time, and three ratios to the variant `to`."""
    median = {name: statistics.median(values.wall) for name, values in seconds.items()}
    least = {name: min(values.wall) for name, values in seconds.items()}
    cpu = {name: statistics.median(values.cpu) for name, values in seconds.items()}
    return {
        name: [
            f"{median[name]:.4g}",
            f"{least[name]:.4g}",
            f"{median[name] / median[to]:.3f}",
            f"{least[name] / least[to]:.3f}",
            f"{cpu[name] / cpu[to]:.3f}",
        ]
        for name in seconds
    }


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (headings, ["---", *["---:"] * (len(headings) - 1)], *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def print_setting(setting: str, *, repeats: int, device: str = "cpu") -> None:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    threads = torch.get_num_threads()
    print(f"{setting}. torch {torch.__version__}, {name}, threads: {threads}, n = {repeats}.\n", flush=True)
