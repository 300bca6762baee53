"""Remote zips, tars and folders give the stream of the local files; lost connections stop the run, and no image is skipped."""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from rad.cli.train.errors import explain
from rad.data.module import ImageDataModule
from rad.images import remote
from rad.images.remote import RangeFile, Remote, Unreachable, is_remote
from rad.images.sources import Listing, list_images
from tests.images.test_sources import contents, load, shown, stored, write_tar

KINDS = ("zip", "tar", "shards", "folder")


class Ranges(SimpleHTTPRequestHandler):
    """Serves files with ranges of bytes. It counts requests, and fails as often as `failures` says."""

    requests: list[tuple[str, str | None]]
    failures: int
    ignores_ranges: bool

    def do_GET(self) -> None:
        place, given = Path(self.translate_path(self.path)), self.headers["Range"]
        self.requests.append((self.path, given))
        if self.fails():
            return
        if place.is_dir() or given is None or not place.is_file() or self.ignores_ranges:
            super().do_GET()
            return
        first, last = (int(text) for text in given.removeprefix("bytes=").split("-"))
        data = place.read_bytes()
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self) -> None:
        if not self.fails():
            super().do_HEAD()

    def fails(self) -> bool:
        if type(self).failures == 0:
            return False
        type(self).failures -= 1
        self.send_error(503)
        return True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in two folders below served/photos, of several sizes, one with a space in its name."""
    noise = np.random.default_rng(0)
    root = tmp_path / "served" / "photos"
    for number in range(10):
        file = root / f"s-{number // 5}" / (f"{number:02d}.png" if number != 3 else "03 b.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20 + number, 28 - number, 3), dtype=np.uint8)).save(file)
    return root


@pytest.fixture
def local(folder: Path) -> dict[str, str]:
    """The same images as local sources of each kind, below served/."""
    served = folder.parent
    shutil.make_archive(str(served / "photos"), "zip", folder)
    for shard in ("s-0", "s-1"):
        inside = {name.partition("/")[2]: data for name, data in contents(folder).items() if name.startswith(shard)}
        write_tar(served / f"{shard}.tar", dict(reversed(inside.items())) | {"00.cls": b"7"})
    write_tar(served / "all.tar", contents(folder))
    names = {"zip": "photos.zip", "tar": "all.tar", "shards": "s-{0..1}.tar", "folder": "photos"}
    return {kind: str(served / name) for kind, name in names.items()}


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Ranges]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    handler = type("Handler", (Ranges,), {"requests": [], "failures": 0, "ignores_ranges": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder.parent))) as running:
        handler.address = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
        Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield handler
        running.shutdown()


def url(server: type[Ranges], source: str) -> str:
    return f"{server.address}/{Path(source).name}"  # type: ignore[attr-defined]


def with_password(address: str) -> str:
    return address.replace("://", "://me:secret@")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_is_that_of_the_local_copy_from_any_position(
    server: type[Ranges], local: dict[str, str], kind: str
) -> None:
    """Weights, held-out images, workers and a resume in the middle included."""
    pytest.importorskip("aiohttp")
    paths = [local[kind], local["zip"]]
    settings = {"val_count": 3, "weights": [2, 1], "seed": 3}
    here = load(paths, **settings)
    there = load([url(server, path) for path in paths], **settings, num_workers=2)
    there.train_images[0].open()  # the connection is open before the workers are forked
    for loader in (ImageDataModule.train_dataloader, ImageDataModule.val_dataloader):
        assert shown(list(loader(there))) == shown(list(loader(here)))
    assert there.state_dict() == here.state_dict()
    assert there.settings()["content_hash"] == here.settings()["content_hash"]
    state = {"position": 7, "batches": 0, "images": here.state_dict()["images"]}
    for data in (here, there):
        data.load_state_dict(state)
    resumed = shown(list(there.train_dataloader()))
    assert resumed[0][0] == 7
    assert resumed == shown(list(here.train_dataloader()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_scheme_of_fsspec_reads(local: dict[str, str], kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, top = Path(local[kind]), f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").put(str(source.parent), f"/{tmp_path.name}", recursive=True)
    listed, expected = list_images(f"{top}/{source.name}"), list_images(source)
    assert [image.name for image in listed] == [image.name for image in expected]
    assert all(a.open().tobytes() == b.open().tobytes() for a, b in zip(listed, expected, strict=True))


def test_an_image_takes_one_request_of_its_size(server: type[Ranges], local: dict[str, str]) -> None:
    for kind in KINDS:
        listed = list_images(url(server, local[kind]))
        assert isinstance(listed, Listing)
        size = len(stored(listed[5]))
        server.requests.clear()
        stored(listed[5])
        assert len(server.requests) == 1, kind
        if kind != "folder":
            first, last = (int(text) for text in str(server.requests[0][1]).removeprefix("bytes=").split("-"))
            assert last + 1 - first < size + 400, kind


def test_the_index_of_a_tar_is_kept_until_the_tar_changes(
    server: type[Ranges], local: dict[str, str], tmp_path: Path
) -> None:
    source = url(server, local["tar"])
    names = [image.name for image in list_images(source)]
    server.requests.clear()
    assert [image.name for image in list_images(source)] == names
    assert not any(given for _, given in server.requests), "headers are not read again"
    (kept,) = (tmp_path / "cache" / "rad" / "tars").glob("*.npz")
    whole = kept.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + bytes(40) + whole[140:], b""):
        kept.write_bytes(damaged)
        assert [image.name for image in list_images(source)] == names
        assert kept.read_bytes() == whole
    os.truncate(local["tar"], 8192)
    with pytest.warns(UserWarning, match="cut off"):
        assert len(list_images(source)) < 10
    with pytest.warns(UserWarning, match="cut off"):
        list_images(source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_connection_is_retried_then_stops_the_run(
    server: type[Ranges], local: dict[str, str], kind: str
) -> None:
    here, there = load(local[kind]), load(url(server, local[kind]))
    server.failures = 2  # as often as there are pauses
    assert shown(list(there.train_dataloader())) == shown(list(here.train_dataloader()))
    server.failures = 10_000
    with pytest.raises(Unreachable, match=r"cannot read http://127.*after 3 attempts: .*503.*resume the run"):
        list(there.train_dataloader())
    with pytest.raises(ValueError, match="cannot read http://127"):
        list_images(url(server, local[kind]))


def test_errors_name_the_source_and_the_way_out(server: type[Ranges], local: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*/absent\.zip: .*Check the address"):
        list_images(url(server, "absent.zip"))
    with pytest.raises(ValueError, match=r"cannot read .*/s-2\.tar"):
        list_images(url(server, "s-{0..2}.tar"))
    for folder in ("memory://nothing/here", url(server, "nothing/")):
        with pytest.raises(ValueError, match=r"cannot read \S+nothing\S*: .*Check the address"):
            list_images(folder)
    with pytest.raises(ValueError, match=r"absent\.zip: ClientResponseError: 404"):  # not fsspec's FileNotFoundError
        list_images(url(server, "absent.zip"))
    server.failures = 10_000
    for place in ("signed.tar", "signed.zip", "signed"):  # an error quotes the URL in another form
        with pytest.raises(ValueError, match="503") as caught:
            list_images(url(server, place) + "?X-Credential=a%2Fsecret%2Bb&X-Signature=secret")
        assert "secret" not in str(caught.value)
        with pytest.raises(ValueError, match=f"cannot read http://127.*{place}") as caught:
            list_images(with_password(url(server, place)))
        assert "secret" not in str(caught.value)
    server.failures = 0
    with pytest.raises(ValueError, match=r"known are s3, gs, https, hf"):
        list_images("nonsense://a/b.zip")
    (Path(local["zip"]).parent / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"cannot read zip http.*broken\.zip: File is not a zip file"):
        list_images(url(server, "broken.zip"))
    server.ignores_ranges = True
    with pytest.raises(ValueError, match="the server ignores ranges of bytes"):
        list_images(url(server, local["zip"]))
    signed = Remote("https://host/a/train.tar?sig=secret")
    assert str(signed) == "https://host/a/train.tar"
    assert signed.path.as_posix() == "/host/a/train.tar"
    assert signed.child("b.png").url == "https://host/a/train.tar/b.png?sig=secret"
    private = Remote("https://me:secret@host/a/b@2.png?sig=secret")
    assert str(private) == "https://host/a/b@2.png"
    assert private.parent.url == "https://me:secret@host/a?sig=secret"
    assert private.parent.child("c.png").url == "https://me:secret@host/a/c.png?sig=secret"


def test_records_and_cards_hold_no_signature(server: type[Ranges], local: dict[str, str]) -> None:
    from rad.training.export.card import _data_name

    signed = with_password(url(server, local["zip"])) + "?X-Signature=secret"
    module = load(signed)
    assert "secret" not in str(module.settings())
    for source in (*local.values(), str(Path(local["folder"], "s-1", "07.png"))):
        listing = list_images(with_password(f"{url(server, '')}{Path(source).relative_to(Path(local['zip']).parent)}"))
        listing[0].open()
        assert "secret" not in f"{listing[0]} {listing[0].name}"
    assert _data_name(signed) == Path(local["zip"]).name


def test_an_unreachable_server_ends_a_run_with_one_line() -> None:
    assert explain(Unreachable("cannot read X")) == "cannot read X"
    worker = "Caught Unreachable in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert explain(Unreachable(f"{worker}rad.images.remote.Unreachable: cannot read X: 404")) == "cannot read X: 404"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "url_to_fs", missing)
    with pytest.raises(ValueError, match=r"^s3://b/x\.zip needs a package .*Install s3fs to access S3.*\[remote\]"):
        list_images("s3://b/x.zip")


def test_urls_are_no_local_paths_and_no_datasets() -> None:
    assert all(map(is_remote, ("s3://b/k.zip", "hf://datasets/a/b/c.tar", "memory://x", "https://h/a.zip")))
    assert not any(map(is_remote, ("hf:owner/name:train", "C:\\photos", "photos", "a//b", Path("s3://b"))))


def test_a_range_file_reads_as_the_file(tmp_path: Path) -> None:
    data = torch.arange(997).to(torch.uint8).numpy().tobytes()
    (tmp_path / "data").write_bytes(data)
    file, plain = RangeFile.of(Remote(f"file://{tmp_path}/data"), ahead=50), open(tmp_path / "data", "rb")  # noqa: SIM115
    with plain:
        for offset, whence, size in ((5, 0, 10), (3, 1, 100), (-20, 2, 7), (0, 0, -1), (2000, 0, 4), (-990, 2, 30)):
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(size) == plain.read(size)
            assert file.tell() == plain.tell()
