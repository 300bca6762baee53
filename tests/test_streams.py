"""The standard streams: every name can be printed and read again, and a lost reader ends no run."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rad.console import guarded, print_line, report
from rad.streams import Stream, from_cell, printable, to_cell

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\udce9.png", "caf\\xe9.png"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x85", "\\u0085"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("日本　語 é 👩‍👩‍👧", "日本　語 é 👩‍👩‍👧"),
    ],
)
def test_only_what_cannot_be_printed_is_escaped(name, shown):
    assert printable(name) == shown


@given(st.text(st.characters()))
def test_a_cell_is_one_line_without_a_formula_and_is_read_again(name):
    cell = to_cell(name)
    assert from_cell(cell) == name or any("\ud800" <= letter <= "\udc7f" or letter > "\udcff" for letter in name)
    assert not cell.startswith(("=", "+", "-", "@"))
    assert printable(cell) == cell


def test_ordinary_names_are_their_own_cells():
    assert [to_cell(name) for name in ("a/b.v2", "back\\slash", "<b>|`", "é, 'x'")] == [
        "a/b.v2", "back\\slash", "<b>|`", "é, 'x'",
    ]  # fmt: skip
    assert to_cell("=cmd()") == "'=cmd()"


def ascii_stream():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)


def test_an_ascii_terminal_shows_other_letters_as_escapes(monkeypatch):
    out = ascii_stream()
    monkeypatch.setattr(sys, "stdout", out)
    assert guarded(lambda: print_line("😀 caf\udce9 é") or 0) == 0
    assert out.buffer.getvalue() == b"\\U0001f600 caf\\xe9 \\xe9\n"
    assert sys.stdout is out, "the stream is given back"


class Failing(io.StringIO):
    """A stream whose every write fails."""

    def __init__(self, code: int, descriptor: int) -> None:
        super().__init__()
        self.code, self.descriptor = code, descriptor

    encoding = "ascii"  # type: ignore[assignment]

    def write(self, text: str) -> int:
        text.encode(self.encoding)
        raise OSError(self.code, "failed")

    def fileno(self) -> int:
        return self.descriptor


@pytest.mark.parametrize(("code", "expected"), [(errno.EPIPE, 0), (errno.EIO, 0), (errno.ENOSPC, 1)])
def test_a_lost_stdout_ends_no_run_and_a_full_disk_is_reported(code, expected, monkeypatch, tmp_path, capsys):
    steps = []

    def run():
        for number in range(3):
            print_line(f"é{number}.png")
            steps.append(number)
        return 0

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Failing(code, file.fileno()))
        assert guarded(run) == expected
    assert steps == [0, 1, 2]
    assert ("could not be printed" in capsys.readouterr().err) == bool(expected)


def test_messages_cannot_paint_the_terminal(capsys):
    def run():
        report("failed: \x1b]0;title\x07\nerror: no")
        raise ValueError("in\n  a  b\x1b[2J")

    assert guarded(run) == 2
    assert capsys.readouterr().err == "failed: \\x1b]0;title\\x07\\nerror: no\nerror: in a  b\\x1b[2J\n"


@pytest.mark.parametrize(
    ("error", "part"), [(MemoryError(), "not enough memory"), (RecursionError("deep"), "nested too deeply")]
)
def test_errors_of_memory_and_depth_are_one_line(error, part, capsys, monkeypatch):
    monkeypatch.delenv("RAD_DEBUG", raising=False)

    def run():
        raise error

    assert guarded(run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_other_attributes_are_those_of_the_stream():
    inner = ascii_stream()
    assert (Stream(inner).encoding, Stream(inner).isatty(), Stream(inner).writable()) == ("ascii", False, True)


def test_closed_streams_and_closed_pipes_in_a_shell():
    rad = f"{sys.executable} -m rad"
    script = f"""
        {rad} --help >&-; echo $?
        {rad} smaple 2>&-; echo $?
        {rad} sample --list_methods | head -n 1 | cut -c 1-6; echo ${{PIPESTATUS[0]}}
        {rad} smaple
    """
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "2", "method", "0"]
    (line,) = done.stderr.splitlines()
    assert "did you mean sample?" in line
