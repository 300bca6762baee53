"""Provenance of results: command line, time, commit and versions."""

import datetime
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from rad.resources import PACKAGE

ROOT = PACKAGE.parent


def scoring(**options: object) -> dict[str, object]:
    """Provenance of a scoring, for its report: command, date, commit, versions, and the `options` that are not None."""
    return {**call(), **{name: value for name, value in options.items() if value is not None}, **versions()}


def call() -> dict[str, object]:
    """Command line, UTC time and commit of this process."""
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def _program() -> list[str]:
    """As it was called: `rad`, python with a script, or python -m with a package."""
    if Path(sys.argv[0]).name == "rad":
        return ["rad"]
    package = getattr(getattr(sys.modules["__main__"], "__spec__", None), "parent", None)
    named = ["-m", package] if package and Path(sys.argv[0]).name == "__main__.py" else sys.argv[:1]
    return ["python", *named]


def versions() -> dict[str, str]:
    """Versions of rad, Python and torch."""
    import torch

    import rad

    return {"rad": rad.__version__, "python": platform.python_version(), "torch": torch.__version__}


def commit() -> str | None:
    """The commit of this checkout, with "+" if tracked files have changed; None outside a git checkout."""
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
    if Path(top) != ROOT:  # installed inside another project's checkout
        return None
    return head + ("+" if changed else "")
