"""Mask sets for evaluation: named, deterministic, hashed, with a manifest that identifies them.

FOLDER/000000.png, 000001.png ...   the masks, 8-bit grey, white = fill
FOLDER/manifest.json                generator, settings, size, count, seed, hash; pixel hash and share of each mask
FOLDER-overview.png                 contact sheet of the first 24, outside the folder: each PNG inside is a mask
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rad import __version__
from rad.images.atomic import remove_temporaries, replacing, write_text
from rad.images.grid import contact_sheet
from rad.images.lock import locked
from rad.images.sources import ImageFile, Zip, by_stem, list_images, top_folder
from rad.masks.base import MaskGenerator
from rad.masks.files import load_mask, same_mask, write_mask
from rad.masks.names import ALIASES
from rad.masks.reading.format import MaskFormat, Polarity
from rad.masks.shapes import make
from rad.rng import check_seed, generator

MANIFEST, FORMAT = "manifest.json", "rad-masks-1"
SMALLEST, MOST, SHOWN, COLUMNS = 8, 1_000_000, 24, 6

Manifest = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class Entry:
    """A mask of a set.

    Args:
        name: path in the set without its ending, with "/".
        height, width: in pixels.
        share: mean of the hole, in [0,1].
        sha256: of its pixels, see `hash_holes`.
    """

    name: str
    height: int
    width: int
    share: float
    sha256: str

    @classmethod
    def from_hole(cls, name: str, hole: Tensor) -> "Entry":
        """The entry of a hole (1,H,W) in [0,1]."""
        pixels = (255 * hole[0].float()).round().to("cpu", torch.uint8).contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        return cls(name, *pixels.shape, share=round(hole.double().mean().item(), 6), sha256=digest)


@dataclass(frozen=True)
class MaskSet:
    """A set in the folder or zip `source`; masks are read on demand.

    Args:
        polarity: meaning of white in its files.
        images, entries: of the masks, sorted by name.
        manifest: compared with the files; None if there is none.
    """

    source: Path
    polarity: Polarity
    images: Mapping[str, ImageFile]
    entries: tuple[Entry, ...]
    manifest: Manifest | None

    @property
    def names(self) -> list[str]:
        return list(self.images)

    @property
    def hash(self) -> str:
        return hash_entries(self.entries)

    def hole(self, name: str) -> Tensor:
        """(1,H,W) in [0,1], 1 = fill."""
        return _read(self.images[name], self.polarity)

    def holes(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.hole(name)) for name in self.images)


def holes(name: str, size: tuple[int, int], count: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The masks of a named set: "000000", "000001" ... and their holes (1,H,W) in {0,1}, 1 = fill.

    Mask i depends only on (name without alias, size, seed, i): a larger set begins with the smaller one.

    Args:
        name: a key of `rad.masks.shapes.MASKS`, or an alias.
        size: (height, width) in pixels, at least 8.

    Raises ValueError before the first mask is drawn.
    """
    masks, main, (height, width), seed = make(name), ALIASES.get(name, name), size, check_seed(seed)
    if min(height, width) < SMALLEST:
        raise ValueError(f"size {height}x{width}: give a height and a width of at least {SMALLEST} pixels")
    if not 1 <= count <= MOST:
        raise ValueError(f"count={count}: a set has 1 to {MOST} masks")
    return (
        (f"{index:06d}", masks([generator("mask set", main, height, width, seed, index)], height, width)[0])
        for index in range(count)
    )


