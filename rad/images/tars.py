"""Tars, single or in shards: listed once, then read at random by number."""

import os
import re
import tarfile
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from rad.images.archives import Packed
from rad.images.atomic import built_once
from rad.images.remote import HEADER, RangeFile, Remote, cache_folder, is_remote

TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")

_BLOCK, _OPEN_SHARDS = 512, 128

_INDEX_VERSION = 1
"""Of the files that keep the index of a remote tar."""


class _Member(NamedTuple):
    """The place of an image in its tar, in bytes."""

    name: str
    offset: int
    size: int


class _Shard:
    """A tar open for `os.pread`, which keeps no position: threads and forked workers may share it."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def read(self, start: int, end: int) -> bytes:
        data = os.pread(self.file, end - start, start)
        if len(data) < end - start:
            raise EOFError(f"the tar ends {end - start - len(data)} bytes before the image does")
        return data

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


def _open_shard(path: str) -> _Shard | Remote:
    return Remote(path) if is_remote(path) else _Shard(path)


class Tars:
    """The images of tars (the shards of a webdataset), in the order of shards and names.

    An image is called SHARD/MEMBER; SHARD is the path of the tar below the folder of all tars, without its ending. Only
    plain files that `wanted` accepts by name are listed.

    Listing reads the header of every member, in 8 tars at a time: about 20 microseconds of CPU each. Memory: the name and
    24 bytes an image. The package webdataset is not used: it reads in order, or by an index file.

    Raises ValueError if a file is compressed, is no tar, or is damaged before the end of its first image. A tar that is
    damaged later is used up to there, with a warning.
    """

    def __init__(self, path: str, shards: Sequence[Path | Remote], *, wanted: Callable[[str], bool]) -> None:
        self.path = path
        places = {shard: shard.path if isinstance(shard, Remote) else shard for shard in shards}
        top = os.path.commonpath([place.parent for place in places.values()])
        labels = {
            shard: place.relative_to(top).with_suffix("").as_posix().strip(".") for shard, place in places.items()
        }
        shards = sorted(shards, key=lambda shard: f"{labels[shard]}/")
        self._shards = [shard.url if isinstance(shard, Remote) else str(shard) for shard in shards]
        self._labels = [labels[shard] for shard in shards]
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
        self._open = lru_cache(_OPEN_SHARDS)(_open_shard)
        for remark in remarks:
            warnings.warn(remark, stacklevel=3)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._open = lru_cache(_OPEN_SHARDS)(_open_shard)

    def __len__(self) -> int:
        return len(self._names)

    def _shard(self, number: int) -> int:
        return int(np.searchsorted(self._first, number, side="right")) - 1

    def name(self, number: int) -> str:
        return f"{self._labels[self._shard(number)]}/{os.fsdecode(self._names[number])}"

    def version(self) -> str:
        return sha256(self._offsets.tobytes() + self._sizes.tobytes()).hexdigest()

    def open(self, number: int) -> IO[bytes]:
        """The file of an image, of which only the parts in use are read."""
        shard, first = self._open(self._shards[self._shard(number)]), int(self._offsets[number])
        file = RangeFile(
            lambda start, end: shard.read(first + start, first + end), int(self._sizes[number]), ahead=HEADER
        )
        return cast("IO[bytes]", file)

    def read(self, number: int) -> bytes:
        start = int(self._offsets[number])
        return self._open(self._shards[self._shard(number)]).read(start, start + int(self._sizes[number]))


def _index(wanted: Callable[[str], bool], path: Path | Remote) -> tuple[list[_Member], str]:
    """The images of a tar, and a description of its damage, empty for none."""
    if isinstance(path, Remote):
        members, damage = _index_remote(path)
        members = [member for member in members if wanted(member.name)]
    else:
        try:
            with open(path, "rb") as file:
                members, damage = _read_headers(file, os.fstat(file.fileno()).st_size, wanted)
        except (OSError, tarfile.TarError, ValueError) as error:
            raise ValueError(f"cannot read tar {path}: {error}") from error
    if damage and not members:
        raise ValueError(f"{path} {damage}, and no whole image is left in it: copy it again")
    return members, damage


def _read_headers(file: IO[bytes], size: int, wanted: Callable[[str], bool]) -> tuple[list[_Member], str]:
    """See `_index`, of a tar of `size` bytes."""
    members: list[_Member] = []
    if file.read(6).startswith(_COMPRESSED):
        raise ValueError("it is compressed, so it cannot be read at random: unpack it to a plain .tar")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        try:
            return members, _walk(tar, file, size, wanted, members)
        except (tarfile.TarError, ValueError, EOFError) as error:
            return members, f"is damaged or cut off ({error})"


def _index_remote(path: Remote) -> tuple[list[_Member], str]:
    """All plain files of a remote tar and its damage. The headers are read once for each version of the tar and kept."""
    info = {name: value for name, value in path.info().items() if name != "url"}  # may hold a signature of this request
    version = sha256(repr((_INDEX_VERSION, str(path), sorted(info.items(), key=str))).encode()).hexdigest()
    kept = cache_folder() / "tars" / f"{version[:40]}.npz"
    return built_once(kept, partial(_build_index, path), _save_index, _load_index)


def _build_index(path: Remote) -> tuple[list[_Member], str]:
    try:
        file = RangeFile.of(path)
        return _read_headers(cast("IO[bytes]", file), file.size, lambda _: True)
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"cannot read tar {path}: {error}") from error


def _save_index(file: Path, index: tuple[list[_Member], str]) -> None:
    members, damage = index
    names = [os.fsencode(member.name) for member in members]
    np.savez(
        file,
        names=np.frombuffer(b"".join(names), np.uint8),
        lengths=np.array([len(name) for name in names], np.int64),
        offsets=np.array([member.offset for member in members], np.int64),
        sizes=np.array([member.size for member in members], np.int64),
        damage=np.frombuffer(os.fsencode(damage), np.uint8),
    )


def _load_index(file: Path) -> tuple[list[_Member], str]:
    with np.load(file, allow_pickle=False) as kept:
        names, ends = kept["names"].tobytes(), np.cumsum(kept["lengths"]).tolist()
        places = zip([0, *ends[:-1]], ends, kept["offsets"].tolist(), kept["sizes"].tolist(), strict=False)
        members = [_Member(os.fsdecode(names[start:end]), offset, size) for start, end, offset, size in places]
        return members, os.fsdecode(kept["damage"].tobytes())


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
    if not is_pattern(pattern):
        return []
    shards = []
    for name in expand_names(pattern):
        if not os.path.isfile(name):
            raise ValueError(f"no such shard: {name}, of {pattern}; give the range of those that are there")
        shards.append(Path(name))
    return shards


def is_pattern(name: str) -> bool:
    """Whether `name` holds a range, such as {0000..0099}."""
    return re.search(r"\{\d+\.\.\d+\}", name) is not None


def expand_names(pattern: str) -> Iterator[str]:
    """All names of a pattern. Raises ValueError if a range counts down."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    low, high = match.groups()
    if int(low) > int(high):
        raise ValueError(f"{pattern}: the range {match[0]} counts down; give the smaller number first")
    width = max(len(low), len(high)) if low.startswith("0") or high.startswith("0") else 0
    for number in range(int(low), int(high) + 1):
        yield from expand_names(f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}")
