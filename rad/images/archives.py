"""Images inside tars, LMDB and Hugging Face datasets: listed once, then read at random by their number.

An image has the same number whenever the same source is opened, so a position in the stream of training images is
all that has to be kept for a resume. Nothing is extracted. Names and places lie in flat arrays, not in a Python object a
image: those would be copied into every loader worker, page by page, as their reference counts are touched.
"""

import os
import re
import tarfile
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from rad.resources import pip_install

TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


_BLOCK = 512


_OPEN_SHARDS = 128


class Numbered(Protocol):
    """An archive whose images are read by number, from 0 to `len` - 1. It can be pickled, and forked.

    Attributes:
        path: what the user called it, for messages.
    """

    path: str

    def __len__(self) -> int: ...

    def name(self, number: int) -> str: ...

    def read(self, number: int) -> bytes:
        """The file of an image. Raises ValueError, OSError or EOFError where it cannot be read."""
        ...


class Packed:
    """Byte strings in one block of memory."""

    def __init__(self, strings: Iterable[bytes]) -> None:
        block, ends = bytearray(), array("q", [0])
        for string in strings:
            block += string
            ends.append(len(block))
        self._block, self._ends = bytes(block), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._block[self._ends[index] : self._ends[index + 1]]


class _Member(NamedTuple):
    """Where an image lies in its tar, in bytes."""

    name: str
    offset: int
    size: int


class _Shard:
    """A tar open for `os.pread`, which leaves no position behind: threads and forked workers may share it."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class Tars:
    """The images of one tar or of several (the shards of a webdataset), in the order of shards and names.

    An image is called SHARD/MEMBER, SHARD being the tar's path below the folder of all tars, without its ending.
    Members that are not plain files with the name of an image are left out.

    To list them, the header of every member is read once, in 8 tars at a time: one small read and a seek each, some
    20 microseconds of processor time, and on a network disk as long as such a read takes there. Memory: the name and
    24 bytes an image. The standard library does all of it; the package webdataset reads tars from front to end, or
    by an index made beforehand, which would have to be kept beside the shards.

    Args:
        path: what the user called them.
        shards: the files.
        wanted: tells by its name whether a member is an image.

    Raises:
        ValueError: a file is compressed or no tar, or is damaged before the end of its first image. One that is
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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
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
    """(the images of a tar, what is wrong with the rest of it if anything is)."""
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
                    damage = _walk(tar, size, wanted, members)
                except (tarfile.TarError, ValueError, EOFError) as error:
                    damage = f"is damaged or cut off ({error})"
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"cannot read tar {path}: {error}") from error
    if damage and not members:
        raise ValueError(f"{path} {damage}, and no whole image is left in it: copy it again")
    return members, damage


def _walk(tar: Any, size: int, wanted: Callable[[str], bool], members: list[_Member]) -> str:
    """Put the images of a tar of `size` bytes into `members`, and say how it ends if that is not as it should."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # tarfile would keep all headers
        if min(member.offset_data + member.size, tar.offset) > size:  # a sparse member says more than it takes
            return f"is cut off within {member.name}"
        if tar.offset <= member.offset:
            return f"has a damaged header at {member.name}"
        name = re.sub(r"^(\./+)+", "", member.name)
        if member.isreg() and not member.issparse() and wanted(name):
            members.append(_Member(name, member.offset_data, member.size))
    file: Any = tar.fileobj
    file.seek(tar.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes whatever is no header for the end
        return f"is damaged or cut off at byte {tar.offset}"
    return ""


def expand(pattern: str) -> list[Path]:
    """The files of a pattern such as train-{0000..0099}.tar; [] for what is no such pattern.

    Raises:
        ValueError: one of them is not there, or a range counts down.
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
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    low, high = found.groups()
    if int(low) > int(high):
        raise ValueError(f"{pattern}: the range {found[0]} counts down; give the smaller number first")
    width = max(len(low), len(high)) if low.startswith("0") or high.startswith("0") else 0
    for number in range(int(low), int(high) + 1):
        yield from _expand(f"{pattern[: found.start()]}{number:0{width}d}{pattern[found.end() :]}")


_ENVIRONMENTS: dict[tuple[int, int], tuple[int, Any]] = {}


