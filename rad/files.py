"""Files that are always whole: written under a hidden name, and renamed when done."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The name to write to, hidden and with the same suffix; it becomes `path` at the end, and vanishes after an error.

    The folder is made if need be. `shared`: other processes may write the same file now, so the name is like no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f".{path.stem}{own}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 and return the path."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
