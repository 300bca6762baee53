"""Reading and writing pictures: any file Pillow opens becomes 8-bit RGB; folders, zips, tensors in [0, 1]."""

import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# Damaged input makes Pillow and zipfile raise almost anything.
_DAMAGE = (Exception,)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"cannot read picture {name}: {reason.splitlines()[0]}") from error


def open_picture(file: str | Path | IO[bytes], *, name: str | None = None) -> Image.Image:
    """The picture in `file` as 8-bit RGB, turned upright by its EXIF orientation.

    Grey, palette and CMYK pictures are converted; 16-bit grey is divided by 257 (65535 -> 255). Alpha is
    dropped, not composited: the colour stored under transparent pixels is kept. Of an animation, the first
    frame is read.

    Args:
        file: path or binary stream.
        name: what errors call the picture; None: the path or the stream's own name.

    Raises:
        ValueError: the file is missing, truncated, not a picture, or has float pixels (no agreed range).
    """
    with _naming(name or str(getattr(file, "name", file))), Image.open(file) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion of 16 bits clips at 255
        return Image.fromarray(np.uint8(np.rint(np.clip(np.asarray(image), 0, 65535) / 257))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB is the same, with a warning
        image = image.convert("RGBA")
    return image.convert("RGB")


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
class Picture:
    """A picture that can be opened when needed.

    Attributes:
        name: path inside the folder or zip it came from, with "/"; the file's name for a single file.
        source: the file, or the zip that holds it as member `name`.
    """

    name: str
    source: Path | Archive

    def __str__(self) -> str:
        return f"{self.source.path}:{self.name}" if isinstance(self.source, Archive) else str(self.source)

    def file(self) -> Path | BytesIO:
        """What Pillow can open: the path, or the bytes out of the zip. Errors as in `open_picture`."""
        if not isinstance(self.source, Archive):
            return self.source
        with _naming(str(self)):
            return BytesIO(self.source.handle().read(self.name))

    def open(self) -> Image.Image:
        """See `open_picture`, errors included."""
        return open_picture(self.file(), name=str(self))

    def check(self) -> None:
        """Read the header only, which is quick and misses truncation; errors as in `open_picture`."""
        with _naming(str(self)):
            if not isinstance(self.source, Archive):
                Image.open(self.source).close()
                return
            with self.source.handle().open(self.name) as stream:
                Image.open(stream).close()


@dataclass(frozen=True)
class Decoded:
    """A picture kept in memory, at 4 bytes a pixel as Pillow does; opens like a `Picture`."""

    name: str
    image: Image.Image

    def open(self) -> Image.Image:
        return self.image


def list_pictures(source: str | Path) -> list[Picture]:
    """All pictures of a folder of any depth, of a zip, or the one in a single file, sorted by name.

    Folders and zips are searched for the endings in `SUFFIXES`, in any case; hidden ones are left out.

    Raises:
        ValueError: `source` does not exist, is a broken zip, or holds no picture.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}; give a folder of pictures, a zip or a single picture")
    if path.is_dir():
        files = (Path(folder, file) for folder, _, names in os.walk(path, followlinks=True) for file in names)
        pictures = [Picture(file.relative_to(path).as_posix(), file) for file in files]
    elif path.suffix.lower() == ".zip":
        archive = Archive(path)
        try:
            pictures = [Picture(name, archive) for name in archive.handle().namelist()]
        except Exception as error:  # a damaged table of contents makes zipfile raise almost anything
            raise ValueError(f"cannot read zip {path}: {error}") from error
    else:
        return [Picture(path.name, path)]
    pictures = sorted((picture for picture in pictures if _is_picture(picture.name)), key=lambda found: found.name)
    if not pictures:
        raise ValueError(f"no pictures in {path}: looked at any depth for files ending in {', '.join(SUFFIXES)}")
    return pictures


def stems(pictures: Sequence[Picture]) -> list[str]:
    """How pictures are called beside their results and masks: the path in the folder or zip, without the suffix.

    A folder that holds all of a zip does not count, and no name is absolute.
    """
    top = top_folder(pictures) if pictures else ""
    return [str(PurePosixPath(picture.name.removeprefix(top).lstrip("/")).with_suffix("")) for picture in pictures]


def by_stem(pictures: Sequence[Picture], *, where: str | Path, what: str = "pictures") -> dict[str, Picture]:
    """Pictures by their names as in `stems`.

    Raises:
        ValueError: two have one name; the message begins with `where` they are and `what`.
    """
    named: dict[str, Picture] = {}
    for name, picture in zip(stems(pictures), pictures, strict=True):
        other = named.setdefault(name, picture)
        if other is not picture:
            raise ValueError(
                f"{where} has two {what} called {name}, {other.name} and {picture.name}: rename or remove one"
            )
    return named


def top_folder(pictures: Sequence[Picture]) -> str:
    """The folder, with its "/", in which all that a zip holds lies; empty for a folder, which is at its top already."""
    tops = {picture.name.partition("/")[0] for picture in pictures if "/" in picture.name}
    at_top = any("/" not in picture.name for picture in pictures)
    if not isinstance(pictures[0].source, Archive) or at_top or len(tops) != 1 or "" in tops:
        return ""
    return f"{tops.pop()}/"


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def find_readable(pictures: Sequence[Picture], *, decode: bool = False) -> tuple[list[Picture | Decoded], list[str]]:
    """(the readable pictures in their order, the names of the others).

    Looks at headers alone, which is quick; `decode` reads and keeps the pixels, and so also finds truncation.
    """

    def attempt(picture: Picture) -> Picture | Decoded | None:
        try:
            if decode:
                return Decoded(picture.name, picture.open())
            picture.check()
        except ValueError:
            return None
        return picture

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, pictures))
    bad = [str(picture) for picture, result in zip(pictures, found, strict=True) if result is None]
    return [result for result in found if result is not None], bad


def open_readable(pictures: Sequence[Picture | Decoded], index: int, *, strict: bool) -> tuple[str, Image.Image]:
    """Name and pixels of picture `index`, or with a warning of the next one that can be decoded.

    Raises:
        ValueError: the picture is damaged and `strict`, or all are damaged.
    """
    for picture in (pictures[(index + skipped) % len(pictures)] for skipped in range(len(pictures))):
        try:
            return picture.name, picture.open()
        except ValueError as error:
            if strict:
                raise
            warnings.warn(f"{error}; the next picture of the list takes its place", stacklevel=2)
    raise ValueError(f"none of {len(pictures)} pictures can be decoded, for example {pictures[index]}")


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (3,H,W) float32 in [0, 1]; value v of 8 bits becomes v / 255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def to_uint8(image: Tensor) -> Image.Image:
    """(3,H,W) in [0, 1] as an 8-bit RGB picture: clamped, times 255, rounded once (ties to even)."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def blank(image: Tensor, hole: Tensor) -> Image.Image:
    """The image (3,H,W) in [0,1] with its hole (1,H,W) in mid-grey, 0.5."""
    return to_uint8(torch.lerp(image, torch.full_like(image, 0.5), hole))