class Database:
    """The values of an LMDB (a folder with data.mdb, as LSUN is published), in the order of their keys.

    An image is called like its key, or, where the key is no text that could name a file in a folder, like the key's
    bytes in hexadecimal. Every key is taken for an image: to look at the values would mean to read the whole file. To list
    them, all keys are read once. Memory: the key and 8 bytes an image.

    Raises:
        ValueError: the package lmdb is missing, or the file is damaged or cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self._handle, self._process = None, -1
        try:
            import lmdb
        except ImportError as error:
            raise ValueError(
                f"{folder} is an LMDB, and needs the package lmdb, which is not installed: {pip_install('lmdb')}"
            ) from error
        try:
            with self._environment().begin() as transaction:
                self._keys = Packed(transaction.cursor().iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise ValueError(f"cannot read LMDB {folder}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handle": None, "_process": -1}

    def __len__(self) -> int:
        return len(self._keys)

    def _environment(self) -> Any:
        if self._process != os.getpid():
            self._handle, self._process = _environment(Path(self.path)), os.getpid()
        return self._handle

    def name(self, number: int) -> str:
        key = self._keys[number]
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return key.hex()
        plain = all(part and not part.startswith(".") for part in text.split("/"))
        return text if plain and text.isprintable() else key.hex()

    def read(self, number: int) -> bytes:
        import lmdb

        try:
            with self._environment().begin() as transaction:
                value = transaction.get(self._keys[number])
        except lmdb.Error as error:
            raise ValueError(str(error)) from error
        if value is None:
            raise ValueError("its key is not in the LMDB any more")
        return value


def _environment(folder: Path) -> Any:
    """The open LMDB, one in each process: it may not be opened twice, and one from before a fork is not to be used."""
    import lmdb

    file = (folder / "data.mdb").stat()
    process, environment = _ENVIRONMENTS.get((file.st_dev, file.st_ino), (-1, None))
    if process == os.getpid():
        return environment
    if environment is not None:
        environment.close()
    environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.st_size < needed:  # to read beyond the end of a mapped file kills the process
        environment.close()
        raise ValueError(f"{folder / 'data.mdb'} is cut off: {file.st_size} of {needed} bytes; copy it again")
    _ENVIRONMENTS[file.st_dev, file.st_ino] = os.getpid(), environment
    return environment


class Rows:
    """The images of a Hugging Face dataset, in the order of its rows; a row is called by its number.

    The files are taken as they were stored, undecoded, and no code of a dataset is run. What is on this disk is read
    without a network; a hub id is downloaded once by the library, into its own cache.

    Args:
        source: "hf:ID", "hf:ID:SPLIT" or "hf:ID:SPLIT:COLUMN". ID is a folder written by `save_to_disk`, a folder or
            .parquet file that `load_dataset` reads, or a hub id. SPLIT is "train" if it is left out, COLUMN the only
            column of images.

    Raises:
        ValueError: the package datasets is missing, or there is no such dataset, split or column.
    """

    def __init__(self, source: str) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"{source} needs the package datasets, which is not installed: {pip_install('hf')}"
            ) from error
        self.path = source
        identity, split, column, *more = [*re.split(r":(?![^\[]*\])", source.removeprefix("hf:")), "", ""]
        if not identity or any(more):
            raise ValueError(f"{source}: give hf:ID, hf:ID:SPLIT or hf:ID:SPLIT:COLUMN")
        try:
            dataset = _load_dataset(identity, split)
        except (
            Exception
        ) as error:  # besides its own, the library passes on errors of pyarrow, fsspec and its HTTP client
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"cannot load the dataset {source}: {reason}") from error
        kinds = dict(dataset.features)
        images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
        if not column and len(images) != 1:
            raise ValueError(f"{source} has {len(images)} columns of images among {', '.join(kinds)}: name one")
        self._column = column or images[0]
        kind = kinds.get(self._column)
        if not isinstance(kind, datasets.Image) and getattr(kind, "dtype", None) not in ("binary", "large_binary"):
            raise ValueError(f"{source}: {self._column} is no column of images; there are {', '.join(kinds)}")
        # Undecoded, so that all sources are decoded alike: orientation, 16 bits, CMYK.
        self._rows = dataset.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, number: int) -> str:
        return f"{number:08d}"

    def read(self, number: int) -> bytes:
        stored = self._rows[number][self._column]
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise ValueError("the row holds no image")
        if stored["bytes"] is None:
            return Path(stored["path"]).read_bytes()
        return stored["bytes"]


def _load_dataset(identity: str, split: str) -> Any:
    from datasets import Dataset, load_dataset, load_from_disk

    path = Path(identity)
    if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(identity)
        if isinstance(saved, Dataset):
            if split not in ("", name := str(saved.split or "train")):
                raise ValueError(f"it was saved as the single split {name}: leave {split} out")
            return saved
        if (split or "train") not in saved:
            raise ValueError(f"there is no split {split or 'train'}; there are {', '.join(map(str, saved))}")
        return saved[split or "train"]
    if path.is_dir():
        return load_dataset(str(path.resolve()), split=split or "train")
    if path.suffix == ".parquet":
        return load_dataset("parquet", data_files=str(path.resolve(strict=True)), split=split or "train")
    if path.is_file() or path.is_absolute() or identity.startswith((".", "~")) or identity.count("/") > 1:
        raise ValueError("there is no such folder or .parquet file, and a hub id is NAME or OWNER/NAME")
    return load_dataset(identity, split=split or "train")
