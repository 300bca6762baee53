"""Pairs results, holes and costs by name, in a folder of rad sample or in the folders of other systems."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rad.console import counted
from rad.evaluation.results import Cost
from rad.evaluation.run_log import RUN, Run, read_costs
from rad.images.formats import SUFFIXES
from rad.images.sources import ImageFile, by_stem, holds_one, list_images, stems
from rad.masks.files import load_mask, write_mask
from rad.masks.reading.format import MaskFormat

Files = dict[str, dict[int, Path]]
"""Files by image and sample."""


@dataclass
class MaskResults:
    """All results on one mask set.

    Args:
        holes: mask file of each image, white = fill.
        files, costs: by method in display order: results, and known costs of one sample by image.
        unknown: number of result files without a hole of their name.
    """

    name: str
    holes: dict[str, Path]
    files: dict[str, Files]
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    unknown: int = 0

    @property
    def images(self) -> list[str]:
        """Sorted names of the images with a hole and any result."""
        return sorted({image for files in self.files.values() for image in files} & set(self.holes))


def by_name(images: list[ImageFile] | str | Path) -> dict[str, ImageFile]:
    """Images by relative path without suffix; a single top folder of a zip is left out.

    Raises ValueError for two images with one name, and as `list_images`.
    """
    if isinstance(images, str | Path):
        return by_stem(list_images(images), where=images)
    return by_stem(images, where="the list")


def is_tree(folder: Path) -> bool:
    """Whether rad sample wrote the folder: it has a run.json, or mask sets with their masks."""
    return (folder / RUN).is_file() or any(folder.glob("*/masks"))


def different_machines(run: Run) -> list[str]:
    """A note if run.json lists runs on different machines."""
    common = run.get("options", {})
    settings = [{**entry.get("options", common), **entry.get("environment", {})} for entry in run.get("runs", [])]
    different = []
    for name, default in (("device", None), ("cpu", None), ("threads", None), ("processes", 1), ("batch_size", None)):
        values = list(dict.fromkeys(str(setting.get(name, default)) for setting in settings))
        if len(values) > 1:
            different.append(f"{name} {' and '.join(values)}")
    return [f"seconds are not comparable: runs differ in {', '.join(different)}"] if different else []


def read_tree(folder: Path, run: Run, *, notes: list[str]) -> list[MaskResults]:
    """The mask sets of rad sample, in the order of run.json, others by name; appends to `notes`.

    Raises ValueError if there are none.
    """
    names = {path.parent.name for path in folder.glob("*/masks") if path.is_dir()}
    if not names:
        raise ValueError(f"{folder} holds no results: expected MASK/masks/NAME.png and MASK/METHOD/NAME.png in it")
    samples = run.get("options", {}).get("num_samples")
    if not isinstance(samples, int | None):
        raise ValueError(f"{folder / RUN} is broken (num_samples is {samples}): remove it, or sample again")
    sets = []
    for mask in _ordered(names, run.get("masks", [])):
        mask_set = MaskResults(mask, _images(folder / mask / "masks", notes), {})
        labels = {path.name for path in (folder / mask).iterdir() if path.is_dir() and not path.name.startswith(".")}
        for label in _ordered(labels - {"masks"}, run.get("methods", [])):
            files, unknown = find_results(folder / mask / label, set(mask_set.holes), samples=samples, notes=notes)
            mask_set.files[label] = files
            mask_set.unknown += unknown
            count = samples or max(map(len, files.values()), default=1)
            mask_set.costs[label] = _sample_costs(folder / mask / label, count, notes)
        absent = [label for label in run.get("methods", []) if label not in mask_set.files]
        notes += [f"{mask}: there are no results of {label}" for label in absent]
        sets.append(mask_set)
    return sets


def _ordered(names: set[str], order: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(order) if name in names] + sorted(names - set(order))


def find_results(folder: Path, names: set[str], *, samples: int | None = None, notes: list[str]) -> tuple[Files, int]:
    """The results of the images `names` in a folder: NAME.png, or NAME-0.png, NAME-1.png ...; and the number of other files.

    Other outputs of rad sample (NAME-raw, NAME-mask) do not count. Remarks are appended to `notes`. `samples`, the number
    per image, separates sample 0 of "a" from the image "a-0". None: a numbered file is a sample if neither a file NAME nor
    an image of its full name exists.
    """
    files = _images(folder, notes)
    results: Files = {}
    if samples is None or samples == 1:
        results = {name: {0: files[name]} for name in names if name in files}
    else:
        for name in names:
            if numbered := {n: files[f"{name}-{n}"] for n in range(samples) if f"{name}-{n}" in files}:
                results[name] = numbered
    if samples is None:
        for full, path in sorted(files.items()):
            match = re.fullmatch(r"(.+)-(\d+)", full)
            if match and match[1] in names and match[1] not in files and full not in names:
                results.setdefault(match[1], {})[int(match[2])] = path
    known = {path for numbered in results.values() for path in numbered.values()}
    taken = {name for name, path in files.items() if path in known} | results.keys()
    beside = {f"{name}{suffix}" for name in taken for suffix in ("-raw", "-mask")}
    unknown = sorted(name for name, path in files.items() if path not in known and name not in beside)
    if unknown:
        notes.append(
            f"{folder}: {counted(len(unknown), 'file')} without a matching original and mask: {unknown[0]} ..."
        )
    return results, len(unknown)


def _images(folder: Path, notes: list[str]) -> dict[str, Path]:
    """Image files by relative path without suffix; may be empty. Duplicate names are left out with a note."""
    if not any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*")):
        return {}
    files: dict[str, list[Path]] = {}
    images = list_images(folder)
    for name, image in zip(stems(images), images, strict=True):
        files.setdefault(name, []).append(Path(str(image)))
    for name, paths in files.items():
        if len(paths) > 1:
            notes.append(f"{name} is left out: there are {' and '.join(map(str, paths))}; remove one")
    return {name: paths[0] for name, paths in files.items() if len(paths) == 1}


def _sample_costs(folder: Path, samples: int, notes: list[str]) -> dict[str, Cost]:
    """Cost of one sample of each image from costs*.csv; a damaged file is left out with a note."""
    costs = {}
    for path in sorted(folder.glob("costs*.csv")):
        try:
            costs.update(read_costs(path))
        except (ValueError, OSError) as error:
            notes.append(f"{error}; costs are left out")
    return {
        image: Cost(cost["nfe"] / samples, cost["vjp"] / samples, cost["seconds"] / samples, cost["peak_mib"])
        for image, cost in costs.items()
    }


def read_folders(
    results: Mapping[str, Path], names: set[str], mask: Path, *, format: MaskFormat, output: Path, notes: list[str]
) -> MaskResults:
    """The results of other systems as one mask set; writes their holes to output/MASK/masks, white = fill.

    `results`: a folder per method; `mask`: one image for all, or a folder or zip. Files are named like the references, `names`.
    Raises ValueError if a folder has no matching image, or no mask fits.
    """
    mask_set = MaskResults(mask.parent.name if mask.name == "masks" and mask.parent.name else mask.stem, {}, {})
    for label, folder in results.items():
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give the folder with the results of {label}")
        mask_set.files[label], unknown = find_results(folder, names, notes=notes)
        mask_set.unknown += unknown
        if not mask_set.files[label]:
            raise ValueError(f"{folder} holds no image named like a reference, such as {min(names)}.png")
    images = sorted({image for files in mask_set.files.values() for image in files})
    folder = output / mask_set.name / "masks"
    if mask.exists() and folder.resolve().is_relative_to(mask.resolve()):
        raise ValueError(f"--output {output} would write into the masks in {mask}: give another folder")
    masks = by_name(mask)
    if holds_one(mask):
        masks = dict.fromkeys(images, next(iter(masks.values())))
    messages: dict[str, list[str]] = {}
    for image in images:
        if image not in masks:
            notes.append(f"{image} is left out: no mask of this name in {mask}")
            continue
        try:
            loaded = load_mask(masks[image].file(), format, name=str(masks[image]))
        except ValueError as error:
            notes.append(f"{image} is left out: {error}")
            continue
        for message in loaded.notes + loaded.warnings:
            messages.setdefault(message, []).append(image)
        mask_set.holes[image] = folder / f"{image}.png"
        write_mask(mask_set.holes[image], loaded.hole)
    if not mask_set.holes:
        raise ValueError(f"no mask in {mask} is named like a result, such as {images[0]}.png")
    for message, images in messages.items():
        notes.append(f"{mask_set.name}: {len(images)} of {len(mask_set.holes)} masks, such as {images[0]}: {message}")
    return mask_set
