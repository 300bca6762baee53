"""Which files belong together: results, holes and costs, in a folder of sample.py or in folders of any other system."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from rad.evaluation.results import Cost
from rad.masks.files import read_mask, write_mask
from rad.pictures import SUFFIXES, Picture, list_pictures

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
        costs: of each method and image, where they are known; for all samples of the image together.
    """

    name: str
    holes: dict[str, Path]
    files: dict[str, Files]
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        """Those that any method has, sorted."""
        return sorted({image for files in self.files.values() for image in files} & set(self.holes))


def by_name(pictures: list[Picture] | str | Path) -> dict[str, Picture]:
    """Pictures by their relative path without suffix, as results are named.

    Raises ValueError for two pictures of one name, and as `list_pictures`.
    """
    named: dict[str, Picture] = {}
    for picture in list_pictures(pictures) if isinstance(pictures, str | Path) else pictures:
        name = stem(picture.name)
        if name in named:
            raise ValueError(f"two pictures are called {name}, {named[name].name} and {picture.name}: rename one")
        named[name] = picture
    return named


def stem(name: str) -> str:
    """The relative path without suffix."""
    return str(PurePosixPath(name.lstrip("/")).with_suffix(""))


def is_tree(folder: Path) -> bool:
    """Whether a folder is one that sample.py wrote: it has a run.json, or mask sets with their masks."""
    return (folder / "run.json").is_file() or any(folder.glob("*/masks"))


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says; empty where there is none. Raises ValueError for a broken one."""
    path = folder / "run.json"
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): remove it, or sample again") from error
    if not isinstance(run, dict):
        raise ValueError(f"{path} is broken (not an object): remove it, or sample again")
    return run


def read_tree(folder: Path, run: Mapping[str, Any], *, notes: list[str]) -> list[MaskResults]:
    """The mask sets of a folder of sample.py; remarks are added to `notes`.

    Mask sets and methods are ordered as in run.json, and those that it does not name by alphabet.

    Raises ValueError where there are none.
    """
    found = {path.parent.name for path in folder.glob("*/masks") if path.is_dir()}
    if not found:
        raise ValueError(f"{folder} holds no results: expected MASK/masks/NAME.png and MASK/METHOD/NAME.png in it")
    samples = run.get("options", {}).get("num_samples")
    sets = []
    for mask in _ordered(found, run.get("masks", [])):
        holes = _pictures(folder / mask / "masks")
        labels = {path.name for path in (folder / mask).iterdir() if path.is_dir() and not path.name.startswith(".")}
        files, costs = {}, {}
        for label in _ordered(labels - {"masks"}, run.get("methods", [])):
            files[label] = find_results(folder / mask / label, set(holes), samples=samples)
            costs[label] = read_costs(folder / mask / label / "costs.csv", notes=notes)
        notes += [f"{mask}: there are no results of {label}" for label in run.get("methods", []) if label not in files]
        sets.append(MaskResults(mask, holes, files, costs))
    return sets


def _ordered(found: set[str], wanted: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(wanted) if name in found] + sorted(found - set(wanted))


def find_results(folder: Path, names: set[str], *, samples: int | None = None) -> Files:
    """The result files in a folder for the images called `names`: NAME.png, or NAME-0.png, NAME-1.png ...

    Args:
        samples: how many there are of each image, which tells sample 0 of "a" from the image "a-0"; None: numbered files are
            samples where there is neither a file nor a picture of their full name.
    """
    found = _pictures(folder)
    if samples is not None and samples > 1:
        numbered = {name: {n: found[f"{name}-{n}"] for n in range(samples) if f"{name}-{n}" in found} for name in names}
        return {name: files for name, files in numbered.items() if files}
    results: Files = {name: {0: found[name]} for name in names if name in found}
    if samples is None:
        for full, path in sorted(found.items()):
            match = re.fullmatch(r"(.+)-(\d+)", full)
            if match and match[1] in names and match[1] not in found and full not in names:
                results.setdefault(match[1], {})[int(match[2])] = path
    return results


def _pictures(folder: Path) -> dict[str, Path]:
    """The picture files of a folder, by relative path without suffix; none at all is not an error here."""
    if not any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*")):
        return {}
    try:
        return {name: Path(str(picture)) for name, picture in by_name(folder).items()}
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_costs(path: Path, *, notes: list[str]) -> dict[str, Cost]:
    """The lines of a costs.csv by image; without it nothing, and with a broken one a note."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return {
                line["image"]: Cost(*(float(line[key]) if line[key] else None for key in COSTS))
                for line in csv.DictReader(stream)
            }
    except (KeyError, ValueError, TypeError) as error:
        notes.append(f"{path} cannot be read ({type(error).__name__}: {error}): costs are left out")
        return {}


COSTS = ("nfe", "vjp", "seconds", "peak_mib")


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
        mask: a picture for all images, or a folder or zip of them by name.

    Raises ValueError where a folder holds no picture called like a reference, or no mask fits.
    """
    files: dict[str, Files] = {}
    for label, folder in results.items():
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give the folder with the results of {label}")
        files[label] = find_results(folder, names)
        if not files[label]:
            raise ValueError(f"{folder} holds no picture called like a reference, such as {min(names)}.png")
    images = sorted({image for some in files.values() for image in some})
    masks = by_name(mask)
    if mask.is_file() and mask.suffix.lower() != ".zip":
        masks = dict.fromkeys(images, next(iter(masks.values())))
    name = mask.parent.name if mask.name == "masks" and mask.parent.name else stem(mask.name)
    folder = output / name / "masks"
    if mask.exists() and folder.resolve().is_relative_to(mask.resolve()):
        raise ValueError(f"--output {output} would write into the masks in {mask}: give another folder")
    holes = {}
    for image in images:
        if image not in masks:
            notes.append(f"{image} has no mask in {mask}: left out")
            continue
        try:
            hole = read_mask(masks[image].file(), polarity=polarity)
        except ValueError as error:
            notes.append(f"{image}: {error}: left out")
            continue
        holes[image] = folder / f"{image}.png"
        holes[image].parent.mkdir(parents=True, exist_ok=True)
        write_mask(holes[image], hole)
    if not holes:
        raise ValueError(f"no mask in {mask} is called like a result, such as {images[0]}.png")
    return MaskResults(name, holes, files)
