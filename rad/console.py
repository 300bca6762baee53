"""What all command lines share: exit codes, one-line errors, messages on stderr, progress, options as dataclass fields."""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from rad.streams import printable, tolerant_streams

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SEEDS = -(2**63), 2**64 - 1
"""Smallest and largest seed."""

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_SOME, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def guarded(run: Callable[[], int]) -> int:
    """Run a command; print an error that the user can correct as one line on stderr.

    The environment variable RAD_DEBUG=1 shows the traceback instead. Output follows `rad.streams`.

    Returns:
        The exit code: 2 for wrong input, 130 for Ctrl-C, 1 if stdout does not take the output, as on a full disk.
    """
    code = EXIT_OK
    try:
        with tolerant_streams(), short_warnings():
            code = _guarded(run)
    except OSError as error:
        print(f"error: {error.strerror}", file=sys.stderr)
        return code or EXIT_FAILED
    return code


@contextmanager
def short_warnings() -> Iterator[None]:
    """Print warnings of rad as one line, without file and source line; those of other packages stay as they are."""
    full, package = warnings.formatwarning, f"{Path(__file__).resolve().parent}{os.sep}"

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(package):
            return f"warning: {printable(message)}\n"
        return full(message, category, filename, lineno, line)

    warnings.formatwarning = show
    try:
        yield
    finally:
        warnings.formatwarning = full


def _guarded(run: Callable[[], int]) -> int:
    try:
        return run()
    except (ValueError, OSError, MemoryError, RecursionError) as error:
        if os.environ.get("RAD_DEBUG"):
            raise
        report(f"error: {_reason(error)}")
        return EXIT_INPUT
    except KeyboardInterrupt:
        report("interrupted: finished files are kept")
        return EXIT_INTERRUPTED


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory: give smaller or fewer images, or lower the numbers in the options"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply (RAD_DEBUG=1 shows where)"
    return one_line(error) or type(error).__name__


def one_line(message: object) -> str:
    """A message with its lines joined. Other runs of spaces stay, for they may belong to a file name."""
    return re.sub(r"\s*[\n\r]\s*", " ", str(message)).strip()


def program(command: str) -> str:
    """How this process called a command of rad: "rad sample", "python sample.py", "python -m rad.masks"."""
    called = Path(sys.argv[0])
    package = Path(__file__).resolve().parent
    if called.name == f"{command}.py" and called.resolve().parent == package.parent:
        return f"python {called.name}"
    if called.name == "__main__.py" and called.resolve().parent == package:
        return f"python -m rad {command}"
    if package in called.resolve().parents:
        module = ("rad", *called.resolve().relative_to(package).with_suffix("").parts)
        return "python -m " + ".".join(module).removesuffix(".__main__")
    return f"rad {command}"


def with_underscores(words: Sequence[str] | None = None) -> list[str]:
    """The arguments (default: of this process), with `--num-samples` as `--num_samples`; values stay as they are."""
    result = list(sys.argv[1:] if words is None else words)
    for place, word in enumerate(result):
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            result[place] = f"--{name[2:].replace('-', '_')}{equals}{value}"
    return result


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean repaint?)" for "RePaint"; empty if no known word is similar."""
    words = {_plain(name): name for name in known}
    close = difflib.get_close_matches(_plain(word), words, n=1)
    return f" (did you mean {words[close[0]]}?)" if close else ""


def _plain(word: str) -> str:
    return word.strip("-").lower().replace("-", "_")


