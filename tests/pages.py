"""Code blocks of the pages in docs/, and a runner for their `rad` commands."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rad.__main__ import main

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page, such as `tutorials/fine-tune.md`, in the order of the page."""
    return re.findall(
        rf"^ *```{language}[^\n]*\n(.*?)^ *```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def code(page: str) -> list[tuple[str, str]]:
    """The Python and shell blocks of a page as (language, code), in order."""
    fences = re.compile(r"^ *```(python|bash)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    return fences.findall((DOCS / page).read_text(encoding="utf-8"))


def commands(page: str) -> list[list[str]]:
    """The words after `rad` of each `rad` command of a page, in order. Lines that end with a backslash are joined."""
    return words_of("\n".join(blocks(page, "bash")))


def words_of(block: str) -> list[list[str]]:
    """The words after `rad` of each `rad` command of a shell block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rad ")]


def run_python(page: str, code: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Executes a code block; returns its names. `names` are those of earlier blocks."""
    names = {} if names is None else names
    exec(compile(code, page, "exec"), names)
    return names


def run_command(words: Sequence[str], *shorter: str) -> None:
    """Runs `rad WORDS SHORTER`; a later option overrides an earlier one, so `--steps 2` shortens a command."""
    assert main([*words, *shorter]) == 0, words
