"""Files that are always whole: written under a hidden name, then renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """A hidden name with the same suffix to write to. It becomes `path` at the end, and is removed after an error.

    Missing folders are created. `durable`: content reaches the disk before the name, against power cuts. `shared`: the
    hidden name is unique, for processes that write the same file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f".{path.stem}{unique}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which replaces `folder` and its content at the end."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 and return the path."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may be no UTF-8
    return path
