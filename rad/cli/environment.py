"""What a program runs on, as words: the commit of its files, the processor, the memory. Nothing but the standard library."""

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """The commit of the program, with "+" if its files were changed since; None outside a git checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        top, head, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "--short=10", "HEAD"],
                ["status", "--porcelain", "-uno"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    if Path(top) != ROOT:  # installed into a folder that lies in somebody's checkout
        return None
    return head + ("+" if changed else "")


def cpu() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> tuple[int, int]:
    """(usable by this process, in the machine)."""
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    return usable, there


def memory() -> tuple[int, int | None] | None:
    """(bytes in all, bytes free for programs if the system says so); None where it is not known."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return total, None
    free = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return total, None if free is None else int(free) * 1024
