"""The standard streams of the command lines: names that cannot be printed are escaped, and a lost reader ends no run."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line and paragraph separators, changes of the writing direction, and surrogates."""

SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
ESCAPE = re.compile(r"\\(\\|n|r|t|x[0-9a-f]{2}|u[0-9a-f]{4})")

NO_READER = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO}
"""Errors of a stream that nobody reads any more: a closed pipe, a terminal that is gone."""


def printable(text: object) -> str:
    """`text` on one line: characters of `UNPRINTABLE` as escapes, which `printf '%b'` reverses.

    A byte of a file name that is not UTF-8, a surrogate in Python (PEP 383), becomes "\\xe9".
    """
    return UNPRINTABLE.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}")


def to_cell(name: str) -> str:
    """A name as a cell of a CSV file, which `from_cell` reads again. Ordinary names stay as they are.

    Others become "'" and the escaped name: names that cannot be printed, and those that a spreadsheet takes for a formula.
    """
    if UNPRINTABLE.search(name) is None and not name.startswith(("=", "+", "-", "@", "'")):
        return name
    return "'" + printable(name.replace("\\", r"\\"))


def from_cell(cell: str) -> str:
    """The name in a cell of `to_cell`."""
    return ESCAPE.sub(_character, cell[1:]) if cell.startswith("'") else cell


def _character(match: re.Match[str]) -> str:
    letter, digits = match[1][0], match[1][1:]
    if not digits:
        return {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}[letter]
    code = int(digits, 16)
    return chr(code + 0xDC00 if letter == "x" and code >= 128 else code)


class Stream:
    """A text stream whose writer never fails; other attributes are those of `stream`.

    Characters that the encoding lacks are written as escapes. After an error of the operating system, which `error` keeps,
    output is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.error = stream, None

    def write(self, text: str) -> int:
        if self.error is None:
            encoding = self.stream.encoding or "utf-8"
            try:
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except OSError as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.error is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Drop the rest, also what the buffer still holds and Python writes at its end."""
        self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Make stdout and stderr a `Stream` within the block. Raises OSError at its end if stdout could not take all output.

    A reader that stops early, as in `... | head`, is no error. Closed streams become /dev/null: otherwise the next opened
    file would take their number, and messages of libraries would be written into it.
    """
    if isinstance(sys.stdout, Stream):
        yield
        return
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
    before = sys.stdout, sys.stderr
    stdout, stderr = (Stream(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = stdout, stderr  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        stdout.flush()
        stderr.flush()
        sys.stdout, sys.stderr = before
    if stdout.error is not None and stdout.error.errno not in NO_READER:
        raise OSError(stdout.error.errno, f"the output could not be printed ({stdout.error.strerror})")
