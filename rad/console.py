"""What all command lines share: exit codes, one-line errors, messages on stderr, progress."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_SOME, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def guarded(run: Callable[[], int]) -> int:
    """`run`, with what a user can mend as one line on stderr: exit code 2 for input, 130 for Ctrl-C.

    The environment variable RAD_DEBUG shows the traceback instead.
    """
    try:
        return run()
    except (ValueError, OSError) as error:
        if os.environ.get("RAD_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        return EXIT_INTERRUPTED


def program(command: str) -> str:
    """How to call a command of rad again, as this process was called: "rad sample", "python sample.py", "python -m rad.masks"."""
    called = Path(sys.argv[0])
    package = Path(__file__).resolve().parent
    if called.name == f"{command}.py" and called.resolve().parent == package.parent:
        return f"python {called.name}"
    if called.name == "__main__.py" and called.resolve().parent == package:
        return f"python -m rad {command}"
    if package in called.resolve().parents:
        return "python -m " + ".".join(
            ("rad", *called.resolve().relative_to(package).with_suffix("").parts)
        ).removesuffix(".__main__")
    return f"rad {command}"


class Parser(argparse.ArgumentParser):
    """Errors are ValueErrors, without the usage of all options before them."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")


def report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def counted(number: int, what: str) -> str:
    """ "1 image", "2 images", "2 backward passes"."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


class Progress:
    """Network calls done: a bar with the time left on a terminal, a line every tenth otherwise."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self._bar, self._told = total, 0, None, 0
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and self.total:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("network calls"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self.total and done * 10 // self.total > self._told:
            self._told = done * 10 // self.total
            report(f"{done} of {self.total} network calls")
