"""Image sources: files, folders, zips, tars (local or remote), LMDB, Hugging Face datasets; listed, named and opened."""

import warnings
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar, overload
from unicodedata import normalize

import numpy as np
from PIL import Image

from rad.images.archives import Database, Reader, RemoteFolder, Rows, Zip
from rad.images.codecs import check_samples, naming_errors, open_image
from rad.images.formats import SUFFIXES, Choice, open_file, walk
from rad.images.remote import Remote, Unreachable, is_remote
from rad.images.tars import TARS, Tars, expand, expand_names, is_pattern

_ORIENTATION = 0x0112  # tag of EXIF; values of 5 to 8 swap the sides


@dataclass(frozen=True)
class ImageFile:
    """An image that is opened on demand.

    Attributes:
        name: path inside the folder or archive, with "/"; the file's name for a single file.
        source: the file, or the archive.
        number: of the image in the archive.
    """

    name: str
    source: Path | Reader
    number: int = 0

    def __str__(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else f"{self.source.path}:{self.name}"

    def file(self) -> Path | BytesIO:
        """The path, or the bytes in the archive, for Pillow. Errors as in `open_image`."""
        if isinstance(self.source, Path):
            return self.source
        with naming_errors(str(self)):
            return BytesIO(self.source.read(self.number))

    def open(self) -> Image.Image:
        """See `open_image`, errors included."""
        return open_image(self.file(), name=str(self))

    def size(self) -> tuple[int, int]:
        """Width and height, upright by the EXIF data of the header. Reads only the header; errors as in `open_image`."""
        with naming_errors(str(self)):
            if isinstance(self.source, Path):
                return _upright_size(self.source)
            with self.source.open(self.number) as stream:
                return _upright_size(stream)

    def check(self) -> None:
        """Read the header only, which is quick and misses truncation; errors as in `open_image`."""
        if isinstance(self.source, Zip):
            with naming_errors(str(self)), self.source.open(self.number) as stream, open_file(stream) as image:
                check_samples(image)
            return
        file = self.file()
        with naming_errors(str(self)), open_file(file) as image:
            check_samples(image)


@dataclass(frozen=True)
class Decoded:
    """An image in memory, at 4 bytes a pixel in Pillow; opens like an `ImageFile`."""

    name: str
    image: Image.Image

    def open(self) -> Image.Image:
        return self.image

    def size(self) -> tuple[int, int]:
        return self.image.size


def _upright_size(file: Path | IO[bytes]) -> tuple[int, int]:
    with open_file(file) as image:
        width, height = image.size
        # A PNG with EXIF data behind its pixels would be decoded to find them.
        turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(_ORIENTATION, 1) >= 5
        return (height, width) if turned else (width, height)


Item = TypeVar("Item", bound=ImageFile | Decoded, covariant=True)


class _Numbered(Sequence[Item]):
    """A sequence whose items are created by number, and not kept."""

    @abstractmethod
    def _get(self, number: int) -> Item: ...

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        numbers = range(len(self))[index]
        return self._get(numbers) if isinstance(numbers, int) else [self._get(number) for number in numbers]


class Listing(_Numbered[ImageFile]):
    """The images of an archive."""

    def __init__(self, source: Reader) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def _get(self, number: int) -> ImageFile:
        return ImageFile(self.source.name(number), self.source, number)


class Gathered(_Numbered[ImageFile | Decoded]):
    """Several sequences of images one after another, or the `chosen` of them by number; nothing is copied."""

    def __init__(self, parts: Sequence[Sequence[ImageFile | Decoded]], chosen: np.ndarray | None = None) -> None:
        self.parts, self.chosen = parts, chosen
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.chosen is None else len(self.chosen)

    def _get(self, number: int) -> ImageFile | Decoded:
        number = number if self.chosen is None else int(self.chosen[number])
        part = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[part][number - int(self.ends[part])]  # counted from the end of the part


def list_images(source: str | Path) -> Sequence[ImageFile]:
    """All images of a folder of any depth or of an archive, sorted by name; or a single file.

    Folders, zips and tars are searched for the endings in `SUFFIXES`, in any case; hidden files are ignored. Links are followed
    as in `rad.images.formats.walk`. One warning counts images of other kinds, such as .heic. A folder without images may hold
    tars instead. Tars, LMDB and datasets give a `Listing`.

    Args:
        source: folder, folder of an LMDB, .zip, .tar, tars as SHARD-{0000..0099}.tar, "hf:ID:SPLIT:COLUMN", or a file;
            or the URL of a folder, zip, tar, tars or file, such as s3://BUCKET/train.zip. All images of a URL are a `Listing`.

    Raises ValueError if `source` does not exist, is broken, holds no image, needs a missing package, or cannot be reached.
    """
    path, name = Path(source), str(source)
    if is_remote(name):
        try:
            return _list_remote(Remote(name))
        except Unreachable as error:
            raise ValueError(str(error)) from error
    if name.startswith("hf:"):
        return _list(Rows(name))
    if not path.exists():
        if shards := expand(name):
            return _list_tars(name, shards)
        raise ValueError(f"no such file or folder: {path}; give a folder of images, an archive or a single image")
    if (path / "data.mdb").is_file():
        return _list(Database(path))
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{path} is a pipe, socket or device: give a folder of images, an archive or a single image")
    choice = Choice()
    if path.is_dir():
        files, left_out = walk(path)
        images = [ImageFile(name, files[name]) for name in sorted(filter(choice, files))]
        tars = [file for name, file in files.items() if name.lower().endswith(TARS)]
        if tars and not images:
            return _list_tars(str(path), tars)
        if left_out:
            warnings.warn(f"left out of {path}: {left_out}", stacklevel=2)
    elif name.lower().endswith(TARS):
        return _list_tars(name, [path])
    elif path.suffix.lower() == ".zip":
        images = list(Listing(Zip(path, wanted=choice)))
    else:
        return [ImageFile(path.name, path)]
    choice.warn(path, images)
    if not images:
        raise ValueError(f"no images in {path}: looked at any depth for files ending in {', '.join(SUFFIXES)}")
    return images


def _list_remote(source: Remote) -> Listing:
    choice, ending = Choice(), source.path.name.lower()
    is_folder = str(source).endswith("/")
    if ending.endswith(TARS) and not is_folder:
        return _list_tars(str(source), [Remote(url) for url in expand_names(source.url)])
    if is_pattern(str(source)):
        raise ValueError(f"{source}: a range names tars: end it in .tar, or give the folder")
    if ending.endswith(".zip") and not is_folder:
        listing = Listing(Zip(source, wanted=choice))
    elif ending.endswith(SUFFIXES) and not is_folder:
        source.info()  # is it there?
        return Listing(RemoteFolder(source.parent, [str(source).rpartition("/")[2]], wanted=lambda _: True))
    else:
        names = source.files()
        listing = Listing(RemoteFolder(source, names, wanted=choice))
        tars = [source.child(name) for name in names if name.lower().endswith(TARS)]
        if tars and not len(listing):
            return _list_tars(str(source), tars)
    choice.warn(str(source), listing if choice.unread else [])
    if not len(listing):
        raise ValueError(f"no images in {source}: looked at any depth for files ending in {', '.join(SUFFIXES)}")
    return listing


def _list_tars(source: str, shards: Sequence[Path | Remote]) -> Listing:
    choice = Choice()
    listing = _list(Tars(source, shards, wanted=choice))
    choice.warn(source, listing if choice.unread else [])
    return listing


def _list(source: Reader) -> Listing:
    if not len(source):
        looked = f": looked for members ending in {', '.join(SUFFIXES)}" if isinstance(source, Tars) else ""
        raise ValueError(f"no images in {source.path}{looked}")
    return Listing(source)


def is_source(source: str | Path) -> bool:
    """Whether `list_images` could read it: an existing path, a pattern of existing tars, a URL, or a dataset."""
    return is_remote(source) or str(source).startswith("hf:") or Path(source).exists() or bool(expand(str(source)))


def absolute(source: str | Path) -> str:
    """The source as an absolute path; a URL or dataset unchanged."""
    return str(source) if is_remote(source) or str(source).startswith("hf:") else str(Path(source).resolve())


def holds_one(source: str | Path) -> bool:
    """Whether it is the file of a single image."""
    return Path(source).is_file() and not str(source).lower().endswith((".zip", *TARS))


def stems(images: Sequence[ImageFile]) -> list[str]:
    """Names that relate images to results and masks: the relative path in the folder or archive, without the suffix.

    A top folder that holds all of a zip or tar is left out. LMDB keys keep endings that are no image suffix.
    """
    top = top_folder(images) if images else ""
    return [_stem(image, top) for image in images]


def _stem(image: ImageFile, top: str) -> str:
    name = image.name.removeprefix(top).lstrip("/")
    whole = isinstance(image.source, Database) and not name.lower().endswith(SUFFIXES)
    return name if whole else str(PurePosixPath(name).with_suffix(""))


def by_stem(images: Sequence[ImageFile], *, where: str | Path, what: str = "images") -> dict[str, ImageFile]:
    """Images by `stems`. Raises ValueError for two of one name; the message names `where` and `what` they are."""
    named: dict[str, ImageFile] = {}
    for name, image in zip(stems(images), images, strict=True):
        other = named.setdefault(name, image)
        if other is not image:
            raise ValueError(
                f"{where} has two {what} called {name}, {other.name} and {image.name}: rename or remove one"
            )
    return named


def top_folder(images: Sequence[ImageFile]) -> str:
    """The folder, with its "/", that holds all images of a zip or a single tar (after the tar's name); "" for none."""
    source, names = images[0].source, [image.name for image in images]
    if isinstance(source, Tars):
        shard = _top(names)
        return shard and shard + _top([name.removeprefix(shard) for name in names])
    return _top(names) if isinstance(source, Zip) else ""


def _top(names: Sequence[str]) -> str:
    tops = {name.partition("/")[0] for name in names if "/" in name}
    at_top = any("/" not in name for name in names)
    return "" if at_top or len(tops) != 1 or "" in tops else f"{tops.pop()}/"


def match_names(named: Mapping[str, ImageFile], names: Sequence[str]) -> list[ImageFile | None]:
    """The image of `named` for each name; None for none.

    An exact name comes first. The others match in another Unicode form (NFC, as macOS writes NFD) or another case, if exactly
    one name on either side does.
    """
    result = {name: named[name] for name in names if name in named}
    for form in (partial(normalize, "NFC"), lambda name: normalize("NFC", name).casefold()):
        free, missing = defaultdict(list), defaultdict(list)
        for name in named.keys() - result.keys():
            free[form(name)].append(name)
        for name in names:
            if name not in result:
                missing[form(name)].append(name)
        for key, (name, *others) in missing.items():
            if not others and len(free[key]) == 1:
                result[name] = named[free[key][0]]
    return [result.get(name) for name in names]


def find_readable(images: Sequence[ImageFile], *, decode: bool = False) -> tuple[list[ImageFile | Decoded], list[str]]:
    """The readable images in order, and the names of the others.

    Reads only headers, which is quick; `decode` reads and keeps the pixels, and also detects truncation.
    """

    def attempt(image: ImageFile) -> ImageFile | Decoded | None:
        try:
            if decode:
                return Decoded(image.name, image.open())
            image.check()
        except ValueError:
            return None
        return image

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, images))
    bad = [str(image) for image, result in zip(images, results, strict=True) if result is None]
    return [result for result in results if result is not None], bad


def open_readable(images: Sequence[ImageFile | Decoded], index: int, *, strict: bool) -> tuple[str, Image.Image]:
    """Name and pixels of image `index`; if damaged, of the next readable image, with a warning.

    Raises ValueError if the image is damaged and `strict`, or all are damaged.
    """
    for image in (images[(index + skipped) % len(images)] for skipped in range(len(images))):
        try:
            return image.name, image.open()
        except ValueError as error:
            if strict:
                raise
            warnings.warn(f"{error}; the next image of the list takes its place", stacklevel=2)
    raise ValueError(f"none of {len(images)} images can be decoded, for example {images[index]}")
