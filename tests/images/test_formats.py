"""Only images are opened, by content, in the formats of `FORMATS`; pixels are read whatever their texts are."""

import os
import socket
import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad.images import list_images, open_image, to_rgb
from rad.images.formats import FORMATS, SUFFIXES
from tests.conftest import random_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


def png(pixels: np.ndarray, before: dict[bytes, bytes] | None = None, after: dict[bytes, bytes] | None = None) -> bytes:
    """A grey or RGB PNG of 8 or 16 bits with further chunks before and after the pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    bits, colour = 8 * pixels.dtype.itemsize, 0 if pixels.ndim == 2 else 2
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        *(before or {}).items(),
        (b"IDAT", zlib.compress(rows)),
        *(after or {}).items(),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    "text",
    [
        {b"zTXt": b"note\0\0" + zlib.compress(bytes(1 << 21))},
        {b"iTXt": b"note\0\1\0\0\0" + zlib.compress(b"a" * (1 << 21))},
        {b"tEXt": b"note\0" + b"a" * (1 << 21)},
    ],
    ids=lambda text: next(iter(text)).decode(),
)
def test_large_texts_of_a_png_are_ignored(tmp_path: Path, text: dict[bytes, bytes], place: str) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(PIXELS, **{place: text}))
    assert np.array_equal(open_image(file), PIXELS)
    assert np.array_equal(open_image(BytesIO(file.read_bytes())), PIXELS)
    (image,) = list_images(file)
    image.check()
    file.write_bytes(png(PIXELS, **{place: text})[:-40] if place == "after" else png(PIXELS, before=text)[:-60])
    if place == "before":
        with pytest.raises(ValueError, match="cannot read image"):
            open_image(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (EPS, "an EPS or PostScript file"),
        (b"%PDF-1.7\n", "a PDF file"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"<html><body>not found</body></html>", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC .* convert it to PNG or JPEG"),
        (b"", "an empty file"),
        (b"plain text", "not an image"),
    ],
)
def test_other_files_are_refused_by_content(tmp_path: Path, content: bytes, message: str, monkeypatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    file = tmp_path / "a.png"
    file.write_bytes(content)
    for source in (file, BytesIO(content)):
        with pytest.raises(ValueError, match=f"^cannot read image [^\n]*: [^\n]*{message}[^\n]*$"):
            open_image(source)
    with pytest.raises(ValueError, match=message):
        list_images(tmp_path)[0].check()


def test_every_ending_is_listed_and_read_by_content(tmp_path: Path) -> None:
    Image.init()
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES if suffix in known} <= {*FORMATS, "MPO"}
    image = random_image(16, 16)
    for number, suffix in enumerate(SUFFIXES):
        image.save(tmp_path / f"{number:02d}{suffix.upper() if number % 2 else suffix}", "PNG")
    listed = list_images(tmp_path)
    assert len(listed) == len(SUFFIXES)
    assert all(np.array_equal(each.open(), image) for each in listed)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_under_a_wrong_name(tmp_path: Path, form: str) -> None:
    Image.init()
    image = Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8))
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    image.save(tmp_path / "a.png", form)
    assert np.abs(np.asarray(open_image(tmp_path / "a.png")).astype(int) - np.asarray(image)).max() <= 8


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".png", ".tif", ".webp", ".mpo"):
        file = tmp_path / f"a{suffix}"
        frames[0].save(
            file, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == ".webp" else {})
        )
        assert open_image(file).getpixel((4, 4)) in ((255, 0, 0), (254, 0, 0)), suffix


def within(seconds: float, run) -> object:
    """The result of `run`, or its error; a test fails where it waits longer."""
    result: list = []

    def attempt() -> None:
        try:
            result.append(run())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it waits"
    return result[0]


def test_pipes_sockets_and_devices_are_not_opened(tmp_path: Path) -> None:
    random_image(8, 8).save(tmp_path / "a.png")
    for name in ("pipe.png", "pipe.zip", "pipe.tar"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        with pytest.warns(UserWarning, match=r"left out of .*: 5 pipes, sockets or devices$"):
            assert [image.name for image in within(20, lambda: list_images(tmp_path))] == ["a.png"]
        for name in ("pipe.png", "pipe.zip", "pipe.tar", "device.png", "s.png"):
            error = within(20, lambda name=name: list_images(tmp_path / name))
            assert isinstance(error, ValueError)
            assert "is a pipe, socket or device" in str(error)
        error = within(20, lambda: open_image(tmp_path / "pipe.png"))
        assert "a pipe, socket or device" in str(error)


def test_plain_images_keep_every_value(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(PIXELS, {b"gAMA": struct.pack(">I", 45455), b"sRGB": b"\0"}))
    image = open_image(file)
    assert np.array_equal(image, PIXELS)
    assert image.info == to_rgb(Image.fromarray(PIXELS)).info == {}
