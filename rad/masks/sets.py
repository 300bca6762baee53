"""Sets of masks for evaluation: named, deterministic, hashed, with a manifest that proves which they are.

A set in a folder is

    FOLDER/000000.png, 000001.png ...   the masks, 8-bit grey, white = fill
    FOLDER/manifest.json                what they are: generator, settings, size, count, seed, hash; pixels and share of each
    FOLDER-overview.png                 the first 24 at a glance

The overview lies beside the folder, for programs take every PNG of a folder for a mask.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from rad import __version__
from rad.images.atomic import replacing, write_text
from rad.images.grid import contact_sheet
from rad.images.sources import Archive, ImageFile, by_stem, list_images, top_folder
from rad.masks import MaskGenerator
from rad.masks.files import read_mask, same_mask, write_mask
from rad.masks.shapes import ALIASES, make
from rad.rng import generator

MANIFEST, FORMAT = "manifest.json", "rad-masks-1"
SMALLEST, MOST, SHOWN = 8, 1_000_000, 24

Polarity = Literal["white_is_fill", "white_is_known"]


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
    def of(cls, name: str, hole: Tensor) -> "Entry":
        """The entry of a hole (1,H,W) in [0,1]."""
        pixels = (255 * hole[0].float()).round().to("cpu", torch.uint8).contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        return cls(name, *pixels.shape, share=round(hole.double().mean().item(), 6), sha256=digest)


@dataclass(frozen=True)
class MaskSet:
    """A set that lies in files; its masks are read when they are asked for.

    Args:
        source: the folder or zip.
        polarity: what white means in its files.
        images: the files by name of the mask, sorted.
        entries: one a mask, in the same order.
        manifest: what `write_set` wrote, already compared with the files; None where there is none.
    """

    source: Path
    polarity: Polarity
    images: Mapping[str, ImageFile]
    entries: tuple[Entry, ...]
    manifest: Mapping[str, Any] | None

    @property
    def names(self) -> list[str]:
        """Of the masks, sorted."""
        return list(self.images)

    @property
    def hash(self) -> str:
        """See `hash_holes`."""
        return hash_entries(self.entries)

    def hole(self, name: str) -> Tensor:
        """(1,H,W) in [0,1], 1 = fill."""
        return _read(self.images[name], self.polarity)

    def holes(self) -> Iterator[tuple[str, Tensor]]:
        """Name and hole of every mask."""
        return ((name, self.hole(name)) for name in self.images)


def holes(name: str, size: tuple[int, int], count: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The masks of a named set: "000000", "000001" ... and their holes (1,H,W) in {0,1}, 1 = fill.

    Mask i depends on (name, size, seed, i) alone, aliases counting as the names they stand for: a larger set begins with
    the smaller one.

    Args:
        name: of `rad.masks.shapes.MASKS`.
        size: (height, width) in pixels, at least 8.

    Raises ValueError before the first mask is drawn.
    """
    made, main, (height, width) = make(name), ALIASES.get(name, name), size
    if min(height, width) < SMALLEST:
        raise ValueError(f"size {height}x{width}: give a height and a width of at least {SMALLEST} pixels")
    if not 1 <= count <= MOST:
        raise ValueError(f"count={count}: a set has 1 to {MOST} masks")
    return (
        (f"{index:06d}", made([generator("mask set", main, height, width, seed, index)], height, width)[0])
        for index in range(count)
    )


def hash_holes(holes: Iterable[tuple[str, Tensor]]) -> str:
    """Sixteen hexadecimal digits that stand for a set: equal only if names, sizes and 8-bit pixels are.

    The pixels of a mask are its H*W bytes round(255 * hole), 255 = fill, row after row from the top left. A set is the
    text made of the line "NAME<tab>HEIGHT<tab>WIDTH<tab>SHA256-OF-PIXELS<newline>" for each mask, sorted by name; the
    hash is the beginning of the sha256 of this text in UTF-8. Order, polarity and format of files thus do not matter.

    Args:
        holes: name and hole (1,H,W) in [0,1].

    Raises ValueError for no mask at all, and for two of one name.
    """
    return hash_entries(Entry.of(name, hole) for name, hole in holes)


