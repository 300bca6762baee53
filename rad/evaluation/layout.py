"""Which files belong together: results, holes and costs, in a folder of rad sample or in folders of any other system."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rad.console import counted
from rad.evaluation.results import Cost
from rad.evaluation.run_log import RUN, read_costs
from rad.images.sources import SUFFIXES, ImageFile, by_stem, holds_one, list_images, stems
from rad.masks.files import looks_inverted, read_mask, write_mask

Polarity = Literal["white_is_fill", "white_is_known"]
Files = dict[str, dict[int, Path]]
"""Files by image and sample."""


@dataclass
class MaskResults:
    """All results on one set of masks.

    Args:
        name: of the mask set.
        holes: the hole of each image, white = fill, in files.
        files: the results of each method, in the order in which methods are shown.
        costs: of each method and image, where they are known; of one sample.
        unknown: number of result files without a hole of their name.
    """

    name: str
    holes: dict[str, Path]
    files: dict[str, Files]
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    unknown: int = 0

    @property
    def images(self) -> list[str]:
        """Those that any method has, sorted."""
        return sorted({image for files in self.files.values() for image in files} & set(self.holes))


def by_name(images: list[ImageFile] | str | Path) -> dict[str, ImageFile]:
    """Images by their relative path without suffix, and in a zip without a folder that holds all of it, as results are named.

    Raises ValueError for two images of one name, and as `list_images`.
    """
    if isinstance(images, str | Path):
        return by_stem(list_images(images), where=images)
    return by_stem(images, where="the list")


def is_tree(folder: Path) -> bool:
    """Whether a folder is one that rad sample wrote: it has a run.json, or mask sets with their masks."""
    return (folder / RUN).is_file() or any(folder.glob("*/masks"))


def unlike(run: Mapping[str, Any]) -> list[str]:
    """A remark where results were made on different machines, as far as `run.json` says."""
    different, common = [], run.get("options", {})
    told = [{**one.get("options", common), **one.get("environment", {})} for one in run.get("runs", [])]
    for name, usual in (("device", None), ("cpu", None), ("threads", None), ("processes", 1), ("batch_size", None)):
        found = list(dict.fromkeys(str(one.get(name, usual)) for one in told))
        if len(found) > 1:
            different.append(f"{name} {' and '.join(found)}")
    return [f"seconds are not comparable: runs differ in {', '.join(different)}"] if different else []


def read_tree(folder: Path, run: Mapping[str, Any], *, notes: list[str]) -> list[MaskResults]:
    """The mask sets of a folder of rad sample; remarks are added to `notes`.

    Mask sets and methods are ordered as in run.json, and those that it does not name by alphabet.

    Raises ValueError where there are none.
    """
    found = {path.parent.name for path in folder.glob("*/masks") if path.is_dir()}
    if not found:
        raise ValueError(f"{folder} holds no results: expected MASK/masks/NAME.png and MASK/METHOD/NAME.png in it")
    samples = run.get("options", {}).get("num_samples")
    if not isinstance(samples, int | None):
        raise ValueError(f"{folder / RUN} is broken (num_samples is {samples}): remove it, or sample again")
    sets = []
    for mask in _ordered(found, run.get("masks", [])):
        holes = _images(folder / mask / "masks", notes)
        labels = {path.name for path in (folder / mask).iterdir() if path.is_dir() and not path.name.startswith(".")}
        files, costs, unknown = {}, {}, 0
        for label in _ordered(labels - {"masks"}, run.get("methods", [])):
            files[label], more = find_results(folder / mask / label, set(holes), samples=samples, notes=notes)
            unknown += more
            count = samples or max((len(some) for some in files[label].values()), default=1)
            costs[label] = _costs_of_one(folder / mask / label, count, notes)
        notes += [f"{mask}: there are no results of {label}" for label in run.get("methods", []) if label not in files]
        sets.append(MaskResults(mask, holes, files, costs, unknown))
    return sets


def _ordered(found: set[str], wanted: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(wanted) if name in found] + sorted(found - set(wanted))


def find_results(folder: Path, names: set[str], *, samples: int | None = None, notes: list[str]) -> tuple[Files, int]:
    """The result files in a folder for the images called `names`: NAME.png, or NAME-0.png, NAME-1.png ...; and how many are no
    one's, nor what rad sample writes beside them.

    Args:
        samples: how many there are of each image, which tells sample 0 of "a" from the image "a-0"; None: numbered files are
            samples where there is neither a file nor an image of their full name.
        notes: remarks are added.
    """
    found = _images(folder, notes)
    if samples is not None and samples > 1:
        numbered = {name: {n: found[f"{name}-{n}"] for n in range(samples) if f"{name}-{n}" in found} for name in names}
        results: Files = {name: files for name, files in numbered.items() if files}
    else:
        results = {name: {0: found[name]} for name in names if name in found}
    if samples is None:
        for full, path in sorted(found.items()):
            match = re.fullmatch(r"(.+)-(\d+)", full)
            if match and match[1] in names and match[1] not in found and full not in names:
                results.setdefault(match[1], {})[int(match[2])] = path
    known = {path for some in results.values() for path in some.values()}
    taken = {name for name, path in found.items() if path in known} | results.keys()
    beside = {f"{name}{suffix}" for name in taken for suffix in ("-raw", "-mask")}
    unknown = sorted(name for name, path in found.items() if path not in known and name not in beside)
    if unknown:
        notes.append(
            f"{folder}: {counted(len(unknown), 'file')} without an original and a mask of that name, such as {unknown[0]}"
        )
    return results, len(unknown)


def _images(folder: Path, notes: list[str]) -> dict[str, Path]:
    """The image files of a folder, by relative path without suffix; none at all is not an error here.

    Of two files of one name neither is taken, with a note.
    """
    if not any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*")):
        return {}
    files: dict[str, list[Path]] = {}
    images = list_images(folder)
    for name, image in zip(stems(images), images, strict=True):
        files.setdefault(name, []).append(Path(str(image)))
    for name, some in files.items():
        if len(some) > 1:
            notes.append(f"{name} is left out: there are {' and '.join(str(path) for path in some)}; remove one")
    return {name: some[0] for name, some in files.items() if len(some) == 1}


def _costs_of_one(folder: Path, samples: int, notes: list[str]) -> dict[str, Cost]:
    """By image what one of its samples cost, as costs.csv says, and those of shards; for a broken one a note."""
    found = {}
    for path in sorted(folder.glob("costs*.csv")):
        try:
            found.update(read_costs(path))
        except (ValueError, OSError) as error:
            notes.append(f"{error}; costs are left out")
    return {
        image: Cost(one["nfe"] / samples, one["vjp"] / samples, one["seconds"] / samples, one["peak_mib"])
        for image, one in found.items()
    }


def read_folders(
    results: Mapping[str, Path],
    names: set[str],
    mask: Path,
    *,
    polarity: Polarity,
    output: Path,
    notes: list[str],
) -> MaskResults:
    """The results of other systems, files called like the references, as one mask set.

    The holes are written to output/MASK/masks as they were understood, white = fill.

    Args:
        results: a folder for each method.
        names: of the references.
        mask: an image for all images, or a folder or zip of them by name.

    Raises ValueError where a folder holds no image called like a reference, or no mask fits.
    """
    files: dict[str, Files] = {}
    unknown = 0
    for label, folder in results.items():
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give the folder with the results of {label}")
        files[label], more = find_results(folder, names, notes=notes)
        unknown += more
        if not files[label]:
            raise ValueError(f"{folder} holds no image called like a reference, such as {min(names)}.png")
    images = sorted({image for some in files.values() for image in some})
    masks = by_name(mask)
    if holds_one(mask):
        masks = dict.fromkeys(images, next(iter(masks.values())))
    name = mask.parent.name if mask.name == "masks" and mask.parent.name else mask.stem
    folder = output / name / "masks"
    if mask.exists() and folder.resolve().is_relative_to(mask.resolve()):
        raise ValueError(f"--output {output} would write into the masks in {mask}: give another folder")
    holes, inverted = {}, []
    for image in images:
        if image not in masks:
            notes.append(f"{image} has no mask in {mask}: left out")
            continue
        try:
            hole = read_mask(masks[image].file(), polarity=polarity)
        except ValueError as error:
            notes.append(f"{image}: {error}: left out")
            continue
        inverted += [image] if looks_inverted(hole) else []
        holes[image] = folder / f"{image}.png"
        write_mask(holes[image], hole)
    if not holes:
        raise ValueError(f"no mask in {mask} is called like a result, such as {images[0]}.png")
    if inverted:
        notes.append(
            f"{name}: {len(inverted)} of {len(holes)} masks look inverted, such as that of {inverted[0]} (so do those of "
            f"outpainting): look at --mask_polarity, which is {polarity}"
        )
    return MaskResults(name, holes, files, unknown=unknown)
