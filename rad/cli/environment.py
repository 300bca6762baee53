"""Facts about the environment: the machine and the tested versions. Loads no heavy package."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rad.resources import CHECKOUT, PACKAGE

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TESTED = ((3, 10), (3, 11), (3, 12), (3, 13))
"""Versions of Python on which `make test-core` passes."""


CONSTRAINTS = ("constraints-lowest.txt", "constraints.txt")
"""The lowest and highest tested versions of each package, in the checkout or in the installed package."""


def cpu() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> tuple[int, int]:
    """Cores (usable by this process, in the machine)."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return usable, total


def memory() -> tuple[int, int | None] | None:
    """Bytes (in total, available to programs); None where unknown."""
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


def format_bytes(count: int) -> str:
    """In MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def python_support() -> str:
    """Whether this version of Python is tested, and which ones are."""
    versions = ", ".join(".".join(map(str, version)) for version in TESTED)
    return f"{'tested' if sys.version_info[:2] in TESTED else 'outside the tested versions'} ({versions})"


def version_bounds() -> dict[str, str]:
    """Version bounds of rad's requirements; empty if rad is not an installed package."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("rad-inpainting") or []]
    except metadata.PackageNotFoundError:
        return {}
    return {each.name: str(each.specifier) for each in requirements if each.marker is None}


def tested_versions() -> dict[str, tuple[str, str]]:
    """The lowest and highest tested version of each package for this Python; empty without the constraints files."""
    folder = CHECKOUT or PACKAGE / "_data"
    try:
        lowest, highest = ({pin.name: _version(pin) for pin in _pins(folder / name)} for name in CONSTRAINTS)
    except OSError:
        return {}
    return {name: (lowest.get(name, version), version) for name, version in highest.items()}


def _pins(path: Path) -> "list[Requirement]":
    from packaging.requirements import Requirement

    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    pins = map(Requirement, lines)
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]


def _version(pin: "Requirement") -> str:
    return str(pin.specifier).removeprefix("==")
