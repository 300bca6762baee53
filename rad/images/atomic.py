"""Files that are always whole: written under a hidden name, and renamed when done."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """The name to write to, hidden and with the same suffix; it becomes `path` at the end, and vanishes after an error.

    The folder is made if need be. `durable`: the content is on the disk before it gets its name, so that not even a power
    cut leaves half a file. `shared`: other processes may write the same file now, so the name is like no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f".{path.stem}{own}.tmp{path.suffix}")
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
    """The same for a folder: an empty one to write into, which takes the place of `folder` and all that is in it."""
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
        temporary.write_text(text, encoding="utf-8")
    return path
