"""Readers of archives: zip, LMDB, remote folders and Hugging Face datasets, listed once, then read by number.

Nothing is extracted. Numbers are stable, so a position in the stream suffices to resume training. Names and places lie
in flat arrays: loader workers would copy Python objects page by page as their reference counts change.
"""

import os
import re
import zipfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast
from urllib.parse import unquote

import numpy as np
from PIL import Image

from rad.images.remote import HEADER, RangeFile, Remote, Unreachable
from rad.resources import pip_install

if TYPE_CHECKING:
    import datasets
    import lmdb


class Reader(Protocol):
    """An archive at `path` whose images are read by number, from 0 to `len` - 1. It can be pickled and forked."""

    path: str

    def __len__(self) -> int: ...

    def name(self, number: int) -> str: ...

    def version(self) -> str:
        """A text that differs after most changes of the content."""
        ...

    def open(self, number: int) -> IO[bytes]:
        """The file of an image, for its header. Raises as `read`."""
        ...

    def read(self, number: int) -> bytes:
        """The file of an image. Raises any exception if it cannot be read."""
        ...


_ZIP_HEADER = 30 + 64
"""Bytes of a member's header in a zip without name and entries of the table; 64 more for entries that only it has."""


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


class Zip:
    """The images of a zip, sorted by name; `wanted` selects members by name.

    Backslashes in names are separators if no name has a slash, as some programs of Windows write. Of two members with one name
    the last counts.

    Each process opens its own handle: forked loader workers would share the file position of an inherited one. A remote image
    takes one request.
    """

    def __init__(self, path: Path | Remote, *, wanted: Callable[[str], bool]) -> None:
        self.path, self._place = str(path), path
        self._handle: zipfile.ZipFile | None = None
        self._process = -1
        try:
            members = dict.fromkeys(self.handle().namelist())
            separator = "/" if any("/" in member for member in members) else "\\"
            named = {member.replace(separator, "/"): member for member in members}
            self._members = [(name, named[name]) for name in sorted(filter(wanted, named))]
        except Unreachable:
            raise
        except Exception as error:  # a damaged table of contents makes zipfile raise almost anything
            message = str(error)
            raise ValueError(
                message if message.startswith(f"{path}") else f"cannot read zip {path}: {message}"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_handle": None, "_process": -1}

    def handle(self) -> zipfile.ZipFile:
        if self._handle is None or self._process != os.getpid():
            file = RangeFile.of(self._place, ahead=HEADER) if isinstance(self._place, Remote) else self._place
            self._handle, self._process = zipfile.ZipFile(file), os.getpid()
        return self._handle

    def __len__(self) -> int:
        return len(self._members)

    def name(self, number: int) -> str:
        return self._members[number][0]

    def version(self) -> str:
        return sha256(repr([self.handle().getinfo(member).CRC for _, member in self._members]).encode()).hexdigest()

    def open(self, number: int) -> IO[bytes]:
        return self.handle().open(self._members[number][1])

    def read(self, number: int) -> bytes:
        """Raises for a member larger than 8 bytes a pixel of the largest image that Pillow opens."""
        handle = self.handle()
        member = handle.getinfo(self._members[number][1])
        size, most = member.file_size, Image.MAX_IMAGE_PIXELS
        if most is not None and size > 2 * 8 * most:
            raise ValueError(
                f"it unpacks to {size / 1e6:.0f} MB, more than an image of {2 * most / 1e6:.0f} megapixels has"
            )
        if isinstance(handle.fp, RangeFile):
            header = _ZIP_HEADER + len(os.fsencode(member.orig_filename)) + len(member.extra)
            handle.fp.prefetch(member.header_offset, member.header_offset + header + member.compress_size)
        return handle.read(member)


class RemoteFolder:
    """The images of a folder in object storage or on a web server, sorted by name; `wanted` selects files by name.

    An image takes one request. Raises `rad.images.remote.Unreachable`.
    """

    def __init__(self, folder: Remote, names: Sequence[str], *, wanted: Callable[[str], bool]) -> None:
        self.path, self._folder = str(folder), folder
        names = [name for name in names if wanted(self._plain(name))]
        self._names = Packed(os.fsencode(name) for name in sorted(names, key=self._plain))

    def _plain(self, name: str) -> str:
        return unquote(name) if self._folder.is_web else name

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        return self._plain(os.fsdecode(self._names[number]))

    def version(self) -> str:
        return ""

    def open(self, number: int) -> IO[bytes]:
        return cast("IO[bytes]", RangeFile.of(self._folder.child(os.fsdecode(self._names[number])), ahead=HEADER))

    def read(self, number: int) -> bytes:
        return self._folder.child(os.fsdecode(self._names[number])).read_all()


_ENVIRONMENTS: "dict[tuple[int, int], tuple[int, lmdb.Environment]]" = {}


class Database:
    """The values of an LMDB (a folder with data.mdb, as LSUN is published), in the order of their keys.

    An image is named by its key, in hexadecimal if that is no file name. Every key counts as an image: checking the
    values would read the whole file. Memory: the key and 8 bytes an image.
    Raises ValueError if the package lmdb is missing, or the file is damaged or truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        try:
            import lmdb
        except ImportError as error:
            raise ValueError(
                f"{folder} is an LMDB, and needs the package lmdb, which is not installed: {pip_install('lmdb')}"
            ) from error
        try:
            with _environment(folder).begin() as transaction:
                self._keys = Packed(transaction.cursor().iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise ValueError(f"cannot read LMDB {folder}: {error}") from error

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, number: int) -> str:
        key = self._keys[number]
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return key.hex()
        plain = all(part and not part.startswith(".") for part in text.split("/"))
        return text if plain and text.isprintable() else key.hex()

    def version(self) -> str:
        status = (Path(self.path) / "data.mdb").stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def open(self, number: int) -> IO[bytes]:
        return BytesIO(self.read(number))

    def read(self, number: int) -> bytes:
        with _environment(Path(self.path)).begin() as transaction:
            value = transaction.get(self._keys[number])
        if value is None:
            raise ValueError("its key is not in the LMDB any more")
        return value


def _environment(folder: Path) -> "lmdb.Environment":
    """One open LMDB a process: it must not be opened twice, nor used after a fork."""
    import lmdb

    file = (folder / "data.mdb").stat()
    process, environment = _ENVIRONMENTS.get((file.st_dev, file.st_ino), (-1, None))
    if environment is not None:
        if process == os.getpid():
            return environment
        environment.close()
    environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.st_size < needed:  # a read beyond the end of a mapped file kills the process
        environment.close()
        raise ValueError(f"{folder / 'data.mdb'} is cut off: {file.st_size} of {needed} bytes; copy it again")
    _ENVIRONMENTS[file.st_dev, file.st_ino] = os.getpid(), environment
    return environment


class Rows:
    """The images of a Hugging Face dataset, named by row number and in row order.

    Stored files are read unchanged; no code of a dataset is run. A hub id is downloaded once, into the library's cache.

    Args:
        source: "hf:ID", "hf:ID:SPLIT" or "hf:ID:SPLIT:COLUMN". ID is a folder of `save_to_disk`, a folder or .parquet file
            for `load_dataset`, or a hub id. SPLIT defaults to "train", COLUMN to the only column of images.

    Raises ValueError if the package datasets is missing, or there is no such dataset, split or column.
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
        except Exception as error:  # the library passes on errors of pyarrow, fsspec and its HTTP client
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
        # Undecoded: all sources share one decoder, with its orientation, 16 bits and CMYK.
        self._rows = dataset.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, number: int) -> str:
        return f"{number:08d}"

    def version(self) -> str:
        return str(self._rows._fingerprint)

    def open(self, number: int) -> IO[bytes]:
        return BytesIO(self.read(number))

    def read(self, number: int) -> bytes:
        stored = self._rows[number][self._column]
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise ValueError("the row holds no image")
        return Path(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"]


def _load_dataset(identity: str, split: str) -> "datasets.Dataset":
    from datasets import Dataset, load_dataset, load_from_disk

    path, wanted = Path(identity), split or "train"
    if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(identity)
        if isinstance(saved, Dataset):
            if split not in ("", name := str(saved.split or "train")):
                raise ValueError(f"it was saved as the single split {name}: leave {split} out")
            return saved
        if wanted not in saved:
            raise ValueError(f"there is no split {wanted}; there are {', '.join(map(str, saved))}")
        return saved[wanted]
    if path.is_dir():
        return load_dataset(str(path.resolve()), split=wanted)
    if path.suffix == ".parquet":
        return load_dataset("parquet", data_files=str(path.resolve(strict=True)), split=wanted)
    if path.is_file() or path.is_absolute() or identity.startswith((".", "~")) or identity.count("/") > 1:
        raise ValueError("there is no such folder or .parquet file, and a hub id is NAME or OWNER/NAME")
    return load_dataset(identity, split=wanted)
