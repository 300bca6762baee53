"""Which mask belongs to which image: by name, by a pattern, in order, one for all, or a generator."""

import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias
from unicodedata import normalize

from rad.console import did_you_mean
from rad.images.sources import ImageFile, by_stem, holds_one, is_source, list_images, match_names, top_folder

if TYPE_CHECKING:
    from rad.masks.base import MaskGenerator


@dataclass(frozen=True)
class NoMask:
    """In place of a mask: only the new pixels of --extend are filled."""


MaskSource: TypeAlias = "ImageFile | MaskGenerator | NoMask | None"

Input: TypeAlias = tuple[ImageFile, str, MaskSource]
"""An image, the name of its results, and its mask."""


def find_masks(
    mask: str, images: Sequence[ImageFile], names: Sequence[str], *, pattern: str | None, in_order: bool
) -> Sequence[MaskSource]:
    """The mask of each image; None: there is none.

    Args:
        mask: --mask, or "" without; names: of the results, see `rad.images.sources.stems`.
        pattern: --mask_pattern; in_order: --mask_by order.

    Raises ValueError for masks that cannot be assigned.
    """
    if not mask:
        return [NoMask()] * len(names)
    if pattern is not None and (not is_source(mask) or holds_one(mask)):
        raise ValueError(f"--mask {mask}: --mask_pattern needs the folder or archive of the masks")
    if not is_source(mask):
        from rad.masks.shapes import MASKS, main_names, make

        if mask not in MASKS:
            known = ", ".join(main_names())
            hint = did_you_mean(mask, MASKS)
            raise ValueError(f"--mask {mask} is neither a file, a folder, an archive nor a generator ({known}){hint}")
        return [make(mask)] * len(names)
    files = list_images(mask)
    if holds_one(mask):
        return [files[0]] * len(names)
    if pattern is not None:
        return list(_by_pattern(mask, files, images, names, pattern))
    if in_order:
        if len(files) < len(names):
            masks = f"{len(files)} masks for {len(names)} images"
            raise ValueError(f"--mask {mask} has {masks}: --mask_by order needs one for each, with --limit too")
        return files[: len(names)]
    by_name = by_stem(files, where=f"--mask {mask}", what="masks")
    return match_names(by_name, names)


def mask_name_of(image: ImageFile, pattern: str) -> str:
    """The file name of an image's mask by --mask_pattern, with its wildcards."""
    return _filled(pattern, PurePosixPath(image.name), plain=True)


def without_masks(inputs: Sequence[Input]) -> list[Input]:
    """The inputs whose image is not the mask of another one, for masks among the images."""
    masks = {_identity(mask) for image, _, mask in inputs if isinstance(mask, ImageFile) and not _equal(image, mask)}
    kept = [entry for entry in inputs if _identity(entry[0]) not in masks]
    return kept if kept else list(inputs)


def check_not_itself(inputs: Sequence[Input], mask: str) -> None:
    """Raise ValueError for an image that is its own mask, also by a link."""
    for image, _, own in inputs:
        if isinstance(own, ImageFile) and _equal(image, own):
            raise ValueError(
                f"--mask {mask}: {image.name} would be its own mask. For masks beside the images give --mask_pattern, such "
                "as '{stem}_mask.*'; for a transparent hole give --mask_channel alpha --mask_polarity white_is_known"
            )


def _by_pattern(
    mask: str, files: Sequence[ImageFile], images: Sequence[ImageFile], names: Sequence[str], pattern: str
) -> Iterator[MaskSource]:
    top = top_folder(files)
    by_name = {normalize("NFC", file.name.removeprefix(top)): file for file in files}
    ordered = sorted(by_name)
    for image, name in zip(images, names, strict=True):
        parent = PurePosixPath(name).parent
        wanted = (PurePosixPath(escape(str(parent))) / _filled(pattern, PurePosixPath(image.name))).as_posix()
        wanted = normalize("NFC", wanted)
        start = re.split(r"[*?[]", wanted, maxsplit=1)[0]  # only names that begin so can match
        matches = []
        for candidate in ordered[bisect_left(ordered, start) :]:
            if not candidate.startswith(start):
                break
            if fnmatchcase(candidate, wanted) and candidate.count("/") == wanted.count("/"):
                matches.append(candidate)
        if len(matches) > 1:
            raise ValueError(
                f"--mask_pattern {pattern}: {mask} has several masks for {image.name}: {', '.join(matches)}"
            )
        yield by_name[matches[0]] if matches else None


def _filled(pattern: str, name: PurePosixPath, *, plain: bool = False) -> str:
    values = {"stem": name.stem, "name": name.name}
    return re.sub(r"\{(stem|name)\}", lambda match: values[match[1]] if plain else escape(values[match[1]]), pattern)


def _identity(file: ImageFile) -> tuple[object, int]:
    path = file.source if isinstance(file.source, Path) else file.source.path
    return os.path.realpath(path), file.number  # `Path.resolve` fails for a link to itself


def _equal(image: ImageFile, mask: ImageFile) -> bool:
    return _identity(image) == _identity(mask)
