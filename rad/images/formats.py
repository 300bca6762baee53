"""Image formats: those that are read, the only door through which Pillow opens a file, and which names are of images.

The images of a folder or archive are chosen by ending; hidden files, pipes and repeated folders are left out.
"""

import os
import stat
import struct
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from rad.images.sources import ImageFile

FORMATS = (
    "PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "GIF", "PPM", "QOI", "PCX", "SGI", "TGA",
)  # fmt: skip
"""Pillow's names of the formats that are read, by content. None of them starts another program, as EPS does."""

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc",
    ".jpf", ".jpx", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".pcx", ".sgi", ".rgb",
    ".rgba", ".bw", ".tga", ".icb", ".vda", ".vst",
)  # fmt: skip
"""Endings of the images in a folder or archive, in lower case."""

UNREAD_SUFFIXES = (
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", ".jxr", ".wdp", ".hdp", ".psd", ".psb", ".xcf", ".kra", ".ora",
    ".eps", ".ai", ".svg", ".emf", ".wmf", ".exr", ".hdr", ".pfm", ".pam", ".dds", ".ico", ".icns", ".cur", ".ras", ".xbm",
    ".xpm", ".fit", ".fits", ".dcm", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".rw2",
    ".raf", ".pef", ".srw", ".rwl", ".3fr", ".iiq", ".x3f", ".erf", ".kdc", ".mrw",
)  # fmt: skip
"""Endings of images that cannot be read; a folder or archive with such files causes a warning."""

_KNOWN = (
    (b"%!PS", "an EPS or PostScript file"), (b"\xc5\xd0\xd3\xc6", "an EPS file"), (b"%PDF", "a PDF file"),
    (b"8BPS", "a Photoshop file"), (b"\xff\x0a", "a JPEG XL file"), (b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (b"version https://git-lfs", "a Git LFS pointer"), (b"<", "a text file (HTML, SVG or XML)"),
)  # fmt: skip

_TEXT = (b"tEXt", b"zTXt", b"iTXt")


def open_file(file: str | Path | IO[bytes]) -> Image.Image:
    """`Image.open` for `FORMATS` only; the pixels are decoded at their first use.

    Raises ValueError for a pipe or device, or UnidentifiedImageError for another format.
    """
    if isinstance(file, str | Path) and not stat.S_ISREG(mode := os.stat(file).st_mode) and not stat.S_ISDIR(mode):
        raise ValueError("a pipe, socket or device, not a file")
    Image.init()  # registers all formats; AVIF is missing in older versions of Pillow
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(_describe(file)) from error
    except ValueError as error:
        if not _is_text_limit(error):
            raise
        return Image.open(_without_text(file), formats=formats)


def read_file(file: str | Path | IO[bytes]) -> Image.Image:
    """The first frame of an image file as Pillow decodes it; `info` also has the entries of `_more_info`.

    Errors as in `open_file`, and those of Pillow's decoders.
    """
    if not isinstance(file, str | Path) and not file.seekable():
        file = BytesIO(file.read())
    try:
        image = _decoded(file)
    except ValueError as error:
        if not _is_text_limit(error):
            raise
        image = _decoded(_without_text(file))  # its texts lie behind the pixels
    image.info |= _more_info(image.format, _content(file, 1 << 16))
    return image


def _decoded(file: str | Path | IO[bytes]) -> Image.Image:
    with open_file(file) as image:
        image.load()
        return image


def _more_info(form: str | None, start: bytes) -> dict[str, object]:
    """What Pillow leaves out, from the start of a file.

    `bits`: of the samples of a PNG; `significant_bits`: the largest of its sBIT; `cicp`: primaries and transfer, two codes
    of ITU-T H.273, of the chunk cICP of a PNG or the box nclx of an AVIF.
    """
    if form == "AVIF":
        place = start.find(b"colrnclx") + 8
        return {"cicp": struct.unpack_from(">HH", start, place)} if 8 <= place <= len(start) - 4 else {}
    if form != "PNG":
        return {}
    more: dict[str, object] = {"bits": start[24]}
    for kind, begin, end in png_chunks(start):
        content = start[begin + 8 : end - 4]
        if kind == b"sBIT" and content:
            more["significant_bits"] = max(content)
        elif kind == b"cICP" and len(content) == 4:
            more["cicp"] = tuple(content[:2])
        elif kind == b"IDAT":
            break
    return more


def _describe(file: str | Path | IO[bytes]) -> str:
    prefix = _content(file, 24)
    if not prefix:
        return "an empty file"
    if prefix[4:8] == b"ftyp":
        return "a HEIC or video file, which is not supported: convert it to PNG or JPEG"
    for start, kind in _KNOWN:
        if prefix.startswith(start):
            return f"{kind}, not an image that can be read"
    return "not an image"


def _content(file: str | Path | IO[bytes], size: int = -1) -> bytes:
    if isinstance(file, str | Path):
        with open(file, "rb") as stream:
            return stream.read(size)
    file.seek(0)
    return file.read(size)


def _is_text_limit(error: ValueError) -> bool:
    """Whether Pillow refused a PNG for texts above its limits, PngImagePlugin.MAX_TEXT_CHUNK and MAX_TEXT_MEMORY."""
    return "MAX_TEXT" in str(error)


def _without_text(file: str | Path | IO[bytes]) -> IO[bytes]:
    """A PNG without its texts. Pillow's limits are settings of the whole process, so they stay unchanged."""
    data = _content(file)
    kept = [data[:8], *(data[start:end] for kind, start, end in png_chunks(data) if kind not in _TEXT)]
    return BytesIO(b"".join(kept))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each whole chunk of a PNG, with length and checksum; a cut tail is left out."""
    start = 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], start, end
        start = end


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