def with_hint(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of a parser, with the most similar option or choice."""
    options = {text: action for text, action in parser._option_string_actions.items() if text.startswith("--")}
    if unknown := re.search(r"unrecognized arguments: (-\S*)", message):
        return message + did_you_mean(unknown[1].partition("=")[0], options)
    if unknown := re.search(r"Option '(.*?)' is not accepted", message):  # in a file
        return message + did_you_mean(unknown[1], (text[2:] for text in options))
    if unknown := re.search(r"Group '(.*?)' does not accept option '(.*?)'", message):
        return message + did_you_mean(f"{unknown[1]}.{unknown[2]}", (text[2:] for text in options))
    if choice := re.search(r"(--\w+): (?:invalid choice: )?'(.*?)' (?:\(choose from|not among choices)", message):
        choices = options[choice[1]].choices if choice[1] in options else None
        return message + did_you_mean(choice[2], map(str, choices or ()))
    return message


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors of one line, without the usage text; `--a-b` is `--a_b`."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        words = with_underscores(args)
        for option, word in zip(["", *words], words, strict=False):
            if not word or (word.startswith("--") and word.endswith("=")):
                raise ValueError(f"{word or option} has an empty value: give one, or leave the option out")
        return super().parse_args(words, namespace or argparse.Namespace())

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{with_hint(message, self)}; `{self.prog} --help` lists the options")


def option(
    help: str,
    default: object = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    metavar: str | None = None,
    group: str = "",
) -> Any:
    """A dataclass field that is a command-line option: help text, default, inclusive range, heading in --help."""
    factory = dataclasses.MISSING
    if isinstance(default, list):
        default, factory = dataclasses.MISSING, default.copy
    metadata = {"help": help, "low": low, "high": high, "metavar": metavar, "group": group}
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)  # type: ignore[call-overload]


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add an option --NAME for each field of the dataclass `kind`; a list takes several words and may be repeated."""
    groups: dict[str, Any] = {"": parser}
    for field in dataclasses.fields(kind):
        hint, keywords = _without_none(get_type_hints(kind)[field.name]), {"help": field.metadata["help"]}
        if hint is bool:
            keywords |= {"action": "store_true"}
        else:
            keywords |= {"metavar": field.metadata["metavar"]}
        if get_origin(hint) is list:
            (hint,) = get_args(hint)
            keywords |= {"nargs": "+", "action": "extend"}
        elif hint in (int, float, str):
            keywords |= {"type": hint}
        if get_origin(hint) is Literal:
            keywords |= {"choices": get_args(hint)}
        if field.default_factory is not dataclasses.MISSING:
            keywords["default"] = field.default_factory()
        elif field.default is dataclasses.MISSING:
            keywords["required"] = True
        else:
            keywords["default"] = field.default
            keywords["help"] += "" if field.default in (None, "", False) else " (default: %(default)s)"
        title = field.metadata["group"]
        group = groups[title] if title in groups else groups.setdefault(title, parser.add_argument_group(title))
        group.add_argument(f"--{field.name}", **keywords)


def check_options(options: "DataclassInstance") -> None:
    """Raise ValueError for a value out of the range of its `option`, and for a flag or list of another type."""
    hints = get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, low, high = getattr(options, field.name), field.metadata["low"], field.metadata["high"]
        words = value if isinstance(value, list) else [value]
        if any(isinstance(word, str) and "\0" in word for word in words) or ("" in words and field.default != ""):
            raise ValueError(f"--{field.name} {value!r}: empty; give a value, or leave the option out")
        if hints[field.name] is bool and not isinstance(value, bool):
            raise ValueError(f"--{field.name} {value!r}: allowed are true and false")
        if get_origin(hints[field.name]) is list and not (
            isinstance(value, list) and all(type(v) is str for v in value)
        ):
            raise ValueError(f"--{field.name} {value!r}: give a list of words")
        finite = not isinstance(value, float) or math.isfinite(value)
        if isinstance(value, int | float) and not (finite and low <= value <= high):
            allowed = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
            raise ValueError(f"--{field.name} {value}: allowed are {allowed} ({field.metadata['help']})")


def _without_none(hint: object) -> object:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def report(message: object) -> None:
    """Print one line on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def print_line(line: object) -> None:
    """Print one line on stdout, such as the path of a result."""
    print(printable(line), flush=True)


def counted(number: int, what: str) -> str:
    """ "1 image", "2 images", "2 backward passes"."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


class Progress:
    """Calls done, in `unit`: on a terminal a bar with the time left, otherwise a line every tenth."""

    def __init__(self, total: int, *, unit: str = "network calls") -> None:
        self.total, self.done, self.unit, self._bar, self._tenths = total, 0, unit, None, 0

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and self.total:
            from rich.console import Console
            from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

            columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.add_task(self.unit, total=self.total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        self.done = done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif self.total and done * 10 // self.total > self._tenths:
            self._tenths = done * 10 // self.total
            report(f"{done} of {self.total} {self.unit}")
