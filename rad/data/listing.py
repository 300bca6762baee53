"""Images for training and validation: read from sources, checked, held out; hashes for a resume."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from rad.data.stream import Source
from rad.images.sources import Decoded, Gathered, ImageFile, Listing, find_readable, list_images
from rad.rng import key, key_of

# Colour photographs inside the scikit-image wheel; the motorcycles are two views of one scene.
SKIMAGE_TRAIN = ("astronaut.png", "chelsea.png", "hubble_deep_field.jpg", "motorcycle_left.png", "motorcycle_right.png")
SKIMAGE_HELD_OUT = ("coffee.png", "rocket.jpg")

CHECKED = 64
"""Number of training images whose content is compared with the checkpoint's at a resume."""


@dataclass(frozen=True)
class Split:
    """Images for training and for validation.

    Args:
        train, val: of all sources, one source after another.
        counts, val_counts: number of images of each source; without sources of its own, `val` has those of `train`.
    """

    train: Sequence[Source]
    val: Sequence[Source]
    counts: tuple[int, ...]
    val_counts: tuple[int, ...]


def split_images(
    paths: Sequence[str], val_paths: Sequence[str] | None, *, val_count: int, strict: bool, in_memory: bool
) -> Split:
    """The readable images of `paths` and `val_paths`; without the latter, `val_count` images of `paths` are held out.

    Raises ValueError if a path is missing or has no readable image, and with `strict` if any image is unreadable.
    """
    sources = _readable([list_source(path) for path in paths], strict=strict, in_memory=in_memory)
    images, counts = _join(sources, in_memory=in_memory), np.array([len(source) for source in sources])
    if val_paths is None:
        rest, held = hold_out(images, val_count)
        train, val = choose(images, rest), choose(images, held)
        ends = [0, *counts.cumsum()]
        counts, val_counts = (np.diff(np.searchsorted(part, ends)) for part in (rest, held))
    else:
        parts = [list_source(path, held_out=True) for path in val_paths]
        held_out = _readable(parts, strict=strict, in_memory=in_memory)
        train, val = images, _join(held_out, in_memory=in_memory)
        val_counts = np.array([len(source) for source in held_out])
    return Split(train, val, tuple(counts.tolist()), tuple(val_counts.tolist()))


def _readable(parts: Sequence[Sequence[ImageFile]], *, strict: bool, in_memory: bool) -> list[Sequence[Source]]:
    """The readable images of each part; a `Listing` unchecked, unless it goes into memory."""
    kept: list[Sequence[Source]] = []
    bad: list[str] = []
    for part in parts:
        unchecked = isinstance(part, Listing) and not in_memory
        good, broken = (part, []) if unchecked else find_readable(part, decode=in_memory)
        kept.append(good)
        bad += broken
    if bad:
        names = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        message = f"{len(bad)} of {sum(map(len, parts))} images cannot be read: {names}"
        if strict or not any(kept):
            raise ValueError(f"{message}; repair or remove them")
        rank_zero_warn(f"{message}; they are skipped")
    return kept


def _join(parts: Sequence[Sequence[Source]], *, in_memory: bool) -> Sequence[Source]:
    """All images in one sequence; those of a `Listing` are not copied, unless they are in memory."""
    if not in_memory and any(isinstance(part, Listing) for part in parts):
        return parts[0] if len(parts) == 1 else Gathered(parts)
    return [image for part in parts for image in part]


def check_paths(path: str | list[str], val_path: str | list[str] | None) -> tuple[list[str], list[str] | None]:
    """Both settings as lists; "skimage" alone also gives the validation images. Raises ValueError for empty ones."""
    paths = [path] if isinstance(path, str) else list(path)
    val_paths = [val_path] if isinstance(val_path, str) else val_path
    if not paths or val_paths == []:
        raise ValueError(f"path={path} and val_path={val_path}: an empty list has no images; val_path may be null")
    if not all(text.strip() for text in (*paths, *(val_paths or ()))):
        raise ValueError(
            f"path={path!r} and val_path={val_path!r}: an empty text names no source; val_path may be null"
        )
    return paths, ["skimage"] if val_paths is None and paths == ["skimage"] else val_paths


def list_source(source: str, *, held_out: bool = False) -> Sequence[ImageFile]:
    """Images as of `list_images`, or one part of the photographs inside scikit-image ("skimage")."""
    if source != "skimage":
        return list_images(source)
    folder = Path(str(files("skimage"))) / "data"
    return [ImageFile(name, folder / name) for name in (SKIMAGE_HELD_OUT if held_out else SKIMAGE_TRAIN)]


def hold_out(images: Sequence[Source], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending numbers of the rest, and of the `count` images with the smallest name hash. A new image moves at most one."""
    if count >= len(images):
        raise ValueError(f"val_count={count} leaves none of {len(images)} images to train on: lower it or set val_path")
    hashes = np.fromiter((key("held out", image.name) for image in images), np.int64, len(images))
    ranked = np.argsort(hashes, kind="stable")
    return np.sort(ranked[count:]), np.sort(ranked[:count])


def hash_images(images: Sequence[Source], *, in_memory: bool) -> dict[str, str]:
    """Hashes of all names, and of up to `CHECKED` images: of their files, or of the pixels of images in memory."""
    numbers = np.linspace(0, len(images) - 1, min(CHECKED, len(images))).astype(int)
    content = f"{key_of(_digest(images[number]) for number in numbers.tolist()):016x}"
    names = f"{key_of(image.name for image in images):016x}"
    return {"names_hash": names, "pixels_hash" if in_memory else "content_hash": content}


def _digest(image: Source) -> str:
    """Hash of an image's file, or of the pixels of one in memory; "" if it cannot be read."""
    if isinstance(image, Decoded):
        return sha256(image.image.tobytes()).hexdigest()
    try:
        file = image.file()
        return sha256(file.read_bytes() if isinstance(file, Path) else file.getvalue()).hexdigest()
    except (OSError, ValueError):
        return ""


def choose(images: Sequence[Source], numbers: np.ndarray) -> Sequence[Source]:
    """The images of these numbers."""
    if isinstance(images, list):
        return [images[number] for number in numbers]
    return Gathered([images], numbers)
