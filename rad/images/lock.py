"""A lock on a folder of results: one writer at a time. The system releases it when the process ends, also when it is killed."""

import errno
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from rad.console import report

WHOLE, EVALUATION, RECORD = ".rad.lock", ".rad.evaluate.lock", ".rad.record.lock"
"""Lock files: of all results, of the tables and report, and of run.json."""

PATIENCE = 1.0
"""Seconds to wait for a lock: others hold it for a moment only to test it."""

LONGEST_COMMAND = 300
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class InUse(ValueError):
    """Another process writes to the folder."""


@contextmanager
def locked(folder: Path, *, part: str = "", beside: str = "", option: str = "--output") -> Iterator[None]:
    """Hold `folder`, which is created; an empty one that this call created is removed at the end.

    Args:
        part: name of a part of the folder. The whole folder and its parts exclude each other.
        beside: pattern for the names of parts that may be held at the same time, such as "*of4".
        option: option that chooses another folder, for the error.

    Raises InUse if another process holds it, with that process; OSError if the folder cannot be written.
    """
    name = f".rad-{part}.lock" if part else WHOLE
    with _held(folder / name, folder, option):
        others = [folder / WHOLE] if part else []
        others += [path for path in folder.glob(".rad-*.lock") if path.name != name]
        for other in others:
            if not (part and other.match(f".rad-{beside}.lock")):
                with _held(other, folder, option, only_existing=True):
                    pass
        yield


@contextmanager
def one_at_a_time(path: Path, *, patience: float = 60.0) -> Iterator[None]:
    """Wait for the lock file `path`, for a short change of a file that several processes share. Errors as in `locked`."""
    with _held(path, path.parent, "--output", patience=patience):
        yield


def holder(folder: Path) -> str:
    """The process that holds a folder or a part of it, as written by it; empty if it is free."""
    for path in (folder / WHOLE, *folder.glob(".rad-*.lock")):
        try:
            with _held(path, folder, "", only_existing=True):
                pass
        except InUse:
            return _described(path)
        except OSError:
            continue
    return ""


@contextmanager
def _held(
    path: Path, folder: Path, option: str, *, patience: float | None = None, only_existing: bool = False
) -> Iterator[None]:
    """Hold a lock file, whose folder is created if need be; `only_existing`: if there is one, to test it."""
    if only_existing and not path.exists():
        yield
        return
    created = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, folder, option, PATIENCE if patience is None else patience)
        try:
            if lock is not None and not only_existing:
                with suppress(OSError):
                    path.write_text(_this_process(), encoding="utf-8", errors="backslashreplace")
            yield
        finally:
            if lock is not None:
                with suppress(OSError):
                    path.unlink()
                lock.release()
    finally:
        with suppress(OSError):  # of a folder that is not empty
            for parent in created:
                parent.rmdir()


def _acquire(path: Path, folder: Path, option: str, patience: float) -> BaseFileLock | None:
    """None on a disk without locks."""
    lock = FileLock(path, timeout=patience, mode=0o666, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise InUse(
            f"{folder} is in use by {_described(path)}: wait for its end, or give another {option}. If its computer has "
            f"crashed, delete {path}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        report(f"warning: {folder} is on a disk without locks ({error.strerror}): start no second run on it")
        return None
    return lock


def _this_process() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    command = command if len(command) <= LONGEST_COMMAND else f"{command[:LONGEST_COMMAND]} ..."
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {socket.gethostname()} since {started} ({' '.join(command.split())})"


def _described(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    return "another process"
