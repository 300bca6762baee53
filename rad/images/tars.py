"""Tars, single or in shards: listed once, then read at random by number."""

import os
import re
import tarfile
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from rad.images.archives import Packed

TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")

_BLOCK, _OPEN_SHARDS = 512, 128


class _Member(NamedTuple):
    """The place of an image in its tar, in bytes."""

    name: str
    offset: int
    size: int


class _Shard:
    """A tar open for `os.pread`, which keeps no position: threads and forked workers may share it."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class Tars:
    """The images of tars (the shards of a webdataset), in the order of shards and names.

    An image is called SHARD/MEMBER; SHARD is the path of the tar below the folder of all tars, without its ending. Only
    plain files that `wanted` accepts by name are listed.

    Listing reads the header of every member, in 8 tars at a time: about 20 microseconds of CPU each. Memory: the name and
    24 bytes an image. The package webdataset is not used: it reads in order, or by an index file.

    Raises ValueError if a file is compressed, is no tar, or is damaged before the end of its first image. A tar that is
    damaged later is used up to there, with a warning.
    """

    def __init__(self, path: str, shards: Sequence[Path], *, wanted: Callable[[str], bool]) -> None:
        self.path = path
        top = os.path.commonpath([shard.parent for shard in shards])
        labels = {shard: shard.relative_to(top).with_suffix("").as_posix().strip(".") for shard in shards}
        shards = sorted(shards, key=lambda shard: f"{labels[shard]}/")
        self._shards, self._labels = [str(shard) for shard in shards], [labels[shard] for shard in shards]
        first, offsets, sizes, remarks = array("q", [0]), array("q"), array("q"), []

        def names() -> Iterator[bytes]:
            with ThreadPoolExecutor(8) as pool:
                for shard, (members, damage) in zip(shards, pool.map(partial(_index, wanted), shards), strict=True):
                    if damage:
                        remarks.append(f"{shard} {damage}; its {len(members)} whole images are used")
                    for member in sorted(members):
                        offsets.append(member.offset)
                        sizes.append(member.size)
                        yield os.fsencode(member.name)
                    first.append(len(offsets))

        self._names = Packed(names())
        self._first, self._offsets, self._sizes = (np.frombuffer(each, np.int64) for each in (first, offsets, sizes))
        self._open = lru_cache(_OPEN_SHARDS)(_Shard)
        for remark in remarks:
            warnings.warn(remark, stacklevel=3)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._open = lru_cache(_OPEN_SHARDS)(_Shard)

    def __len__(self) -> int:
        return len(self._names)

    def _shard(self, number: int) -> int:
        return int(np.searchsorted(self._first, number, side="right")) - 1

    def name(self, number: int) -> str:
        return f"{self._labels[self._shard(number)]}/{os.fsdecode(self._names[number])}"

    def read(self, number: int) -> bytes:
        shard, size = self._open(self._shards[self._shard(number)]), int(self._sizes[number])
        data = os.pread(shard.file, size, int(self._offsets[number]))
        if len(data) < size:
            raise EOFError(f"the tar ends {size - len(data)} bytes before the image does")
        return data


def _index(wanted: Callable[[str], bool], path: Path) -> tuple[list[_Member], str]:
    """The images of a tar, and a description of its damage, empty for none."""
    members: list[_Member] = []
    damage = ""
    try:
        with open(path, "rb") as file:
            if file.read(6).startswith(_COMPRESSED):
                raise ValueError("it is compressed, so it cannot be read at random: unpack it to a plain .tar")
            size = os.fstat(file.fileno()).st_size
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                try:
                    damage = _walk(tar, file, size, wanted, members)
                except (tarfile.TarError, ValueError, EOFError) as error:
                    damage = f"is damaged or cut off ({error})"
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"cannot read tar {path}: {error}") from error
    if damage and not members:
        raise ValueError(f"{path} {damage}, and no whole image is left in it: copy it again")
    return members, damage


def _walk(
    tar: tarfile.TarFile, file: IO[bytes], size: int, wanted: Callable[[str], bool], members: list[_Member]
) -> str:
    """Append the images of a tar of `size` bytes to `members`; returns the damage as in `_index`."""
    while (member := tar.next()) is not None:
        vars(tar)["members"].clear()  # tarfile would keep all headers
        if min(member.offset_data + member.size, tar.offset) > size:  # a sparse member takes less than its size
            return f"is cut off within {member.name}"
        if tar.offset <= member.offset:
            return f"has a damaged header at {member.name}"
        name = re.sub(r"^(\./+)+", "", member.name)
        if member.isreg() and not member.issparse() and wanted(name):
            members.append(_Member(name, member.offset_data, member.size))
    file.seek(tar.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes any block that is no header for the end
        return f"is damaged or cut off at byte {tar.offset}"
    return ""


def expand(pattern: str) -> list[Path]:
    """The files of a pattern such as train-{0000..0099}.tar; [] for a name without a pattern.

    Raises ValueError if a file is missing, or a range counts down.
    """
    if re.search(r"\{\d+\.\.\d+\}", pattern) is None:
        return []
    shards = []
    for name in _expand(pattern):
        if not os.path.isfile(name):
            raise ValueError(f"no such shard: {name}, of {pattern}; give the range of those that are there")
        shards.append(Path(name))
    return shards


def _expand(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    low, high = match.groups()
    if int(low) > int(high):
        raise ValueError(f"{pattern}: the range {match[0]} counts down; give the smaller number first")
    width = max(len(low), len(high)) if low.startswith("0") or high.startswith("0") else 0
    for number in range(int(low), int(high) + 1):
        yield from _expand(f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}")