def hash_holes(holes: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of a set, 16 hexadecimal digits, independent of order, polarity and file format.

    A hole (1,H,W) in [0,1] has H*W bytes round(255 * hole), 255 = fill, row by row. The text of a set has the lines
    "NAME<tab>HEIGHT<tab>WIDTH<tab>SHA256-OF-PIXELS<newline>", sorted by name. The hash is the start of its SHA-256 in UTF-8.
    Raises ValueError for an empty set or a repeated name.
    """
    return hash_entries(Entry.from_hole(name, hole) for name, hole in holes)


def hash_entries(entries: Iterable[Entry]) -> str:
    """`hash_holes` of entries."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    if not ordered:
        raise ValueError("a set without masks has no hash: give at least one")
    double = [entry.name for entry, after in pairwise(ordered) if entry.name == after.name]
    if double:
        raise ValueError(f"two masks are called {double[0]}: give each its own name")
    lines = (f"{entry.name}\t{entry.height}\t{entry.width}\t{entry.sha256}\n" for entry in ordered)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def write_set(folder: str | Path, name: str, *, size: tuple[int, int], count: int, seed: int) -> MaskSet:
    """Write a named set into `folder`; arguments as in `holes`.

    Rerun to resume: existing masks are compared and kept. The manifest is written last.
    Raises ValueError if the folder holds other images or another set; no file is overwritten.
    """
    folder, masks = Path(folder), holes(name, size, count, seed)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder")
    head = {
        "format": FORMAT,
        "set": ALIASES.get(name, name),
        "settings": {field: _to_json(value) for field, value in vars(make(name)).items()},
        "height": size[0],
        "width": size[1],
        "seed": check_seed(seed),
    }
    with locked(folder):
        _check_folder(folder, head, count)
        remove_temporaries([folder])
        return _write_set(folder, masks, head, count)


def _write_set(folder: Path, masks: Iterable[tuple[str, Tensor]], head: Manifest, count: int) -> MaskSet:
    entries, shown = [], []
    for mask, hole in masks:
        entries.append(Entry.from_hole(mask, hole))
        if len(shown) < SHOWN:
            shown.append((entries[-1], hole))
        _write_or_compare(folder, mask, hole, head)
    manifest = {
        **head,
        "count": count,
        "polarity": "white_is_fill",
        "hash": hash_entries(entries),
        "rad_version": __version__,
        "files": {entry.name: {"sha256": entry.sha256, "share": entry.share} for entry in entries},
    }
    size = f"{head['height']}x{head['width']}"
    title = f"{head['set']}, {size}, seed {head['seed']}: {len(shown)} of {count} masks, hash {manifest['hash']}"
    with replacing(folder.resolve().with_name(f"{folder.resolve().name}-overview.png")) as temporary:
        overview(shown, title=title).save(temporary)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    images = {entry.name: ImageFile(f"{entry.name}.png", folder / f"{entry.name}.png") for entry in entries}
    return MaskSet(folder, "white_is_fill", images, tuple(entries), manifest)


def read_set(source: str | Path, *, polarity: Polarity = "white_is_fill") -> MaskSet:
    """Read and hash any masks in a folder or zip; `polarity` as in `MaskFormat`. Grey values stay.

    A mask is named by its path without ending, and without a top folder that holds all of a zip. Hidden files are ignored.
    Raises ValueError for a source without images, an unreadable image, a repeated name, or a manifest that does not match.
    """
    path = Path(source)
    listed = list_images(path)
    images = dict(sorted(by_stem(listed, where=path, what="masks").items()))
    manifest = _read_manifest(path, listed[0], top_folder(listed))
    if manifest is not None and manifest["polarity"] != polarity:
        raise ValueError(f"polarity {polarity}: the {MANIFEST} of {path} says {manifest['polarity']}; use that")
    entries = tuple(Entry.from_hole(name, _read(image, polarity)) for name, image in images.items())
    if manifest is not None:
        _check_manifest(f"{path}: {MANIFEST}", manifest, entries)
    return MaskSet(path, polarity, images, entries, manifest)


def overview(masks: Sequence[tuple[Entry, Tensor]], *, title: str) -> Image.Image:
    """RGB contact sheet of masks (1,H,W), white = fill; captions give the name and the share of the hole."""
    images = [Image.fromarray((255 * hole[0]).round().to(torch.uint8).numpy()) for _, hole in masks]
    captions = [f"{entry.name}: {100 * entry.share:.1f} %" for entry, _ in masks]
    rows = [slice(start, start + COLUMNS) for start in range(0, len(masks), COLUMNS)]
    return contact_sheet(
        [images[row] for row in rows],
        captions=[captions[row] for row in rows],
        title=title, cell_size=192, padding=12, background=208,
    )  # fmt: skip


def _to_json(value: object) -> object:
    if isinstance(value, tuple):
        return [_to_json(each) for each in value]
    if is_dataclass(value):
        settings = {field: _to_json(each) for field, each in vars(value).items()}
        if not isinstance(value, MaskGenerator):
            return settings
        kind = type(value)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}
    return value