def hash_entries(entries: Iterable[Entry]) -> str:
    """As `hash_holes`, for masks that have been read already."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    if not ordered:
        raise ValueError("a set without masks has no hash: give at least one")
    double = [entry.name for entry, after in pairwise(ordered) if entry.name == after.name]
    if double:
        raise ValueError(f"two masks are called {double[0]}: give each its own name")
    lines = (f"{entry.name}\t{entry.height}\t{entry.width}\t{entry.sha256}\n" for entry in ordered)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def write_set(folder: str | Path, name: str, *, size: tuple[int, int], count: int, seed: int) -> MaskSet:
    """Write a named set into `folder`, which may hold its beginning already.

    What was written is kept whole if the run is interrupted, compared with what should be there by the next run, and
    continued; so is a smaller set of the same seed. The manifest comes last.

    Args:
        name, size, count, seed: as in `holes`.

    Raises ValueError where the folder holds other images or another set; nothing is written then but what was right.
    """
    folder, masks = Path(folder), holes(name, size, count, seed)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder")
    head = {
        "format": FORMAT,
        "set": ALIASES.get(name, name),
        "settings": {field: _plain(value) for field, value in vars(make(name)).items()},
        "height": size[0],
        "width": size[1],
        "seed": seed,
    }
    _check_folder(folder, head, count)
    folder.mkdir(parents=True, exist_ok=True)
    entries, shown = [], []
    for mask, hole in masks:
        entries.append(Entry.of(mask, hole))
        if len(shown) < SHOWN:
            shown.append((entries[-1], hole))
        _put(folder, mask, hole, head)
    manifest = {
        **head,
        "count": count,
        "polarity": "white_is_fill",
        "hash": hash_entries(entries),
        "rad_version": __version__,
        "files": {entry.name: {"sha256": entry.sha256, "share": entry.share} for entry in entries},
    }
    title = f"{head['set']}, {size[0]}x{size[1]}, seed {seed}: {len(shown)} of {count} masks, hash {manifest['hash']}"
    sheet = folder.resolve().with_name(f"{folder.resolve().name}-overview.png")
    with replacing(sheet) as temporary:
        overview(shown, title=title).save(temporary)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    images = {entry.name: ImageFile(f"{entry.name}.png", folder / f"{entry.name}.png") for entry in entries}
    return MaskSet(folder, "white_is_fill", images, tuple(entries), manifest)


def read_set(source: str | Path, *, polarity: Polarity = "white_is_fill") -> MaskSet:
    """Read and hash the masks in a folder or a zip, written by `write_set` or by anyone.

    A mask is called by its path in the folder without the ending; so it is in a zip, without the folder that everything
    in the zip lies in, if there is one. Hidden files are left out.

    Args:
        polarity: what white means in the files, see `rad.masks.files.read_mask`.

    Raises ValueError where there is no image, one cannot be read, two have one name, or a manifest does not agree with
    the files: it says which.
    """
    path = Path(source)
    listed = list_images(path)
    images = dict(sorted(by_stem(listed, where=path, what="masks").items()))
    manifest = _read_manifest(path, listed[0], top_folder(listed))
    if manifest is not None and manifest["polarity"] != polarity:
        raise ValueError(f"polarity {polarity}: the {MANIFEST} of {path} says {manifest['polarity']}; use that")
    entries = tuple(Entry.of(name, _read(image, polarity)) for name, image in images.items())
    if manifest is not None:
        _check_manifest(f"{path}: {MANIFEST}", manifest, entries)
    return MaskSet(path, polarity, images, entries, manifest)


def overview(masks: Sequence[tuple[Entry, Tensor]], *, title: str) -> Image.Image:
    """RGB contact sheet of masks (1,H,W), six in a row, white = fill; captions give name and share of the hole."""
    images = [Image.fromarray((255 * hole[0]).round().to(torch.uint8).numpy()) for _, hole in masks]
    captions = [f"{entry.name}: {100 * entry.share:.1f} %" for entry, _ in masks]
    starts = range(0, len(masks), 6)
    return contact_sheet(
        [images[start : start + 6] for start in starts],
        captions=[captions[start : start + 6] for start in starts],
        title=title, cell_size=192, padding=12, background=208,
    )  # fmt: skip


def _plain(value: Any) -> Any:
    """A setting as JSON has it; a generator within a mixture as a configuration has it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        settings = {field: _plain(each) for field, each in vars(value).items()}
        if not isinstance(value, MaskGenerator):
            return settings
        kind = type(value)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}
    return value


