"""Files that are always whole: written under a hidden name of their own, then renamed."""

import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

MARK = ".rad-tmp"
TEMPORARY = re.compile(rf"\.[0-9a-f]{{8}}{re.escape(MARK)}(\.\w+)?")
"""Names of unfinished files and folders: unique, hidden, and short even where the final name is long."""

OLD_MARK = ".rad-old"
OLD = re.compile(rf"\.([0-9a-f]{{8}})[0-9a-f]{{8}}{re.escape(OLD_MARK)}")
"""Names of folders that are being replaced: group 1 is the `_key` of the folder's own name."""

Result = TypeVar("Result")

LONGEST_SUFFIX = 16
ABANDONED = 60.0
"""Seconds after which the unfinished files of an earlier process are removed."""


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A hidden name with the same suffix to write to. It becomes `path` at the end, and is removed after an error.

    Missing folders are created. The umask sets the permissions, not the writer's library nor an earlier file. Several
    processes may write the same file: the last one wins. `durable`: content reaches the disk before the name, against power
    cuts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unique(path)
    mode = _create(temporary)
    try:
        yield temporary
        _set_mode(temporary, mode)
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which replaces `folder` and its content at the end. Permissions as in `replacing`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _unique(folder), folder.with_name(f".{_key(folder.name)}{secrets.token_hex(4)}{OLD_MARK}")
    temporary.mkdir()
    try:
        yield temporary
        _set_modes(temporary)
        with suppress(FileNotFoundError):
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        if not folder.exists():  # an error or an interruption between the two renames
            with suppress(OSError):
                os.replace(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def unwritable(folder: Path, output: str, error: OSError) -> str:
    """The message for --output, in which `folder` takes no files."""
    return f"--output {output} cannot be written: {_existing(folder)} takes no files ({error.strerror or error})"


def require_writable(folder: Path, output: str) -> None:
    """Raise ValueError, which names `output`, if `folder` or the nearest folder above it takes no files."""
    try:
        tempfile.TemporaryFile(dir=_existing(folder)).close()
    except OSError as error:
        raise ValueError(unwritable(folder, output, error)) from None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))


def built_once(
    path: Path, build: Callable[[], Result], save: Callable[[Path, Result], object], load: Callable[[Path], Result]
) -> Result:
    """The content of a file that is written at the first use; the other processes wait for it.

    A file that `load` cannot read is built again. Without a place to write, a warning says so.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            with suppress(Exception):  # readers of damaged files raise almost anything
                return load(path)
            content = build()
            with replacing(path) as temporary:
                save(temporary, content)
            return content
    except OSError as error:
        warnings.warn(f"{path} cannot be written, and is computed again at every start: {error}", stacklevel=2)
        return build()


def write_text(path: Path, text: str, *, durable: bool = False) -> Path:
    """Write UTF-8 and return the path; `durable` as in `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may be no UTF-8
    return path


def replace_link(link: Path, target: str) -> None:
    """Let `link` point to `target` in its folder; there is no moment without it."""
    temporary = _unique(link)
    temporary.symlink_to(target)
    try:
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folders: Iterable[Path], *, older: float = ABANDONED) -> None:
    """Remove what killed processes left unfinished directly in `folders`. Call it while no other process writes there.

    A replaced folder is kept while there is no other under its name.

    `older`: seconds without a change; at least as many as another process may need for a file, if there can be one.
    """
    for folder in folders:
        with suppress(OSError):
            entries = list(os.scandir(folder))
            keys = {_key(entry.name) for entry in entries}
            for entry in entries:
                old = OLD.fullmatch(entry.name)
                if not (TEMPORARY.fullmatch(entry.name) or (old and old[1] in keys)):
                    continue
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime < older:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def _unique(path: Path) -> Path:
    suffix = (
        path.suffix if re.fullmatch(r"\.\w+", path.suffix) and len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    )
    return path.with_name(f".{secrets.token_hex(4)}{MARK}{suffix}")


def _key(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def _create(path: Path) -> int:
    """Create an empty file and return the permissions that the system gives it, by umask or by the folder's rules."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def _set_mode(path: Path, mode: int) -> None:
    now = stat.S_IMODE(path.stat().st_mode)
    if now & 0o777 != mode:
        path.chmod(now & ~0o777 | mode)  # keeps the bit by which folders hand on their group


def _set_modes(folder: Path) -> None:
    """Give everything in `folder` the permissions of new files and folders."""
    probe = _unique(folder / "probe")
    mode, folder_mode = _create(probe), folder.stat().st_mode & 0o777
    probe.unlink()
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            if not path.is_symlink():
                _set_mode(path, folder_mode if path.is_dir() else mode)