def _write_or_compare(folder: Path, mask: str, hole: Tensor, head: Manifest) -> None:
    path = folder / f"{mask}.png"
    if not path.exists():
        write_mask(path, hole)
    elif not same_mask(path, hole):
        raise ValueError(
            f"{path} is not mask {mask} of the set {head['set']} of {head['height']}x{head['width']} with seed "
            f"{head['seed']}, or another version of Pillow or torch drew it: give another folder"
        )


def _check_folder(folder: Path, head: Manifest, count: int) -> None:
    path = folder / MANIFEST
    if path.exists():
        present = _parse_manifest(path.read_bytes(), path)
        if present is None:
            raise ValueError(f"{path} is not of a set of masks, and would be written over: give another folder")
        for key, wanted in json.loads(json.dumps(head)).items():  # tuples become lists
            if present.get(key) != wanted:
                raise ValueError(
                    f"{folder} holds another set, whose {key} is {present.get(key)}, not {wanted}: give another folder"
                )
        if present["count"] > count:
            raise ValueError(
                f"{folder} holds {present['count']} masks of this set, more than {count}: give another folder"
            )
    try:
        names = [image.name for image in list_images(folder)]
    except ValueError:  # missing, or without images
        return
    ours = {f"{index:06d}.png" for index in range(count)}
    others = [name for name in names if name not in ours]
    if others:
        raise ValueError(
            f"{folder} holds {others[0]}, which is not one of the {count} masks to be written: give another folder"
        )


def _read(image: ImageFile, polarity: Polarity) -> Tensor:
    return load_mask(image.file(), MaskFormat(polarity=polarity, soft=True), name=str(image)).hole


def _read_manifest(path: Path, image: ImageFile, top: str) -> Manifest | None:
    if isinstance(image.source, Zip):
        handle, name = image.source.handle(), top + MANIFEST
        return _parse_manifest(handle.read(name), f"{path}:{name}") if name in handle.namelist() else None
    file = path / MANIFEST
    return _parse_manifest(file.read_bytes(), file) if file.is_file() else None


def _parse_manifest(text: bytes, name: str | Path) -> Manifest | None:
    """None for a file of another purpose with the same name."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{name} is damaged ({error}): write the set again, or remove it to read the masks alone"
        ) from error
    if not isinstance(manifest, dict) or not str(manifest.get("format")).startswith("rad-masks-"):
        return None
    files, polarity = manifest.get("files"), manifest.get("polarity")
    valid = isinstance(files, dict) and all(isinstance(file, dict) and "sha256" in file for file in files.values())
    if manifest["format"] != FORMAT or not valid or polarity not in ("white_is_fill", "white_is_known"):
        raise ValueError(f"{name} is damaged or of a later version (format {manifest['format']}, known is {FORMAT})")
    if manifest.get("count") != len(files or {}):
        raise ValueError(
            f"{name} is damaged: its count is {manifest.get('count')}, but it lists {len(files or {})} masks"
        )
    return manifest


def _check_manifest(name: str, manifest: Manifest, entries: Iterable[Entry]) -> None:
    present, listed = {entry.name: entry for entry in entries}, manifest["files"]
    wrong = [f"{mask} is missing" for mask in listed if mask not in present]
    wrong += [f"{mask} is not listed" for mask in present if mask not in listed]
    wrong += [
        f"{mask} has other pixels"
        for mask, entry in present.items()
        if mask in listed and listed[mask]["sha256"] != entry.sha256
    ]
    if wrong:
        more = f" ({len(wrong)} such masks)" if len(wrong) > 1 else ""
        first = " ".join(wrong[0].split())  # a name in JSON may hold anything
        raise ValueError(f"{name} does not agree with the files: {first}{more}; write the set again")
    if manifest.get("hash") != hash_entries(present.values()):
        raise ValueError(
            f"{name} does not agree with the files: names, sizes and pixels have another hash; write the set again"
        )