def _put(folder: Path, mask: str, hole: Tensor, head: Mapping[str, Any]) -> None:
    """Write a mask, or compare it with the file that is there."""
    path = folder / f"{mask}.png"
    if not path.exists():
        write_mask(path, hole)
    elif not same_mask(path, hole):
        raise ValueError(
            f"{path} is not mask {mask} of the set {head['set']} of {head['height']}x{head['width']} with seed "
            f"{head['seed']}, or was drawn by another version of Pillow or torch: give another folder"
        )


def _check_folder(folder: Path, head: Mapping[str, Any], count: int) -> None:
    """Refuse a folder that holds another set, or images that are not of this one."""
    path = folder / MANIFEST
    if path.exists():
        there = _parse_manifest(path.read_bytes(), path)
        if there is None:
            raise ValueError(f"{path} is not of a set of masks, and would be written over: give another folder")
        wanted = json.loads(json.dumps(head))  # tuples become lists
        for key in wanted:
            if there.get(key) != wanted[key]:
                raise ValueError(
                    f"{folder} holds another set, whose {key} is {there.get(key)}, not {wanted[key]}: give another folder"
                )
        if there["count"] > count:
            raise ValueError(
                f"{folder} holds {there['count']} masks of this set, more than {count}: give another folder"
            )
    ours = {f"{index:06d}.png" for index in range(count)}
    others = [name for name in _image_names(folder) if name not in ours]
    if others:
        raise ValueError(
            f"{folder} holds {others[0]}, which is not one of the {count} masks to be written: give another folder"
        )


def _image_names(folder: Path) -> list[str]:
    try:
        return [image.name for image in list_images(folder)]
    except ValueError:  # not there, or without images
        return []


def _read(image: ImageFile, polarity: Polarity) -> Tensor:
    try:
        return read_mask(image.file(), polarity=polarity)
    except ValueError as error:
        # What comes out of a zip has no name of its own.
        raise ValueError(str(error) if str(image) in str(error) else f"{image}: {error}") from error


def _read_manifest(path: Path, image: ImageFile, top: str) -> dict[str, Any] | None:
    if isinstance(image.source, Archive):
        handle = image.source.handle()
        name = top + MANIFEST
        return _parse_manifest(handle.read(name), f"{path}:{name}") if name in handle.namelist() else None
    file = path / MANIFEST
    return _parse_manifest(file.read_bytes(), file) if file.is_file() else None


def _parse_manifest(text: bytes, name: str | Path) -> dict[str, Any] | None:
    """The manifest of a set; None for a file of another purpose that happens to have its name."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{name} is damaged ({error}): write the set again, or remove it to read the masks alone"
        ) from error
    if not isinstance(manifest, dict) or not str(manifest.get("format")).startswith("rad-masks-"):
        return None
    files, polarity = manifest.get("files"), manifest.get("polarity")
    right = isinstance(files, dict) and all(isinstance(file, dict) and "sha256" in file for file in files.values())
    if manifest["format"] != FORMAT or not right or polarity not in ("white_is_fill", "white_is_known"):
        raise ValueError(f"{name} is damaged or of a later version (format {manifest['format']}, known is {FORMAT})")
    if manifest.get("count") != len(files or {}):
        raise ValueError(
            f"{name} is damaged: its count is {manifest.get('count')}, but it lists {len(files or {})} masks"
        )
    return manifest


def _check_manifest(name: str, manifest: Mapping[str, Any], entries: Iterable[Entry]) -> None:
    found, listed = {entry.name: entry for entry in entries}, manifest["files"]
    wrong = [f"{mask} is missing" for mask in listed if mask not in found]
    wrong += [f"{mask} is not listed" for mask in found if mask not in listed]
    wrong += [
        f"{mask} has other pixels"
        for mask, entry in found.items()
        if mask in listed and listed[mask]["sha256"] != entry.sha256
    ]
    if wrong:
        more = f" ({len(wrong)} such masks)" if len(wrong) > 1 else ""
        first = " ".join(wrong[0].split())  # a name in JSON may hold anything
        raise ValueError(f"{name} does not agree with the files: {first}{more}; write the set again")
    if manifest.get("hash") != hash_entries(found.values()):
        raise ValueError(
            f"{name} does not agree with the files: names, sizes and pixels have another hash; write the set again"
        )
