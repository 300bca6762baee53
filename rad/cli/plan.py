"""What is to be filled, as files: images, masks, methods, and the names of what will be written; nothing is computed here."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from torch import Tensor

from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.images.sources import ImageFile, by_stem, holds_one, is_source, list_images, stems
from rad.masks import MaskGenerator
from rad.masks.files import read_mask
from rad.masks.shapes import MASKS, main_names, make
from rad.rng import generator


@dataclass(frozen=True)
class Job:
    """An image, where its mask comes from, and the files to be written: (samples, raw samples, mask).

    `identity`: the name of its results, see `rad.images.sources.stems`. `prompt`: what to show, for models that take text.
    """

    image: ImageFile
    identity: str
    mask: ImageFile | MaskGenerator | None
    outputs: list[Path]
    raw: list[Path]
    mask_output: Path | None
    prompt: str = ""

    @property
    def files(self) -> list[Path]:
        """All files to be written."""
        return [*self.outputs, *self.raw, *([self.mask_output] if self.mask_output else [])]

    @property
    def name(self) -> str:
        """The identity of the image for masks and noise: its file name, wherever it lies."""
        return PurePosixPath(self.image.name).name

    def hole(self, size: tuple[int, int], options: argparse.Namespace) -> Tensor:
        """(1,H,W) in [0,1], 1 = fill, for an image of that (height, width)."""
        if self.mask is None:
            raise ValueError(
                f"no mask for {self.image.name}: expected one of the same name; --mask_by order takes them in order"
            )
        if isinstance(self.mask, ImageFile):
            return read_mask(self.mask.file(), polarity=options.mask_polarity, size=size)
        return self.mask([generator(options.seed, "mask", self.name)], *size)[0]


Input = tuple[ImageFile, str, ImageFile | MaskGenerator | None]
"""An image, the name of its results, and where its mask comes from."""


@dataclass(frozen=True)
class Label:
    """A method as it is called on the command line, for example "ddnm", "ddnm@50" or "rad@10,solver=ddim,spacing=quad".

    Args:
        steps, budget: after "@", a number of steps, or of network calls ("ddnm@100nfe").
        solver, spacing, eta: after commas; None: those of the whole run.
    """

    text: str
    method: str
    steps: int | None = None
    budget: int | None = None
    solver: Solver | None = None
    spacing: Spacing | None = None
    eta: float | None = None

    @classmethod
    def of(cls, text: str) -> "Label":
        """A method's file, `mine.py:Mine@50`, is run and replaced by the method's name, `mine@50`.

        Raises:
            ValueError: an unknown method, what is not a number after "@", or an unknown word after a comma.
        """
        from rad.methods.own import split_file
        from rad.methods.registry import find
        from rad.sampling.method import name_of

        file, rest = split_file(text)
        if file:
            text = name_of(find(file)) + rest
        call, *words = text.split(",")
        method, at, amount = call.partition("@")
        find(method)
        number = amount.removesuffix("nfe")
        if at and not (number.isascii() and number.isdigit() and int(number) > 0):
            raise ValueError(f"{text!r}: give {method}@50 for 50 steps or {method}@100nfe for 100 network calls")
        own = _sampler_words(text, words)
        if not at:
            return cls(text, method, **own)
        amounts = {"budget": int(number)} if amount != number else {"steps": int(number)}
        return cls(text, method, **amounts, **own)

    def given(self, options: argparse.Namespace) -> dict[str, Any]:
        """Solver, spacing and eta that the user gives for this method: of the label, otherwise of all."""
        names = ("solver", "spacing", "eta")
        return {name: getattr(options if getattr(self, name) is None else self, name) for name in names}


def _sampler_words(text: str, words: Sequence[str]) -> dict[str, Any]:
    """`["solver=ddim", "eta=0"]` as {"solver": "ddim", "eta": 0.0}."""
    allowed = {"solver": get_args(Solver), "spacing": get_args(Spacing)}
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name in found or name not in (*allowed, "eta"):
            raise ValueError(
                f"{text!r}: after a comma give solver=, spacing= or eta=, each once, as in rad@10,solver=ddim"
            )
        if name in allowed and value not in allowed[name]:
            raise ValueError(f"{text!r}: {name} is {value!r}; allowed are {', '.join(allowed[name])}")
        try:
            found[name] = float(value) if name == "eta" else value
        except ValueError:
            raise ValueError(f"{text!r}: eta is {value!r}; allowed are 0 to 1") from None
    return found


@dataclass(frozen=True)
class MethodRun:
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

    cells: list[MethodRun]
    tree: bool
    sheets: list[Path]


def make_plan(options: argparse.Namespace, labels: Sequence[Label]) -> Plan:
    """Images, masks and files for each method and mask. Raises ValueError for whatever does not fit together."""
    output = Path(options.output)
    masks = list(dict.fromkeys(options.mask))
    tree = len(masks) > 1 or options.report
    images = list_images(options.image)
    if not tree and len(labels) == 1:
        jobs = plan(options, _inputs(options, masks[0], images), output)
        return Plan([MethodRun(masks[0], labels[0], output, jobs)], tree, [])
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
        inputs = _inputs(options, mask, images)
        sheet, holes = root / "methods.png" if sheets else None, root / "masks" if tree else None
        for label in labels:
            jobs = plan(options, inputs, root / label.text, sheet=sheet, holes=holes)
            cells.append(MethodRun(names[mask], label, root / label.text, jobs))
    return Plan(cells, tree, sheets)


def share(cells: Sequence[MethodRun], shard: tuple[int, int], size: int) -> list[MethodRun]:
    """Of all jobs, in blocks of `size` counted over all cells, every so-manieth block from a number on (1 is the first)."""
    number, count = shard
    kept, before = [], 0
    for cell in cells:
        blocks = [cell.jobs[start : start + size] for start in range(0, len(cell.jobs), size)]
        own = [block for place, block in enumerate(blocks, before) if place % count == number - 1]
        kept.append(replace(cell, jobs=[job for block in own for job in block]))
        before += len(blocks)
    return kept


def mask_name(mask: str) -> str:
    """What a mask of the command line is called: the name of the file (without suffix), folder or generator."""
    path = Path(mask)
    if not is_source(mask):
        return mask
    return path.resolve().name if path.is_dir() else path.stem


def plan(
    options: argparse.Namespace,
    inputs: Sequence[Input],
    output: Path,
    *,
    sheet: Path | None = None,
    holes: Path | None = None,
) -> list[Job]:
    """One job an image, with its mask and its files in `output`.

    Args:
        sheet: a further file that will be written.
        holes: folder for the masks; None: beside the results, where --save_mask asks for them.
    """
    source = Path(options.image)
    one = holds_one(source)
    if not one and output.suffix.lower() == ".png" and not output.is_dir():
        raise ValueError(f"--output {output}: {source} holds several images; give a folder")
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
    jobs, prompts = [], {} if options.prompts is None else read_prompts(options.prompts)
    for image, identity, mask in inputs:
        stem = output.with_suffix("") if into_file else output / identity
        stems = (
            [stem]
            if options.num_samples == 1
            else [stem.with_name(f"{stem.name}-{n}") for n in range(options.num_samples)]
        )
        outputs = [path.with_name(f"{path.name}.png") for path in stems]
        raw = [path.with_name(f"{path.name}-raw.png") for path in stems] if options.raw else []
        mask_output = stem.with_name(f"{stem.name}-mask.png") if options.save_mask else None
        if holes is not None:
            mask_output = holes / f"{identity}.png"
        prompt = prompts.get(image.name, prompts.get(PurePosixPath(image.name).name))
        if prompt is None and prompts and not options.prompt:
            raise ValueError(
                f"--prompts {options.prompts} has none for {image.name}: add it, or give --prompt for the rest"
            )
        jobs.append(Job(image, identity, mask, outputs, raw, mask_output, options.prompt if prompt is None else prompt))
    written = Counter(path for job in jobs for path in job.files)
    double = sorted(str(path) for path, count in written.items() if count > 1)
    if double:
        raise ValueError(
            f"{len(double)} files would be written twice, the first {double[0]}: rename images of {source}"
        )
    read = {
        entry.source.resolve()
        for job in jobs
        for entry in (job.image, job.mask)
        if isinstance(entry, ImageFile) and isinstance(entry.source, Path)
    }
    lost = sorted(str(path) for path in [*written, *([sheet] if sheet else [])] if path.resolve() in read)
    if lost:
        raise ValueError(f"--output {output} would write over the input {lost[0]}: give another folder or name")
    return jobs


def read_prompts(path: str) -> dict[str, str]:
    """A JSON file with the prompt of each image by its name, with the folder in the source or without."""
    try:
        prompts = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--prompts {path} cannot be read ({error}): give a JSON file") from None
    if not (isinstance(prompts, dict) and prompts and all(isinstance(prompt, str) for prompt in prompts.values())):
        raise ValueError(f'--prompts {path} has to hold an object, as {{"cat.png": "a cat", "dog.png": "a dog"}}')
    return prompts


def _inputs(options: argparse.Namespace, mask: str, images: Sequence[ImageFile]) -> list[Input]:
    """All images with their masks, or as many as --limit says; nothing is read but lists of names."""
    names = stems(images)
    given = list(zip(images, names, _find_masks(mask, names, in_order=options.mask_by == "order"), strict=True))
    if options.limit is None:
        return given
    count = min(options.limit, len(given))  # evenly spread, so that a class or folder is not left out
    return [given[number * len(given) // count] for number in range(count)]


def _find_masks(mask: str, names: Sequence[str], *, in_order: bool) -> Sequence[ImageFile | MaskGenerator | None]:
    """Where the mask of each name comes from; None where there is none."""
    if not is_source(mask):
        if mask not in MASKS:
            raise ValueError(
                f"--mask {mask} is neither a file, a folder, an archive nor a generator; "
                f"there are {', '.join(main_names())}"
            )
        return [make(mask)] * len(names)
    found = list_images(mask)
    if holds_one(mask):
        return [found[0]] * len(names)
    if in_order:
        if len(found) < len(names):
            raise ValueError(
                f"--mask {mask} has {len(found)} masks for {len(names)} images, of which each takes that of its number, with "
                "--limit too: give at least as many"
            )
        return found[: len(names)]
    named = by_stem(found, where=f"--mask {mask}", what="masks")
    return [named.get(name) for name in names]
