"""Tars, LMDB and Hugging Face datasets equal a folder of the same images, at any position, in any process."""

import os
import pickle
import shlex
import socket
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from rad.cli import main as cli
from rad.cli.sample.options import read_options
from rad.cli.sample.plan import Label, make_plan
from rad.data.module import ImageDataModule
from rad.evaluation.layout import by_name
from rad.images.sources import ImageFile, Listing, absolute, list_images, stems
from rad.masks.shapes import make
from rad.rng import key, key_of
from tests.conftest import SIZE, box_hole, random_image

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("tar", "pattern", "lmdb", "hf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in two folders: JPEG, PNG of 8 and 16 bits, one that its EXIF data turns, several sizes."""
    noise = np.random.default_rng(0)
    root = tmp_path / "images"
    for number in range(10):
        file = root / f"s-{number // 5}" / f"{number:02d}.{'jpg' if number % 3 else 'png'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (20 + number, 28 - number, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 4 else 1
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if number == 3 else pixels)
        image.save(file, exif=exif)
    return root


def write_tar(file: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return file


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for name, value in values.items():
            transaction.put(name, value)
    return folder


def write_rows(folder: Path, files: Sequence[dict | None], **columns: list) -> Path:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), **{name: datasets.Value("int64") for name in columns}})
    datasets.Dataset.from_dict({"image": list(files), **columns}, features=kinds).save_to_disk(str(folder))
    return folder


def stored(image: ImageFile) -> bytes:
    """The file of an image in an archive."""
    file = image.file()
    assert isinstance(file, BytesIO)
    return file.getvalue()


def plain_rows(count: int, colour: int = 0) -> list[dict | None]:
    files = [BytesIO() for _ in range(count)]
    for number, file in enumerate(files):
        Image.new("RGB", (4, 4), (colour, number, 0)).save(file, "PNG")
    return [{"bytes": file.getvalue(), "path": None} for file in files]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder of any depth, by their names, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def convert(tmp_path: Path) -> Callable[[Path, str], str]:
    """The same images as another kind of source."""

    def write(folder: Path, kind: str) -> str:
        files = contents(folder)
        where = tmp_path / kind
        if kind == "lmdb":
            return str(write_lmdb(where, {name.encode(): data for name, data in files.items()}))
        if kind == "hf":
            return f"hf:{write_rows(where, [{'bytes': data, 'path': None} for data in files.values()])}"
        where.mkdir()
        for shard in ("s-0", "s-1"):
            inside = {name.partition("/")[2]: data for name, data in files.items() if name.startswith(shard)}
            inside = dict(reversed(inside.items())) | {"00.cls": b"7", "notes.txt": b"no image"}
            write_tar(where / f"{shard}.tar", inside)
        return str(where if kind == "tar" else where / "s-{0..1}.tar")

    return write


def load(path: str | Path | list[str], **settings: object) -> ImageDataModule:
    defaults: dict = {"size": 8, "val_count": 0, "batch_size": 2, "crop": "random_scale", "flip": True}
    data = ImageDataModule(path if isinstance(path, list) else str(path), **(defaults | settings))
    data.setup("fit")
    return data


def shown(batches: Sequence[dict]) -> list[tuple[int, str, bytes]]:
    """Position, name and pixels of every sample."""
    return [
        (int(position), name, image.numpy().tobytes())
        for batch in batches
        for position, name, image in zip(batch["position"], batch["name"], batch["image"], strict=True)
    ]


# every kind


@pytest.mark.spread(2)
@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_those_of_the_folder_with_workers_too(folder: Path, convert: Callable, kind: str) -> None:
    source = convert(folder, kind)
    settings = {"val_count": 0 if kind == "hf" else 3, "masks": make("box"), "seed": 4}
    plain, other = load(folder, **settings), load(source, **settings, num_workers=2)
    other.train_images[0].open()  # the handle is open before the workers are forked
    for loader in (ImageDataModule.train_dataloader, ImageDataModule.val_dataloader):
        here, there = list(loader(plain)), list(loader(other))
        assert len(here) == len(there)
        for expected, batch in zip(here, there, strict=True):
            assert kind == "hf" or expected["name"] == batch["name"]
            assert all(torch.equal(expected[field], batch[field]) for field in ("image", "position", "hole"))
    assert len(plain.val_images) == len(other.val_images) == settings["val_count"]
    assert kind == "hf" or other.state_dict() == plain.state_dict()  # rows have numbers for names


