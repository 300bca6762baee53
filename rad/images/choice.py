"""Which files of a folder or archive are images: by ending; hidden files, pipes and repeated folders are left out."""

import os
import stat
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rad.images.formats import SUFFIXES, UNREAD_SUFFIXES

if TYPE_CHECKING:
    from rad.images.sources import ImageFile


def is_hidden(name: str) -> bool:
    """Whether a part of the path starts with a dot, or is the folder that macOS adds to zips; "./" at a start is none."""
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


class Choice:
    """Whether a name, with "/", is that of an image; names of images that cannot be read are collected in `unread`."""

    def __init__(self) -> None:
        self.unread: list[str] = []

    def __call__(self, name: str) -> bool:
        ending = name.lower()
        if not ending.endswith((*SUFFIXES, *UNREAD_SUFFIXES)) or is_hidden(name):
            return False
        if ending.endswith(SUFFIXES):
            return True
        self.unread.append(name)
        return False

    def warn(self, source: str | Path, images: Sequence["ImageFile"]) -> None:
        """One warning that counts `unread`, without those that lie beside an image of the same name, as camera files do."""
        beside = {_stem(image.name) for image in images} if self.unread else set()
        kinds = Counter(PurePosixPath(name).suffix.lower() for name in self.unread if _stem(name) not in beside)
        if kinds:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            warnings.warn(f"left out of {source}: {counts}; convert them to PNG or JPEG", stacklevel=3)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).casefold()


def walk(top: Path) -> tuple[dict[str, Path], str]:
    """The files below a folder by relative path with "/", hidden ones left out; and a note of others left out, or "".

    Every real folder is visited once, by its own path if it lies below `top`, otherwise by the first of the links to it. Links
    to a folder that holds the link are not followed. Links to files are files of their own, broken ones too. Pipes, sockets,
    devices and folders that cannot be opened are left out.
    """
    files: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    folders, links, visited = deque([top]), deque(), set()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            left_out["folders that cannot be opened"] += 1
            continue
        real = folder.resolve()
        for entry in entries:
            path, mode = folder / entry.name, _mode(entry)
            if is_hidden(entry.name):
                continue
            if not stat.S_ISDIR(mode):
                if stat.S_ISREG(mode):
                    files[path.relative_to(top).as_posix()] = path
                else:
                    left_out["pipes, sockets or devices"] += 1
            elif not entry.is_symlink():
                folders.append(path)
            elif path.resolve() not in (real, *real.parents):
                links.append(path)
    return files, ", ".join(f"{count} {kind}" for kind, count in left_out.items())


def _mode(entry: "os.DirEntry[str]") -> int:
    """Kind of a file as of `os.stat`, mostly without reading it from disk; a broken link counts as a file."""
    if entry.is_symlink():
        try:
            return os.stat(entry.path).st_mode
        except OSError:
            return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
