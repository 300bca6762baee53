"""Damaged and strange input of every kind, drawn by hypothesis. Allowed outcomes are a result or one line of error.

An attempt draws its input, tries it in an empty folder and returns an outcome: "result", "refused", or the exit code of a
command line. It raises for everything else: another exception, a traceback on stderr, an overwritten file, a hang.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import tarfile
import typing
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image, features
from safetensors.torch import load_file

from rad.cli import main as cli
from rad.cli.train.run import fit
from rad.diffusion.schedules import linear_betas
from rad.evaluation.run_log import read_run
from rad.images.codecs import open_image
from rad.images.sources import list_images
from rad.inpainting.inpainter import Inpainter
from rad.masks import MaskGenerator, Mixture
from rad.masks.files import read_mask
from rad.masks.perlin import Perlin, Pnoise
from rad.masks.reading.format import MaskChannel, MaskFormat, MaskResize, MaskWarning, Polarity
from rad.masks.sets import read_set, write_set
from rad.masks.shapes import MASKS, photos
from rad.methods import METHODS
from rad.methods.registry import create
from rad.models.base import load_base, save_base
from tests.adm_reference import Adm, random_state
from tests.conftest import SIZE, box_hole, make_adapter, random_image
from tests.tiny_networks import small_unet

PATIENCE = 300
"""Seconds after which an attempt counts as a hang; the longest attempts take a few."""


class Hang(BaseException):
    """Not an Exception, so no handler catches it."""


@dataclass(frozen=True)
class Place:
    """Folders of the attempts: `folder`, emptied before each attempt, and `models` with base, adapter and run.ckpt."""

    folder: Path
    models: Path


def make_place(root: Path) -> Place:
    """Write the small models; attempts change copies of them."""
    models = root / "models"
    save_base(models / "base", small_unet(size=SIZE), betas=linear_betas(), half=False)
    make_adapter(models / "adapter", models / "base", seed=1)
    adm = Adm(width=32, multipliers=(1, 2), blocks=1, attention=(1,), head_channels=32)
    torch.save(random_state(adm, seed=0), models / "adm.pt")
    (models / "images").mkdir()
    for number in range(3):
        random_image(SIZE, SIZE, seed=number).save(models / "images" / f"{number}.png")
    content = {
        "model": {
            "base": str(models / "base"),
            "lora": {"rank": 2, "alpha": 2},
            "optimizer": {"init_args": {"lr": 1e-4}},
        },
        "data": {"path": str(models / "images"), "val_count": 1, "size": SIZE, "batch_size": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "enable_progress_bar": False,
            "logger": False,
            "callbacks": [
                {"class_path": "rad.training.EMA", "init_args": {"decay": 0.9}},
                {"class_path": "rad.training.Checkpoint", "init_args": {"every_n_train_steps": 1}},
            ],
        },
    }
    (models / "c.yaml").write_text(yaml.safe_dump(content))
    with _inside(root):
        fit(["--config", str(models / "c.yaml"), "--name", "run"])
        shutil.copy("runs/run/checkpoints/step=1.ckpt", models / "run.ckpt")
    return Place(root / "work", models)


Attempt = Callable[[st.DataObject, Place], str]


def explore(attempt: Attempt, place: Place, counts: Counter[str], *, examples: int, seed: int = 0) -> None:
    """Run an attempt and count its outcomes in `counts`. The examples depend on the seed only.

    Raises for an outcome that is not allowed.
    """

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def run(data: st.DataObject) -> None:
        shutil.rmtree(place.folder, ignore_errors=True)
        place.folder.mkdir()
        with _inside(place.folder), _alarm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counts[attempt(data, place)] += 1

    run()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang(f"more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call: Callable[[], object]) -> str:
    """Return "result", or "refused" for a ValueError or FileNotFoundError of one line. Raises other errors, also subclasses."""
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        if type(error) not in (ValueError, FileNotFoundError):
            raise
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {error}") from error
        return "refused"
    return "result"


def command(call: Callable[[Sequence[str]], int], words: Sequence[object]) -> str:
    """Return "exit N" of a command line, after checking its stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call([str(word) for word in words])
        except SystemExit as stop:  # of --print_config
            code = stop.code
    output = err.getvalue()
    assert code in (0, 2, 3), f"exit code {code}: {output}"
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith(("error:", "failed:"))]
    assert bool(errors) == (code != 0), f"exit code {code}, {len(errors)} errors: {output}"
    return f"exit {code}"


