"""What is to be filled, as files: pictures, masks, methods, and the names of what will be written; nothing is computed here."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

from rad.masks import MaskGenerator
from rad.masks.files import read_mask
from rad.masks.shapes import MASKS, main_names, make
from rad.pictures import Picture, list_pictures, top_folder
from rad.tape import generator


@dataclass(frozen=True)
class Job:
    """A picture, where its mask comes from, and the files to be written: (samples, raw samples, mask).

    `identity`: the name of its results, the picture's path in its folder or zip without the suffix.
    """

    picture: Picture
    identity: str
    mask: Picture | MaskGenerator | None
    outputs: list[Path]
    raw: list[Path]
    mask_output: Path | None

    @property
    def files(self) -> list[Path]:
        """All files to be written."""
        return [*self.outputs, *self.raw, *([self.mask_output] if self.mask_output else [])]

    @property
    def name(self) -> str:
        """The identity of the picture for masks and noise: its file name, wherever it lies."""
        return PurePosixPath(self.picture.name).name

    def hole(self, size: tuple[int, int], options: argparse.Namespace) -> Tensor:
        """(1,H,W) in [0,1], 1 = fill, for a picture of that (height, width)."""
        if self.mask is None:
            raise ValueError(
                f"no mask for {self.picture.name}: expected one of the same name; --mask_by order takes them in order"
            )
        if isinstance(self.mask, Picture):
            return read_mask(self.mask.file(), polarity=options.mask_polarity, size=size)
        return self.mask([generator(options.seed, "mask", self.name)], *size)[0]


@dataclass(frozen=True)
class Label:
    """A method as it is called on the command line: "ddnm", "ddnm@50" (steps) or "ddnm@100nfe" (a budget of network calls)."""

    text: str
    method: str
    steps: int | None = None
    budget: int | None = None

    @classmethod
    def of(cls, text: str) -> "Label":
        """Raises ValueError for an unknown method or what is not a number after "@"."""
        from rad.methods import METHODS

        method, at, amount = text.partition("@")
        if method not in METHODS:
            raise ValueError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
        number = amount.removesuffix("nfe")
        if at and not (number.isascii() and number.isdigit() and int(number) > 0):
            raise ValueError(f"{text!r}: give {method}@50 for 50 steps or {method}@100nfe for 100 network calls")
        if not at:
            return cls(text, method)
        return cls(text, method, budget=int(number)) if amount != number else cls(text, method, steps=int(number))


@dataclass(frozen=True)
class Cell:
    """The jobs of one method on one mask."""

    mask: str
    label: Label
    folder: Path
    jobs: list[Job]


@dataclass(frozen=True)
class Plan:
    """All that is to be done.

    Args:
        tree: results lie in OUTPUT/MASK/METHOD/, for a comparison; otherwise in OUTPUT, or OUTPUT/METHOD/ for several methods.
        sheets: a contact sheet for each mask where there are several methods.
    """

    cells: list[Cell]
    tree: bool
    sheets: list[Path]


def make_plan(options: argparse.Namespace, labels: Sequence[Label]) -> Plan:
    """Pictures, masks and files for each method and mask. Raises ValueError for whatever does not fit together."""
    output = Path(options.output)
    masks = list(dict.fromkeys(options.mask))
    tree = len(masks) > 1 or options.report
    if not tree and len(labels) == 1:
        return Plan([Cell(masks[0], labels[0], output, plan(options, masks[0], output))], tree, [])
    if output.suffix.lower() == ".png" and not output.is_dir():
        raise ValueError(f"--output {output}: several methods or masks write a folder each; give a folder")
    names = {mask: mask_name(mask) for mask in masks}
    if len(set(names.values())) < len(masks):
        raise ValueError(f"--mask {' '.join(masks)}: two masks of one name; their results would lie in the same folder")
    roots = {mask: output / names[mask] if tree else output for mask in masks}
    sheets = [root / "methods.png" for root in roots.values()] if len(labels) > 1 else []
    for sheet in sheets:
        if sheet.is_dir():
            raise ValueError(f"--output {output}: the contact sheet {sheet} cannot be written, for it is a folder")
    cells = []
    for mask, root in roots.items():
        for label in labels:
            holes = root / "masks" if tree else None
            jobs = plan(options, mask, root / label.text, sheet=root / "methods.png" if sheets else None, holes=holes)
            cells.append(Cell(names[mask], label, root / label.text, jobs))
    return Plan(cells, tree, sheets)


def mask_name(mask: str) -> str:
    """What a mask of the command line is called: the name of the file (without suffix), folder or generator."""
    path = Path(mask)
    if not path.exists():
        return mask
    return path.resolve().name if path.is_dir() else path.stem


def plan(
    options: argparse.Namespace, mask: str, output: Path, *, sheet: Path | None = None, holes: Path | None = None
) -> list[Job]:
    """One job a picture of --image, with its mask and its files in `output`; nothing is read yet but lists of names.

    Args:
        sheet: a further file that will be written.
        holes: folder for the masks; None: beside the results, where --save_mask asks for them.
    """
    pictures = list_pictures(options.image)
    source, top = Path(options.image), top_folder(pictures)
    one = source.is_file() and source.suffix.lower() != ".zip"
    if not one and output.suffix.lower() == ".png" and not output.is_dir():
        raise ValueError(f"--output {output}: {source} holds several pictures; give a folder")
    into_file = one and holes is None and output.suffix != "" and not output.is_dir()
    if into_file and output.suffix.lower() != ".png":
        raise ValueError(
            f"--output {output}: results are written as PNG, which keeps every pixel; end the name in .png"
        )
    folder = output.parent if into_file else output
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"--output {output} lies in {source}, and would be an input of the next run: give another folder"
        )
    if any(path.is_file() for path in (folder, *folder.parents)):
        raise ValueError(f"--output {output} cannot be written: there is a file where the folder {folder} has to be")
    find_mask = _mask_finder(mask, pictures, in_order=options.mask_by == "order")
    if options.limit is not None:  # evenly spread, so that a class or folder is not left out
        count = min(options.limit, len(pictures))
        pictures = [pictures[number * len(pictures) // count] for number in range(count)]
    jobs = []
    for picture in pictures:
        relative = _relative(picture, top)
        stem = output.with_suffix("") if into_file else output / relative
        stems = (
            [stem]
            if options.num_samples == 1
            else [stem.with_name(f"{stem.name}-{n}") for n in range(options.num_samples)]
        )
        outputs = [path.with_name(f"{path.name}.png") for path in stems]
        raw = [path.with_name(f"{path.name}-raw.png") for path in stems] if options.raw else []
        mask_output = stem.with_name(f"{stem.name}-mask.png") if options.save_mask else None
        if holes is not None:
            mask_output = (holes / relative).with_name(f"{relative.name}.png")
        jobs.append(Job(picture, str(relative), find_mask(picture), outputs, raw, mask_output))
    written = Counter(path for job in jobs for path in job.files)
    double = sorted(str(path) for path, count in written.items() if count > 1)
    if double:
        raise ValueError(
            f"{len(double)} files would be written twice, the first {double[0]}: rename pictures of {source}"
        )
    read = {
        entry.source.resolve()
        for job in jobs
        for entry in (job.picture, job.mask)
        if isinstance(entry, Picture) and isinstance(entry.source, Path)
    }
    lost = sorted(str(path) for path in [*written, *([sheet] if sheet else [])] if path.resolve() in read)
    if lost:
        raise ValueError(f"--output {output} would write over the input {lost[0]}: give another folder or name")
    return jobs


def _mask_finder(
    mask: str, pictures: Sequence[Picture], *, in_order: bool
) -> Callable[[Picture], Picture | MaskGenerator | None]:
    path = Path(mask)
    if not path.exists():
        if mask not in MASKS:
            raise ValueError(
                f"--mask {mask} is neither a file, a folder, a zip nor a generator; there are {', '.join(main_names())}"
            )
        made = make(mask)
        return lambda _: made
    found = list_pictures(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        return lambda _: found[0]
    if in_order:
        if len(found) < len(pictures):
            raise ValueError(
                f"--mask {mask} has {len(found)} masks for {len(pictures)} pictures: give at least as many"
            )
        by_place = dict(zip(pictures, found, strict=False))
        return lambda picture: by_place[picture]
    by_stem: dict[PurePosixPath, Picture] = {}
    top, top_of_pictures = top_folder(found), top_folder(pictures)
    for entry in found:
        other = by_stem.setdefault(_relative(entry, top), entry)
        if other is not entry:
            raise ValueError(f"--mask {mask} has two masks for one picture, {other.name} and {entry.name}: remove one")
    return lambda picture: by_stem.get(_relative(picture, top_of_pictures))


def _relative(picture: Picture, top: str) -> PurePosixPath:
    """The path in the folder or zip, without the suffix and without a top folder that holds all of a zip."""
    return PurePosixPath(picture.name.removeprefix(top).lstrip("/")).with_suffix("")  # a zip may hold absolute names
