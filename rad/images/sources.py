"""Where images come from: files, folders, zips, tars, LMDB, Hugging Face datasets; found, named and opened."""

import os
import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
from PIL import Image

from rad.images.archives import TARS, Database, Numbered, Rows, Tars, expand
from rad.images.codecs import _naming, open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


class Archive:
    """A zip read at random, without extracting it; picklable.

    The handle is opened on first use, once in each process: one inherited by a forked loader worker would
    share its offset in the file with the parent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: zipfile.ZipFile | None = None
        self._process = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_handle": None, "_process": -1}

    def handle(self) -> zipfile.ZipFile:
        if self._handle is None or self._process != os.getpid():
            self._handle, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._handle


@dataclass(frozen=True)
class ImageFile:
    """An image that can be opened when needed.

    Attributes:
        name: path inside the folder or archive it came from, with "/"; the file's name for a single file.
        source: the file, the zip that holds it as member `name`, or an archive that holds it as number `number`.
        number: in an archive that goes by numbers.
    """

    name: str
    source: Path | Archive | Numbered
    number: int = 0

    def __str__(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else f"{self.source.path}:{self.name}"

    def file(self) -> Path | BytesIO:
        """What Pillow can open: the path, or the bytes out of the archive. Errors as in `open_image`.

        A member of a zip is refused unread if it is larger than the largest image that Pillow opens, at 8 bytes a pixel.
        """
        if isinstance(self.source, Path):
            return self.source
        with _naming(str(self)):
            if not isinstance(self.source, Archive):
                return BytesIO(self.source.read(self.number))
            size, most = self.source.handle().getinfo(self.name).file_size, Image.MAX_IMAGE_PIXELS
            if most is not None and size > 2 * 8 * most:
                raise ValueError(
                    f"it unpacks to {size / 1e6:.0f} MB, more than an image of {2 * most / 1e6:.0f} megapixels has"
                )
            return BytesIO(self.source.handle().read(self.name))

    def open(self) -> Image.Image:
        """See `open_image`, errors included."""
        return open_image(self.file(), name=str(self))

    def check(self) -> None:
        """Read the header only, which is quick and misses truncation; errors as in `open_image`."""
        if isinstance(self.source, Archive):
            with _naming(str(self)), self.source.handle().open(self.name) as stream:
                Image.open(stream).close()
            return
        file = self.file()
        with _naming(str(self)):
            Image.open(file).close()


@dataclass(frozen=True)
class Decoded:
    """An image kept in memory, at 4 bytes a pixel as Pillow does; opens like a `ImageFile`."""

    name: str
    image: Image.Image

    def open(self) -> Image.Image:
        return self.image


class Listing(Sequence[ImageFile]):
    """The images of an archive that goes by numbers; a `ImageFile` is made when it is asked for, and not kept."""

    def __init__(self, source: Numbered) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageFile]: ...
    def __getitem__(self, index: int | slice) -> ImageFile | Sequence[ImageFile]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        return ImageFile(self.source.name(number), self.source, number)


class Gathered(Sequence[ImageFile | Decoded]):
    """Several sequences of images one after another, or the `chosen` of them by number; nothing is copied."""

    def __init__(self, parts: Sequence[Sequence[ImageFile | Decoded]], chosen: np.ndarray | None = None) -> None:
        self.parts, self.chosen = parts, chosen
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> ImageFile | Decoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageFile | Decoded]: ...
    def __getitem__(self, index: int | slice) -> ImageFile | Decoded | Sequence[ImageFile | Decoded]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        number = number if self.chosen is None else int(self.chosen[number])
        part = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[part][number - int(self.ends[part])]  # counted from the end of the part


def list_images(source: str | Path) -> Sequence[ImageFile]:
    """All images of a folder of any depth, of an archive, or the one in a single file, sorted by name.

    Folders, zips and tars are searched for the endings in `SUFFIXES`, in any case; hidden ones are left out. A folder
    without images may hold tars instead. Tars, LMDB and datasets give a `Listing`, see `rad.images.archives`.

    Args:
        source: folder, folder of an LMDB, .zip, .tar, tars as SHARD-{0000..0099}.tar, "hf:ID:SPLIT:COLUMN", or a file.

    Raises:
        ValueError: `source` does not exist, is broken, holds no image, or needs a package that is not installed.
    """
    path = Path(source)
    if str(source).startswith("hf:"):
        return _number(Rows(str(source)))
    if not path.exists() and (shards := expand(str(source))):
        return _number(Tars(str(source), shards, wanted=_is_image))
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}; give a folder of images, an archive or a single image")
    if (path / "data.mdb").is_file():
        return _number(Database(path))
    if path.is_dir():
        files = [Path(folder, file) for folder, _, names in os.walk(path, followlinks=True) for file in names]
        images = [ImageFile(file.relative_to(path).as_posix(), file) for file in files]
        tars = [file for file in files if file.name.lower().endswith(TARS)]
        tars = [file for file in tars if not _is_hidden(file.relative_to(path).as_posix())]
        if tars and not any(_is_image(image.name) for image in images):
            return _number(Tars(str(path), tars, wanted=_is_image))
    elif path.name.lower().endswith(TARS):
        return _number(Tars(str(path), [path], wanted=_is_image))
    elif path.suffix.lower() == ".zip":
        archive = Archive(path)
        try:
            images = [ImageFile(name, archive) for name in archive.handle().namelist()]
        except Exception as error:  # a damaged table of contents makes zipfile raise almost anything
            raise ValueError(f"cannot read zip {path}: {error}") from error
    else:
        return [ImageFile(path.name, path)]
    images = sorted((image for image in images if _is_image(image.name)), key=lambda found: found.name)
    if not images:
        raise ValueError(f"no images in {path}: looked at any depth for files ending in {', '.join(SUFFIXES)}")
    return images


def _number(source: Numbered) -> Listing:
    if not len(source):
        looked = f": looked for members ending in {', '.join(SUFFIXES)}" if isinstance(source, Tars) else ""
        raise ValueError(f"no images in {source.path}{looked}")
    return Listing(source)


def is_source(source: str | Path) -> bool:
    """Whether `list_images` could read it: something that exists, a pattern of tars that do, or a dataset."""
    return str(source).startswith("hf:") or Path(source).exists() or bool(expand(str(source)))


def absolute(source: str | Path) -> str:
    """The same source, called so from any working folder; a dataset as it is."""
    return str(source) if str(source).startswith("hf:") else str(Path(source).resolve())


def holds_one(source: str | Path) -> bool:
    """Whether it is the file of a single image."""
    return Path(source).is_file() and not str(source).lower().endswith((".zip", *TARS))


def stems(images: Sequence[ImageFile]) -> list[str]:
    """How images are called beside their results and masks: the path in the folder or zip, without the suffix.

    A folder that holds all of a zip or tar does not count, and no name is absolute. The keys of an LMDB stay whole, unless
    they end like files of images.
    """
    top = top_folder(images) if images else ""
    return [_stem(image, top) for image in images]


def _stem(image: ImageFile, top: str) -> str:
    name = image.name.removeprefix(top).lstrip("/")
    whole = isinstance(image.source, Database) and not name.lower().endswith(SUFFIXES)
    return name if whole else str(PurePosixPath(name).with_suffix(""))


def by_stem(images: Sequence[ImageFile], *, where: str | Path, what: str = "images") -> dict[str, ImageFile]:
    """Images by their names as in `stems`.

    Raises:
        ValueError: two have one name; the message begins with `where` they are and `what`.
    """
    named: dict[str, ImageFile] = {}
    for name, image in zip(stems(images), images, strict=True):
        other = named.setdefault(name, image)
        if other is not image:
            raise ValueError(
                f"{where} has two {what} called {name}, {other.name} and {image.name}: rename or remove one"
            )
    return named


def top_folder(images: Sequence[ImageFile]) -> str:
    """The folder, with its "/", in which all that a zip holds lies; empty for a folder, which is at its top already.

    In a single tar it comes after the tar's own name.
    """
    source, names = images[0].source, [image.name for image in images]
    if isinstance(source, Tars):
        shard = _top(names)
        return shard and shard + _top([name.removeprefix(shard) for name in names])
    return _top(names) if isinstance(source, Archive) else ""


def _top(names: Sequence[str]) -> str:
    tops = {name.partition("/")[0] for name in names if "/" in name}
    at_top = any("/" not in name for name in names)
    return "" if at_top or len(tops) != 1 or "" in tops else f"{tops.pop()}/"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def find_readable(images: Sequence[ImageFile], *, decode: bool = False) -> tuple[list[ImageFile | Decoded], list[str]]:
    """(the readable images in their order, the names of the others).

    Looks at headers alone, which is quick; `decode` reads and keeps the pixels, and so also finds truncation.
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
        found = list(pool.map(attempt, images))
    bad = [str(image) for image, result in zip(images, found, strict=True) if result is None]
    return [result for result in found if result is not None], bad


def open_readable(images: Sequence[ImageFile | Decoded], index: int, *, strict: bool) -> tuple[str, Image.Image]:
    """Name and pixels of image `index`, or with a warning of the next one that can be decoded.

    Raises:
        ValueError: the image is damaged and `strict`, or all are damaged.
    """
    for image in (images[(index + skipped) % len(images)] for skipped in range(len(images))):
        try:
            return image.name, image.open()
        except ValueError as error:
            if strict:
                raise
            warnings.warn(f"{error}; the next image of the list takes its place", stacklevel=2)
    raise ValueError(f"none of {len(images)} images can be decoded, for example {images[index]}")