@pytest.mark.parametrize("kind", KINDS)
def test_listings_are_sequences_that_can_be_pickled_and_forked(folder: Path, convert: Callable, kind: str) -> None:
    listed = list_images(convert(folder, kind))
    files = [(folder / name).read_bytes() for name in contents(folder)]
    assert isinstance(listed, Listing)
    assert [stored(image) for image in listed] == files
    again = pickle.loads(pickle.dumps(listed))
    assert [stored(image) for image in again] == files
    assert listed[-1] == listed[9] == list(listed)[9] == listed[2:][7]
    assert len({image.name for image in listed}) == len(set(listed)) == 10
    with pytest.raises(IndexError):
        listed[10]
    child = os.fork()
    if child == 0:
        equal = False
        try:
            equal = [stored(image) for image in listed] == files
        finally:
            os._exit(0 if equal else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert stored(listed[3]) == files[3]


@pytest.mark.parametrize("kind", KINDS)
def test_any_position_is_reached_in_the_middle_of_an_epoch(folder: Path, convert: Callable, kind: str) -> None:
    source = convert(folder, kind)
    whole, resumed = load(source), load(source, num_workers=2)
    stream = whole.train_dataloader().dataset
    everything = [stream[position] for position in range(17)]
    state = {"position": 7, "batches": 0, "images": whole.state_dict()["images"]}
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    rest = shown(list(resumed.train_dataloader()))
    assert [position for position, _, _ in rest] == list(range(7, 17))
    assert rest == [(at["position"], at["name"], at["image"].numpy().tobytes()) for at in everything[7:]]
    epoch = {at["name"] for at in everything[:7]} | {name for position, name, _ in rest if position < 10}
    assert len(epoch) == 10, "an epoch across the resume shows every image once"


class Recorder(LightningModule):
    """Trains one number and records its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, str, bytes]] = []

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        self.seen += shown([batch])
        return (self.weight - batch["image"].mean()) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_checkpoint_resumes_exactly_over_two_sources(folder: Path, convert: Callable, tmp_path: Path) -> None:
    sources = [convert(folder, "lmdb"), convert(folder, "pattern"), str(folder / "s-0")]
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    quiet: dict = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"use_distributed_sampler": False, "max_steps": 15, "default_root_dir": tmp_path, **quiet}
    whole, rest = Recorder(), Recorder()
    Trainer(callbacks=[keep], **settings).fit(whole, load(sources))
    Trainer(enable_checkpointing=False, **settings).fit(
        rest, load(sources, num_workers=2), ckpt_path=tmp_path / "step=7.ckpt", weights_only=True
    )
    assert rest.seen == whole.seen[14:]
    names = sorted(name for _, name, _ in whole.seen[:25])
    assert names == sorted([*2 * list(contents(folder)), *contents(folder / "s-0")])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_are_met_when_they_are_read(folder: Path, convert: Callable, kind: str) -> None:
    (folder / "s-0" / "02.jpg").write_bytes(b"no image")
    source = convert(folder, kind)
    name = "00000002" if kind == "hf" else "s-0/02.jpg"
    data = load(source, seed=1)
    assert len(data.train_images) == 10, "nothing is opened before it is needed"
    with pytest.warns(UserWarning, match=f"{name}: not an image; the next image"):
        seen = shown(list(data.train_dataloader()))
    assert len({name for _, name, _ in seen}) == 9
    with pytest.raises(ValueError, match=f"cannot read image .*{name}: not an image"):
        list(load(source, strict=True).train_dataloader())
    with pytest.warns(UserWarning, match=f"1 of 10 images cannot be read: .*{name}"):
        kept = load(source, in_memory=True)
    assert len(kept.train_images) == 9
    with pytest.raises(ValueError, match=f"{name}"):
        load(source, in_memory=True, strict=True)


def test_the_command_line_takes_the_names(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ImageDataModule, "data")
    for text, path in (
        ("x-{0000..0099}.tar", "x-{0000..0099}.tar"),
        ("hf:owner/name:train[:10%]:image", "hf:owner/name:train[:10%]:image"),
        ("https://host/x-{0..9}.tar?sig=a%20b", "https://host/x-{0..9}.tar?sig=a%20b"),
        ('["x-{0..9}.tar", "hf:a/b"]', ["x-{0..9}.tar", "hf:a/b"]),
    ):
        assert parser.parse_args(["--data.path", text]).data.path == path
    page = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("rad train ")]
    assert len(commands) == 4
    for _, command, option, config, *words in commands:
        assert (command, option) == ("train", "--config")
        assert (ROOT / "configs" / config).is_file()
        assert parser.parse_args(words).data.path == words[1]
    assert absolute("hf:owner/name") == "hf:owner/name"
    assert Path(absolute("x-{0..9}.tar")) == Path.cwd() / "x-{0..9}.tar"


def test_the_key_of_many_parts_is_the_key() -> None:
    for parts in ((), (3,), ("a'b",), (3, "a", "\udcff"), tuple(range(20))):
        assert key_of(iter(parts)) == key(*parts)


# tars


def test_a_tar_is_searched_for_images_as_a_folder_is(tmp_path: Path) -> None:
    names = ["./b.png", "a/deep.JPG", "../../up.png", "/abs.png", "._b.png", ".git/x.png", "x.json", "é" * 90 + ".png"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(write_tar(tmp_path / "one.v2.tar", {name: b"data" for name in names}, form), "a") as tar:
            for name, kind in (
                ("link.png", tarfile.SYMTYPE),
                ("hard.png", tarfile.LNKTYPE),
                ("d.png", tarfile.DIRTYPE),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "b.png"
                tar.addfile(info)
        listed = [image.name for image in list_images(tmp_path / "one.v2.tar")]
        assert listed == [f"one.v2/{name}" for name in ("/abs.png", "a/deep.JPG", "b.png", "é" * 90 + ".png")]


def test_patterns_and_folders_of_tars_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for shard in ("t-008", "t-009", "t-010", "t-9", "t-10"):
        write_tar(tmp_path / f"{shard}.tar", {"b.png": b"", "a.png": b""})
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / ".hidden.tar").write_bytes(b"")

    def named(source: str) -> list[str]:
        return [image.name for image in list_images(tmp_path / source)]

    assert named("t-{008..010}.tar") == [f"t-{n}/{m}.png" for n in ("008", "009", "010") for m in "ab"]
    assert named("t-{9..10}.tar") == ["t-10/a.png", "t-10/b.png", "t-9/a.png", "t-9/b.png"]
    assert named(".") == [f"{shard}/{m}.png" for shard in ("t-008", "t-009", "t-010", "t-10", "t-9") for m in "ab"]
    for folder in ("0", "1"):
        (tmp_path / "deep" / folder).mkdir(parents=True)
        write_tar(tmp_path / "deep" / folder / "x.tar", {"a.png": b""})
    assert named("deep/{0..1}/x.tar") == named("deep") == ["0/x/a.png", "1/x/a.png"]
    (tmp_path / "deep" / "one.png").write_bytes(b"")
    assert named("deep") == ["one.png"], "a folder with images is a folder of images"
    for source, message in (("t-{7..10}.tar", r"no such shard: .*t-7\.tar"), ("t-{10..9}.tar", "counts down")):
        with pytest.raises(ValueError, match=message):
            named(source)


def test_tars_that_cannot_be_read_at_random_are_refused(tmp_path: Path) -> None:
    for form in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"a.tar.{form}", f"w:{form}") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    for name in ("a.tar", "a.tar.bz2", "a.tar.xz"):
        with pytest.raises(ValueError, match=rf"cannot read tar .*{name}: it is compressed.* unpack"):
            list_images(tmp_path / name)
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    (tmp_path / "none.tar").write_bytes(b"")
    write_tar(tmp_path / "text.tar", {"a.txt": b"", "b.json": b""})
    for name, message in (("junk", "cannot read tar"), ("none", "cannot read tar"), ("text", "no images in")):
        with pytest.raises(ValueError, match=f"{message} .*{name}.tar: "):
            list_images(tmp_path / f"{name}.tar")


def test_of_a_damaged_tar_the_whole_images_are_used(tmp_path: Path) -> None:
    images = {f"{number}.png": bytes([number]) * 700 for number in range(3)}
    whole = write_tar(tmp_path / "a.tar", images).read_bytes()
    step = 512 + 1024  # a header and 700 bytes in two blocks
    spoilt = whole[: 2 * step] + b"\xff" + whole[2 * step + 1 :]
    for damaged, left in (
        (whole[: 2 * step + 600], 2),  # within the third image
        (whole[: 2 * step + 512 + 699], 2),
        (whole[: 2 * step + 100], 2),  # within its header
        (whole[: 2 * step], 2),  # after the second, without the mark of an end
        (spoilt, 2),
        (whole[: 2 * step + 512 + 700], 3),
    ):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.warns(UserWarning, match=rf"a\.tar .*(cut off|damaged).* its {left} whole images"):
            listed = list_images(tmp_path / "a.tar")
        assert [stored(image) for image in listed] == list(images.values())[:left]
    (tmp_path / "a.tar").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"a\.tar .*no whole image is left"):
        list_images(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(whole)
    listed = list_images(tmp_path / "a.tar")
    os.truncate(tmp_path / "a.tar", 2 * step + 600)  # after it was listed
    assert stored(listed[1]) == images["1.png"]
    with pytest.raises(ValueError, match=r"a\.tar:a/2\.png: the tar ends 612 bytes before"):
        listed[2].file()


def test_more_shards_than_may_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rad.images.tars._OPEN_SHARDS", 2)
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", {"a.png": bytes([number])})
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    listed = list_images(tmp_path)
    assert [stored(image) for image in [*listed, *listed]] == [bytes([n]) for n in range(5)] * 2
    if before:
        assert len(os.listdir("/proc/self/fd")) == before + 2
        del listed
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_million_images_are_no_million_objects(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number:06d}.png": b"" for number in range(2000)})
    load(tmp_path / "a.tar", val_count=10)
    tracemalloc.start()
    data = load(tmp_path / "a.tar", val_count=10)
    data.state_dict()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.train_images) == 1990
    assert kept < 2000 * 60, (
        "10 bytes of a name, 24 of its places, 8 of its number after holding out, and some to spare"
    )


# sampling


def test_names_cannot_leave_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = ["../../up.png", str(tmp_path / "stolen.png"), "a/../../b.png", "/c.png", "ok.png"]
    for tar in ("in-0.tar", "in-1.tar", "mask-0.tar", "mask-1.tar"):
        write_tar(tmp_path / tar, dict.fromkeys(bad, b"data"))
    (tmp_path / "...tar").write_bytes((tmp_path / "in-0.tar").read_bytes())
    write_lmdb(
        tmp_path / "db", dict.fromkeys([*map(str.encode, bad), b"\xff\x00", b"x/", b"a.1", b"a.2", b"."], b"data")
    )
    write_rows(tmp_path / "deep" / "rows", plain_rows(2))
    pattern = str(tmp_path / "mask-{0..1}.tar")
    sources = (("in-0.tar", 3), ("in-{0..1}.tar", 6), ("...tar", 3), ("db", 10), ("hf:deep/rows:train", 2))
    for source, count in sources:
        words = (
            f"--checkpoint any --image {source} --mask {pattern} hf:deep/rows --mask_channel alpha --output out".split()
        )
        cells = make_plan(read_options(words), [Label.of("mean")])
        files = [file for cell in cells for job in cell.jobs for file in job.files]
        assert len(files) == 4 * count, source
        assert all(file.resolve().is_relative_to(tmp_path / "out") for file in files)
    assert "ok" in stems(list_images("in-0.tar"))
    assert {"in-0/ok", "in-1/ok"} <= set(stems(list_images("in-{0..1}.tar")))
    assert {"ok", "a.1", "a.2", "ff00", b"../../up.png".hex()} <= set(stems(list_images("db")))


def test_images_and_masks_out_of_tars_and_lmdb(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    hole = (255 * box_hole(SIZE, SIZE, 4, 4, 10, 12)[0]).byte().numpy()
    for number in range(2):
        for name, image in (("in", random_image(SIZE, SIZE, seed=number)), ("masks", Image.fromarray(hole))):
            file = Path(name, "top", f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    write_tar(Path("in.tar"), contents(Path("in")))
    write_tar(Path("masks-0.tar"), contents(Path("masks/top")))
    write_lmdb(Path("masks_lmdb"), {name.encode(): data for name, data in contents(Path("masks/top")).items()})

    def run(image: str, mask: str, output: str) -> dict[str, bytes]:
        words = ["--checkpoint", str(adapter), "--steps", "1", "--image", image, "--mask", mask, "--output", output]
        assert cli.sample(words) == 0, capsys.readouterr().err
        return contents(Path(output))

    expected = run("in/top", "masks/top", "out")
    assert list(expected) == ["0.png", "1.png"]
    assert run("in.tar", "masks-{0..0}.tar", "other") == expected
    assert run("in/top", "masks_lmdb", "third") == expected
    assert list(by_name("in.tar")) == ["0", "1"], "as references are called"


# LMDB


def test_keys_of_any_form_have_names(tmp_path: Path) -> None:
    image = BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(image, "WEBP", lossless=True)
    keys = [b"4b1f", b"\x00\x01", "é/1".encode(), b".hidden", b"a\nb", b"Z"]
    listed = list_images(write_lmdb(tmp_path / "db", dict.fromkeys(keys, image.getvalue())))
    assert [original.name for original in listed] == ["0001", b".hidden".hex(), "4b1f", "Z", b"a\nb".hex(), "é/1"]
    assert all(original.open().getpixel((0, 0)) == (9, 8, 7) for original in listed)


def test_a_broken_lmdb_is_an_error_and_no_crash(tmp_path: Path) -> None:
    file = write_lmdb(tmp_path / "db", {b"%d" % number: bytes(9000) for number in range(9)}) / "data.mdb"
    whole = file.read_bytes()
    file.unlink()
    for content, message in (
        (whole[: len(whole) // 2], r"data\.mdb is cut off: \d+ of \d+ bytes"),
        (b"junk" * 5000, "cannot read LMDB .*db: "),
        (b"", "cannot read LMDB .*db: "),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list_images(tmp_path / "db")
        file.unlink()
    with pytest.raises(ValueError, match=r"no images in .*empty"):
        list_images(write_lmdb(tmp_path / "empty", {}))


@pytest.mark.parametrize(("package", "source"), [("lmdb", "db"), ("datasets", "hf:any")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, source: str) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    extra = "hf" if package == "datasets" else "lmdb"
    with pytest.raises(
        ValueError,
        match=rf"^[^\n]*package {package}, which is not installed: pip install -e '\.\[{extra}\]' in [^\n]*$",
    ):
        list_images(source)


# datasets


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library writes below the test's folder, and nothing can connect."""

    def refuse(*_: object) -> None:
        raise AssertionError("a network call")

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def first_colours(source: str) -> list[tuple]:
    return [image.open().getpixel((0, 0)) for image in list_images(source)]  # type: ignore[misc]


@pytest.mark.usefixtures("cached")
def test_splits_and_columns_of_local_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    kinds = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "label": datasets.Value("int64")})
    two = datasets.Dataset.from_dict({"a": plain_rows(2, 1), "b": plain_rows(2, 2), "label": [0, 1]}, features=kinds)
    splits = {"train": two.remove_columns("b"), "extra": two.remove_columns("a")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    two.save_to_disk(str(tmp_path / "single"))
    Path("shards").mkdir()
    splits["train"].to_parquet("shards/train-0.parquet")
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('a script was run')")
    first, second = [(1, 0, 0), (1, 1, 0)], [(2, 0, 0), (2, 1, 0)]
    for source, colours in (
        ("saved", first),
        ("saved:extra", second),
        ("saved:extra:b", second),
        ("single::b", second),
        ("shards", first),
        ("shards:train[1:]", first[1:]),
        ("shards/train-0.parquet:train:a", first),
    ):
        assert first_colours(f"hf:{source}") == colours, source
        assert first_colours(f"hf:{tmp_path}/{source}") == colours, source
    for source, message in (
        ("saved:test", "no split test; there are train, extra"),
        ("single", "2 columns of images among a, b, label"),
        ("single:other", "single split"),
        ("saved:train:b", "b is no column of images; there are a, label"),
        ("saved:train:label", "label is no column of images"),
        ("shards:test", 'Unknown split "test"'),
        ("shards/none.parquet", "No such file"),
        ("script", "scripts are no longer supported"),
        ("./nowhere", "there is no such folder"),
        ("a:b:c:d", "hf:ID:SPLIT:COLUMN"),
        (":train", "hf:ID:SPLIT:COLUMN"),
        ("owner/name", "Couldn't reach 'owner/name' on the Hub"),
    ):
        with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
            list_images(f"hf:{source}")


@pytest.mark.usefixtures("cached")
def test_rows_are_files_undecoded(tmp_path: Path) -> None:
    turned, exif, pixels = BytesIO(), Image.Exif(), np.arange(24, dtype=np.uint16).reshape(4, 6) * 2570
    exif[0x0112] = 6
    Image.fromarray(pixels).save(turned, "PNG", exif=exif)
    rows = write_rows(tmp_path / "rows", [{"bytes": turned.getvalue(), "path": "other.png"}, None], label=[0, 1])
    files = tmp_path / "files"  # of which the library keeps the paths alone
    files.mkdir()
    for name in ("a.png", "b.png"):
        (files / name).write_bytes(turned.getvalue())
    inside, none = list_images(f"hf:{rows}")
    beside, gone = list_images(f"hf:{files}")
    (files / "b.png").unlink()
    upright = np.dstack([np.rot90(pixels // 257, -1)] * 3)
    assert np.array_equal(inside.open(), upright)
    assert np.array_equal(beside.open(), upright)
    for image, message in ((gone, "No such file"), (none, "holds no image")):
        with pytest.raises(ValueError, match=f"cannot read image hf:.*:00000001: .*{message}"):
            image.open()