# ---- strategies ----------------------------------------------------------------------------------

INTEGERS = st.integers(-3, 100)
HUGE = st.sampled_from([2**31, 2**31 - 1, 2**63, -(2**63), 10**6, 10**12, 10**30])
WORDS = st.text("ab1.-_=: é\n", max_size=6)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2), max_leaves=4
)


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """`content` with a few changes, most of them in the header."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        size = len(changed)
        at = data.draw(st.integers(0, min(size, 128)) | st.integers(0, size), "at")
        change = data.draw(st.sampled_from(("bit", "byte", "word", "insert", "drop", "cut")))
        if change == "cut":
            del changed[at:]
        elif change == "drop":
            del changed[at : at + data.draw(st.integers(1, 64))]
        elif change == "insert":
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif change == "word":
            word = data.draw(st.sampled_from((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1")))
            changed[at : at + 4] = word
        elif at < size:
            changed[at] = (
                changed[at] ^ 1 << data.draw(st.integers(0, 7)) if change == "bit" else data.draw(st.integers(0, 255))
            )
    return bytes(changed)


def edited(data: st.DataObject, content: Any, values: st.SearchStrategy[Any] = VALUES, skip: Sequence[str] = ()) -> Any:
    """A copy of nested dicts and lists with one entry replaced, removed, renamed or added, except keys in `skip`."""
    changed = json.loads(json.dumps(content))
    places = [place for place in _places(changed) if place[1] not in skip]
    holder, key = data.draw(st.sampled_from(places), "entry")
    change = data.draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "rename")))
    if change == "replace" or isinstance(holder, list):
        holder[key] = data.draw(values | _like(holder[key]) | _like(holder[key]))
    elif change == "add":
        holder[data.draw(WORDS)] = data.draw(values)
    else:
        value = holder.pop(key)
        if change == "rename":
            holder[data.draw(WORDS)] = value
    return changed


def _like(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return INTEGERS
    if isinstance(value, float):
        return st.floats(-1, 2) | st.floats()
    if isinstance(value, list) and value:
        return st.lists(_like(value[0]), max_size=4)
    return WORDS if isinstance(value, str) else SCALARS


def _places(content: Any) -> list[tuple[Any, Any]]:
    """(dict or list, key or index) of all entries at all depths."""
    if not isinstance(content, dict | list):
        return []
    entries = list(content.items() if isinstance(content, dict) else enumerate(content))
    return [(content, key) for key, _ in entries] + [place for _, value in entries for place in _places(value)]


def images() -> dict[str, bytes]:
    """Small images of every format and mode that `rad.images` reads, by file name."""
    colour = random_image(12, 9)
    grey, half = colour.convert("L"), colour.resize((12, 9))
    palette = colour.quantize(7)
    palette.info["transparency"] = 3
    deep = Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600)
    exif = Image.Exif()
    exif[0x0112] = 6
    variants: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("png", colour, {"exif": exif}),
        ("png", palette, {}),
        ("png", deep, {}),
        ("png", colour.convert("RGBA"), {}),
        ("jpg", colour, {"exif": exif}),
        ("jpg", grey, {"progressive": True}),
        ("jpg", colour.convert("CMYK"), {}),
        ("tif", colour, {}),
        ("tif", grey, {"compression": "tiff_lzw"}),
        ("tif", Image.fromarray(np.ones((9, 12), dtype=np.float32)), {}),
        ("gif", palette, {"save_all": True, "append_images": [half.quantize(3)]}),
        ("bmp", colour, {}),
        ("bmp", grey.convert("1"), {}),
        ("ppm", colour, {}),
        ("pgm", grey, {}),
    ]
    if features.check("webp"):
        variants += [("webp", colour, {}), ("webp", colour.convert("RGBA"), {"lossless": True, "exif": exif})]
    written: dict[str, bytes] = {}
    for number, (suffix, image, options) in enumerate(variants):
        stream = io.BytesIO()
        image.save(stream, format=Image.registered_extensions()[f".{suffix}"], **options)
        written[f"{number}.{suffix}"] = stream.getvalue()
    return written


IMAGES = images()


def draw_image(data: st.DataObject) -> tuple[str, bytes]:
    """Name and bytes of a damaged image, or random bytes."""
    name = data.draw(st.sampled_from(sorted(IMAGES)), "image")
    if data.draw(st.integers(0, 9)) == 0:
        return name, data.draw(st.binary(max_size=64))
    return name, damaged(data, IMAGES[name])


# ---- attempts ------------------------------------------------------------------------------------


def read_image(data: st.DataObject, place: Place) -> str:
    name, content = draw_image(data)
    Path(name).write_bytes(content)

    def call() -> None:
        image = open_image(name)
        assert image.mode == "RGB"
        assert min(image.size) > 0

    return outcome(call)


def read_hole(data: st.DataObject, place: Place) -> str:
    name, content = draw_image(data)
    Path(name).write_bytes(content)
    threshold = data.draw(st.none() | st.floats(0, 1))
    chosen = MaskFormat(
        polarity=data.draw(st.sampled_from(typing.get_args(Polarity))),
        channel=data.draw(st.sampled_from(typing.get_args(MaskChannel))),
        threshold=threshold,
        soft=threshold is None and data.draw(st.booleans()),
        resize=data.draw(st.sampled_from(typing.get_args(MaskResize))),
        dilate=data.draw(st.integers(0, 20)),
    )
    size = data.draw(st.sampled_from((None, (9, 12))))

    def call() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MaskWarning)
            hole = read_mask(name, chosen, size=size)
        assert hole.ndim == 3
        assert bool(((hole >= 0) & (hole <= 1)).all())

    return outcome(call)


def _of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type, valid or not."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return st.tuples(*map(_of_type, arguments))
    if arguments:
        return st.one_of(*map(_of_type, arguments))
    return {
        int: INTEGERS | HUGE,
        float: st.floats(-0.5, 1.5) | INTEGERS | st.floats(),
        bool: st.booleans(),
        type(None): st.none(),
    }[kind]


def draw_mask(data: st.DataObject, place: Place) -> str:
    kinds = (
        {type(make()) for make in MASKS.values()} | {Perlin, Pnoise} | {type(part.generator) for part in photos().parts}
    )
    kinds -= {Mixture}  # its settings are other generators
    kind = data.draw(st.sampled_from(sorted(kinds, key=lambda generator: generator.__name__)))
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    chosen = data.draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
    settings = {name: data.draw(_of_type(hints[name]), name) for name in chosen}
    height, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))

    def call() -> None:
        masks: MaskGenerator = kind(**settings)
        hole = masks([torch.Generator().manual_seed(0)], height, width)
        assert hole.shape == (1, 1, height, width)
        assert bool(((hole == 0) | (hole == 1)).all())

    return outcome(call)


def set_method(data: st.DataObject, place: Place) -> str:
    name = data.draw(st.sampled_from(sorted(METHODS)))
    keys = [field.name for field in fields(METHODS[name])]
    number = (INTEGERS | HUGE | st.floats()).map(str)
    text = number | WORDS | st.sampled_from(("true", "False", "1e400", "0x10", "1_0", "rad", "mean"))
    settings = data.draw(st.dictionaries(st.sampled_from(keys) if keys else WORDS, text, max_size=3))
    return outcome(lambda: create(name, settings))


def read_archive(data: st.DataObject, place: Place) -> str:
    """A zip or a tar, with member names that would escape its folder."""
    given = data.draw(
        st.lists(
            st.sampled_from(
                ("a.png", "../b.png", "/c.png", "d/e.PNG", "__MACOSX/f.png", ".g.png", "h.png/", "i\\j.png")
            ),
            max_size=3,
        )
    )
    path = Path(data.draw(st.sampled_from(("z.zip", "t.tar"))))
    if path.suffix == ".zip":
        method = data.draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in given:
                archive.writestr(zipfile.ZipInfo(name), IMAGES["0.png"])
    else:
        with tarfile.open(path, "w") as archive:
            for name in given:
                member = tarfile.TarInfo(name)
                member.size = len(IMAGES["0.png"])
                member.type = data.draw(st.sampled_from((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE)))
                member.linkname = "/etc/hostname"
                archive.addfile(member, io.BytesIO(IMAGES["0.png"]))
    path.write_bytes(damaged(data, path.read_bytes()))
    before = _files()
    files: list[Any] = []
    outcomes = {outcome(lambda: files.extend(list_images(path)))}
    outcomes |= {outcome(lambda file=file: (file.check(), file.open())) for file in files}
    assert _files() == before
    return "refused" if "refused" in outcomes else "result"


def read_records(data: st.DataObject, place: Place) -> str:
    """manifest.json of a mask set, or run.json of a comparison."""
    if data.draw(st.booleans()):
        write_set("set", "box", size=(8, 8), count=2, seed=0)
        path, read = Path("set/manifest.json"), lambda: read_set("set")
    else:
        path, read = Path("run.json"), lambda: read_run(Path())
        empty = {"runs": [{"command": "x", "environment": {}}], "options": {"seed": 0}, "model": {}, "masks": ["box"]}
        path.write_text(json.dumps({**empty, "mask_sources": {"box": {}}, "methods": ["rad"], "settings": {"rad": {}}}))
    if data.draw(st.booleans()):
        path.write_text(json.dumps(edited(data, json.loads(path.read_text()), VALUES | HUGE)))
    else:
        path.write_bytes(damaged(data, path.read_bytes()))
    return outcome(read)


def fill(inpainter: Inpainter, method: str) -> None:
    """One step on one image."""
    image = random_image(SIZE, SIZE)
    result = inpainter(image, box_hole(SIZE, SIZE, 4, 4, 12, 12), method=method, steps=1).images[0]
    assert np.array_equal(np.asarray(result)[:4], np.asarray(image)[:4])


def change_file(data: st.DataObject, folder: Path, *, removable: bool = True) -> None:
    """Edit, damage or remove a file of a model."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".bin"))
    path = data.draw(st.sampled_from(files), "file")
    change = data.draw(st.sampled_from(("edit", "edit", "edit", "damage", "remove")))
    if change == "edit" and path.suffix == ".json":
        path.write_text(json.dumps(edited(data, json.loads(path.read_text()), VALUES | HUGE)))
    elif change == "remove":
        path.unlink()
    else:
        path.write_bytes(damaged(data, path.read_bytes()))


