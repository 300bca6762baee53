"""Files in object storage and on web servers, with random access by ranges of bytes through fsspec.

No connection outlives a read, so objects may be pickled, forked and shared by threads. Only the requested bytes are read.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from pathlib import Path, PurePosixPath
from typing import TypeVar, cast
from urllib.parse import unquote, urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from rad.resources import pip_install

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the attempts of a read."""

AHEAD = 1 << 20
"""Least number of bytes in a request while a table of contents is read."""

HEADER = 1 << 16
"""Least number of bytes in a request for the header of an image."""

_PASSING = (408, 425, 429)
"""HTTP status codes between 400 and 499 that may be temporary."""

_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#'\"]*@")
"""`user:password@` of a URL."""

Result = TypeVar("Result")


class Unreachable(RuntimeError):
    """A remote file cannot be read. The run stops: another image in its place would change the order of the images.

    It is not an OSError, which zipfile treats as a damaged zip.
    """


def is_remote(source: str | Path) -> bool:
    """Whether `source` is a URL, such as s3://BUCKET/KEY."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def without_query(source: str) -> str:
    """A source for messages and records: of a URL without `user:password@` and query, which may hold secrets."""
    return str(Remote(source)) if is_remote(source) else source


def cache_folder() -> Path:
    """The folder of rad for files that can be built again: $XDG_CACHE_HOME/rad, or ~/.cache/rad."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rad"


@dataclass(frozen=True)
class Remote:
    """A remote file or folder. Every read raises `Unreachable` when the last attempt has failed.

    Args:
        url: SCHEME://PATH, for any scheme of fsspec; of http(s) also with a query.
    """

    url: str

    def __str__(self) -> str:
        """The URL without `user:password@`, and of http(s) without its query: they may hold secrets."""
        return _CREDENTIALS.sub("", self._address)

    @property
    def _address(self) -> str:
        return self.url.partition("?")[0] if self.is_web else self.url

    @property
    def is_web(self) -> bool:
        return self.url.lower().startswith(("http://", "https://"))

    @property
    def path(self) -> PurePosixPath:
        """The path in the URL, with the host or bucket as first part."""
        _, _, path = str(self).partition("://")
        return PurePosixPath("/", unquote(path) if self.is_web else path)

    def child(self, name: str) -> "Remote":
        """The file `name`, as in `files`, of a folder."""
        parts = urlsplit(self.url) if self.is_web else None
        query = f"?{parts.query}" if parts is not None and parts.query else ""
        return Remote(f"{self._address.rstrip('/')}/{name}{query}")

    @property
    def parent(self) -> "Remote":
        """The folder of a file."""
        return Remote(self.url.replace(self._address, self._address.rpartition("/")[0], 1))

    def info(self) -> dict[str, object]:
        """Size in bytes as "size", and what the storage records about the version. Raises ValueError without a size."""
        info = self._attempt(lambda files, path: files.info(path))
        if not isinstance(info.get("size"), int):
            raise ValueError(
                f"{self}: the server reports no size, so ranges cannot be read: use another or a local copy"
            )
        return info

    def files(self) -> list[str]:
        """Paths of all files below a folder, with "/" and as in URLs, sorted."""

        def find(files: AbstractFileSystem, path: str) -> list[str]:
            files.invalidate_cache()
            start = path.rstrip("/") + "/"
            names = sorted(name.removeprefix(start) for name in files.find(path) if name.startswith(start))
            if not names:
                files.info(path)  # raises if there is no such folder
            return names

        return self._attempt(find)

    def read(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, without `end`."""

        def fetch(files: AbstractFileSystem, path: str) -> bytes:
            if files.async_impl:
                return cast("bytes", files.cat_file(path, start=start, end=end))
            with files.open(path, "rb", cache_type="none") as file:  # the default would read megabytes ahead
                file.seek(start)
                return cast("bytes", file.read(end - start))

        def whole(files: AbstractFileSystem, path: str) -> bytes:
            data = fetch(files, path)
            if len(data) < end - start:
                raise EOFError(f"{len(data)} of {end - start} bytes arrived")
            return data

        data = self._attempt(whole)
        if len(data) > end - start:
            raise Unreachable(f"{self}: the server ignores ranges of bytes; use another server or a local copy")
        return data

    def read_all(self) -> bytes:
        """The whole file."""
        return self._attempt(lambda files, path: cast("bytes", files.cat_file(path)))

    def _attempt(self, operation: Callable[[AbstractFileSystem, str], Result]) -> Result:
        """`operation` on the file system of this process, which fsspec keeps, and the path in it."""
        for attempt in range(len(PAUSES) + 1):
            try:
                files, path = url_to_fs(self.url)
                return operation(files, path)
            except ImportError as error:
                raise ValueError(
                    f"{self} needs a package that is not installed ({error}): {pip_install('remote')}"
                ) from error
            except Exception as error:  # each storage has its own kinds of errors
                if "Protocol not known" in str(error):
                    raise ValueError(
                        f"{self}: unknown scheme; known are s3, gs, https, hf and others of fsspec"
                    ) from error
                final = _is_final(error)
                if final or attempt == len(PAUSES):
                    count = "" if final else f" after {attempt + 1} attempts"
                    raise Unreachable(
                        f"cannot read {self}{count}: {_reason(error)}. Check the address, the connection "
                        "and the credentials, then resume the run"
                    ) from error
                time.sleep(PAUSES[attempt])
        raise AssertionError("the last attempt returns or raises")


def _cause(error: Exception) -> Exception:
    """The error of the connection, which fsspec hides in FileNotFoundError."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _reason(error: Exception) -> str:
    """Type and message of the cause, without secrets of URLs: they may be written in another way than in the given URL."""
    cause = _cause(error)
    message = _CREDENTIALS.sub("", " ".join((str(cause) or type(cause).__name__).split()))
    return re.sub(r"(https?://[^\s'\"?]*)\?[^\s'\"]*", r"\1", f"{type(cause).__name__}: {message}")


def _is_final(error: Exception) -> bool:
    """Whether another attempt is useless."""
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING
    return isinstance(cause, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)


class RangeFile(RawIOBase):
    """A file that is read by ranges, as a seekable stream. The last range stays in memory.

    Args:
        fetch: returns the bytes from a start to an end; size: of the file, in bytes.
        ahead: least number of bytes in a request.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, *, ahead: int) -> None:
        self.fetch, self.size, self.ahead, self._position = fetch, size, ahead, 0
        self._window: tuple[int, bytes] = (0, b"")  # replaced as a whole: threads may share the file

    @classmethod
    def of(cls, remote: Remote, *, ahead: int = AHEAD) -> "RangeFile":
        """A remote file. Raises as `Remote.info`."""
        size = remote.info()["size"]
        assert isinstance(size, int)
        return cls(remote.read, size, ahead=ahead)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._position = max(0, {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self.size}[whence] + offset)
        return self._position

    def prefetch(self, start: int, end: int) -> tuple[int, bytes]:
        """Read the range in one request and keep it; returns its start and bytes."""
        end = min(end, self.size)
        self._window = window = (start, self.fetch(start, end) if end > start else b"")
        return window

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        end = self.size if size is None or size < 0 else min(start + size, self.size)
        if end <= start:
            return b""
        first, data = self._window
        if start < first or end > first + len(data):
            first, data = self.prefetch(start, max(end, start + self.ahead))
        self._position = end
        return data[start - first : end - first]