def load_adapters(data: st.DataObject, place: Place) -> str:
    shutil.copytree(place.models / "adapter", "adapter")
    change_file(data, Path("adapter"))
    base = data.draw(st.sampled_from((place.models / "base", None)))
    return outcome(lambda: fill(Inpainter.from_pretrained("adapter", base=base, device="cpu"), "rad"))


def load_bases(data: st.DataObject, place: Place) -> str:
    if data.draw(st.integers(0, 3)) == 0:
        Path("adm.pt").write_bytes(damaged(data, (place.models / "adm.pt").read_bytes()))
        return outcome(lambda: load_base("adm.pt", image_size=SIZE, head_channels=32))
    shutil.copytree(place.models / "base", "base")
    if data.draw(st.integers(0, 3)) == 0:
        weights = Path("base/unet/diffusion_pytorch_model.safetensors")
        torch.save(load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
    change_file(data, Path("base"))
    return outcome(lambda: fill(Inpainter.from_pretrained("base", device="cpu"), "replacement"))


def sample_files(data: st.DataObject, place: Place) -> str:
    """sample.py on three images: one that exists in the output, one with a damaged image or mask, one valid."""
    hole = np.zeros((12, 9), np.uint8)
    hole[2:7, 3:8] = 255
    for folder, image in (("in", random_image(12, 9)), ("masks", Image.fromarray(hole))):
        Path(folder).mkdir()
        for name in ("a.png", "b.png", "c.png"):
            image.save(f"{folder}/{name}")
    broken = Path(data.draw(st.sampled_from(("in", "masks"))), "b.png")
    name, content = draw_image(data)
    broken.unlink()
    broken.with_suffix(data.draw(st.sampled_from((Path(name).suffix, ".png")))).write_bytes(content)
    sources = ["in", "masks"]
    if data.draw(st.booleans()):
        for number, folder in enumerate(sources):
            shutil.make_archive(folder, "zip", folder)
            sources[number] = f"{folder}.zip"
        if data.draw(st.booleans()):
            Path("in.zip").write_bytes(damaged(data, Path("in.zip").read_bytes()))
    Path("out").mkdir()
    random_image(12, 9).save("out/a.png")  # of an earlier run
    before = _files()
    words = ["--checkpoint", place.models / "adapter", "--image", sources[0], "--mask", sources[1], "--output", "out"]
    policy = data.draw(st.sampled_from(("crop", "resize")))
    code = command(cli.sample, [*words, "--steps", 1, "--size_policy", policy, "--device", "cpu"])
    after = _files()
    assert before.items() <= after.items(), "a file was overwritten"
    new = after.keys() - before.keys()
    assert all(path.startswith("out/") for path in new), new
    assert all(open_image(path).size for path in new)
    return code


def _files() -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def resume(data: st.DataObject, place: Place) -> str:
    whole = (place.models / "run.ckpt").read_bytes()
    Path("a.ckpt").write_bytes(damaged(data, whole) if data.draw(st.integers(0, 7)) else whole)
    before = _files()
    code = command(cli.train, ["--config", place.models / "c.yaml", "--name", "r", "--ckpt_path", "a.ckpt"])
    assert before.items() <= _files().items()
    return code


CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OF_PROCESSES = ("num_workers", "devices", "num_nodes", "strategy", "accelerator")
"""Settings that start processes."""


def parse_config(data: st.DataObject, place: Place) -> str:
    """A shipped configuration, unchanged or changed: read and validated only."""
    path = data.draw(st.sampled_from(sorted(CONFIGS.glob("*.yaml"))), "config")
    how = data.draw(st.integers(0, 4))
    if how == 0:
        Path("c.yaml").write_bytes(path.read_bytes())
    elif how > 1:
        changed = edited(data, yaml.safe_load(path.read_text()), VALUES | HUGE)
        Path("c.yaml").write_text(yaml.safe_dump(changed, allow_unicode=True))
    else:
        Path("c.yaml").write_bytes(damaged(data, path.read_bytes()))
    return command(cli.train, ["--config", "c.yaml", "--print_config"])


def train_config(data: st.DataObject, place: Place) -> str:
    """A changed configuration of a small model, trained for one step."""
    content = yaml.safe_load((place.models / "c.yaml").read_text())
    if data.draw(st.booleans()):
        unet = json.loads((place.models / "base" / "unet" / "config.json").read_text())
        own = {name: value for name, value in unet.items() if not name.startswith("_")}
        content["model"] = {"scratch": {"unet": own}, "process": {"kind": "uniform"}}
    Path("c.yaml").write_text(yaml.safe_dump(edited(data, content, VALUES, skip=OF_PROCESSES), allow_unicode=True))
    limits = ["--trainer.max_steps", 1, "--trainer.accelerator", "cpu", "--trainer.devices", 1, "--data.num_workers", 0]
    return command(cli.train, ["--config", "c.yaml", *limits])


KINDS: dict[str, tuple[Attempt, int]] = {
    "images": (read_image, 1),
    "masks": (read_hole, 1),
    "settings of masks": (draw_mask, 1),
    "settings of methods": (set_method, 1),
    "zips and tars": (read_archive, 1),
    "records": (read_records, 2),
    "adapters": (load_adapters, 5),
    "bases": (load_bases, 4),
    "sample.py": (sample_files, 10),
    "checkpoints": (resume, 10),
    "configurations, read": (parse_config, 8),
    "configurations, trained": (train_config, 8),
}
"""The attempt of each kind, and its duration relative to that of an image."""
