"""What `rad sample` fills, as files: images, masks, methods, and the names of the results. Nothing is computed here."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args
from unicodedata import normalize

import numpy as np
from PIL import Image

from rad.cli.names import METHODS, Solver, Spacing
from rad.cli.sample.options import GUIDES, SampleOptions
from rad.cli.sample.pairing import MaskSource, NoMask, check_not_itself, find_masks, mask_name_of, without_masks
from rad.console import did_you_mean
from rad.images.sources import ImageFile, holds_one, is_source, list_images, stems
from rad.keys import check_seed
from rad.masks.reading.hole import LoadedHole, load_hole
from rad.models.settings.preferred import OF_SAMPLER, Preferred, takes_thin_steps

LIMITS = {"average": (1, 10**4), "adapt": (0, 10**5), "thin_steps": (1, 10**5)}
"""Lowest and highest value of the words of a label that are whole numbers."""


@dataclass(frozen=True)
class Job:
    """An image to fill, and the files to write.

    Args:
        identity: name of the results, see `rad.images.sources.stems`.
        mask: None: there is none for the image.
        outputs, raw: a file for each sample.
        prompt: what to show, for text-to-image models.
        overlay: written for --preview_masks only.
    """

    image: ImageFile
    identity: str
    mask: MaskSource
    outputs: list[Path]
    raw: list[Path]
    mask_output: Path | None
    prompt: str = ""
    overlay: Path = Path()

    @property
    def files(self) -> list[Path]:
        """All files to write."""
        return [*self.outputs, *self.raw, *([self.mask_output] if self.mask_output else [])]

    @property
    def name(self) -> str:
        """Path of the image in its source, with its suffix; the key of its noise and mask.

        As in `identity`, a top folder that holds all of an archive is left out.
        """
        return str(PurePosixPath(self.identity).parent / PurePosixPath(self.image.name).name)

    def read(self, options: SampleOptions) -> tuple[Image.Image, LoadedHole]:
        """The image in RGB, with the new pixels of --extend, and its hole, with the notes and warnings about the mask file.

        Raises ValueError as `ImageFile.open`, and without a mask.
        """
        image, extension = self.image.open(), options.extension
        loaded = self._load_hole(image, options)
        if extension is None:
            return image, loaded
        return extension.image(image), replace(loaded, hole=extension.hole(loaded.hole))

    def _load_hole(self, image: Image.Image, options: SampleOptions) -> LoadedHole:
        if isinstance(self.mask, NoMask):
            return LoadedHole(np.zeros((image.height, image.width), np.float32))
        if self.mask is None:
            wanted = "one of the same name, or use --mask_by order or --mask_pattern"
            if options.mask_pattern is not None:
                wanted = f"{mask_name_of(self.image, options.mask_pattern)} by --mask_pattern"
            raise ValueError(f"no mask for {self.image.name}: expected {wanted}")
        if isinstance(self.mask, ImageFile):
            return load_hole(self.mask.file(), options.mask_format, image=image, name=str(self.mask))
        from rad.rng import generator

        hole = self.mask([generator(options.seed, "mask", self.name)], image.height, image.width)
        return LoadedHole(hole[0, 0].numpy())


@dataclass(frozen=True)
class Label:
    """A method as given on the command line, such as "ddnm", "ddnm@50" or "rad@10,solver=ddim,spacing=quad".

    Args:
        steps, budget: number after "@": of steps, or of network calls ("ddnm@100nfe").
        solver, spacing, eta, strength, average, adapt, thin_steps: words after commas; None: the options of the whole run.
    """

    text: str
    method: str
    steps: int | None = None
    budget: int | None = None
    solver: Solver | None = None
    spacing: Spacing | None = None
    eta: float | None = None
    strength: float | None = None
    average: int | None = None
    adapt: int | None = None
    thin_steps: int | None = None

    @classmethod
    def of(cls, text: str) -> "Label":
        """Parse a label. `mine.py:Mine@50` runs the file and becomes `mine@50`.

        Raises:
            ValueError: an unknown method, number or word.
        """
        if ".py:" in text:
            text = _named(text)
        call, *words = text.split(",")
        method, at, amount = call.partition("@")
        if method not in METHODS:
            from rad.methods.registry import find

            find(method)
        number = re.fullmatch(r"0*([1-9]\d*)(nfe)?", amount, re.ASCII)
        if at and number is None:
            raise ValueError(f"{text!r}: give {method}@50 for 50 steps or {method}@100nfe for 100 network calls")
        amounts = {"budget" if number[2] else "steps": int(number[1])} if number else {}
        return cls(text, method, **amounts, **_sampler_words(text, words))

    @classmethod
    def all_of(cls, options: SampleOptions) -> "list[Label]":
        """The labels of --method, each once. Raises ValueError as `of`."""
        return list(dict.fromkeys(cls.of(text) for text in options.method or ["rad"]))

    def given(self, options: SampleOptions) -> dict[str, Any]:
        """Solver, spacing and eta of the label, otherwise of the options."""
        return {name: self._given(name, options) for name in ("solver", "spacing", "eta")}

    def completed(self, options: SampleOptions, preferred: Preferred) -> "Label":
        """With the checkpoint's settings that hold for the method, where neither the label nor the options give one."""
        given = {name: self._given(name, options) for name in OF_SAMPLER}
        budget = self.budget is not None or options.budget_nfe is not None
        strength = self.given_strength(options)
        chosen = preferred.complete(Preferred(**given), method=self.method, budget=budget, strength=strength)
        return replace(self, **{name: getattr(chosen, name) for name, value in given.items() if value is None})

    def length(self, options: SampleOptions) -> tuple[int | None, int | None]:
        """(steps, budget) of the label if it has one of them, otherwise of the options."""
        own = self.steps is not None or self.budget is not None
        return (self.steps, self.budget) if own else (options.steps, options.budget_nfe)

    def given_strength(self, options: SampleOptions) -> float:
        """Strength of the label, otherwise of the options."""
        return self._given("strength", options)

    def given_average(self, options: SampleOptions) -> int:
        """Samples of a mean, of the label, otherwise of the options."""
        return self._given("average", options) or 1

    def given_adapt(self, options: SampleOptions) -> int:
        """Steps of the adaptation, of the label, otherwise of the options; 0: none."""
        return self._given("adapt", options)

    def given_thin_steps(self, options: SampleOptions) -> int | None:
        """Steps of thin windows, of the label, otherwise of the options; None where they have no effect."""
        return None if self.ignores_thin_steps(options) else self._given("thin_steps", options)

    def ignores_thin_steps(self, options: SampleOptions) -> bool:
        """Whether steps of thin windows are given without effect."""
        takes = takes_thin_steps(self.method, self.given_strength(options))
        return not takes and self._given("thin_steps", options) is not None

    def _given(self, name: str, options: SampleOptions) -> Any:
        return getattr(options if getattr(self, name) is None else self, name)


def _named(text: str) -> str:
    """`mine.py:Mine@50` as `mine@50`; registers the method."""
    from rad.methods.own import split_file
    from rad.methods.registry import find
    from rad.sampling.method import name_of

    file, rest = split_file(text)
    return name_of(find(file)) + rest if file else text


def _sampler_words(text: str, words: Sequence[str]) -> dict[str, Any]:
    """`["solver=ddim", "eta=0"]` as {"solver": "ddim", "eta": 0.0}."""
    values: dict[str, Any] = {name: value for name, _, value in (word.partition("=") for word in words)}
    if len(values) < len(words) or not values.keys() <= {*LIMITS, "solver", "spacing", "eta", "strength"}:
        raise ValueError(
            f"{text!r}: after a comma give solver=, spacing=, eta=, strength=, average=, adapt= or thin_steps=, each once, "
            "as in rad@10,solver=ddim"
        )
    for name, choices in {"solver": get_args(Solver), "spacing": get_args(Spacing)}.items():
        if values.get(name, choices[0]) not in choices:
            hint = did_you_mean(values[name], choices)
            raise ValueError(f"{text!r}: {name} is {values[name]!r}{hint}; allowed are {', '.join(choices)}")
    for name in values.keys() & {"eta", "strength"}:
        try:
            values[name] = float(values[name])
        except ValueError:
            raise ValueError(f"{text!r}: {name} is {values[name]!r}; allowed are 0 to 1") from None
    for name in values.keys() & LIMITS.keys():
        low, high = LIMITS[name]
        number = re.fullmatch(r"\d{1,6}", values[name], re.ASCII)
        if number is None or not low <= int(number[0]) <= high:
            raise ValueError(f"{text!r}: {name} is {values[name]!r}; allowed are {low} to {high}")
        values[name] = int(number[0])
    return values


@dataclass(frozen=True)
class MethodRun:
    """The jobs of one method on one mask."""

    mask: str
    label: Label
    folder: Path
    jobs: list[Job]


def parse_settings(words: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parse `["repaint.jump_length=5"]` into {"repaint": {"jump_length": "5"}}, for the methods in `names`."""
    settings: dict[str, dict[str, str]] = {name: {} for name in names}
    for word in words:
        left, equals, value = word.partition("=")
        name, dot, key = left.partition(".")
        if not (equals and dot and key):
            raise ValueError(f"--set {word}: expected METHOD.SETTING=VALUE, such as repaint.jump_length=5")
        if name not in settings:
            hint = did_you_mean(name, names)
            raise ValueError(f"--set {word}: method {name!r}{hint} is not among those of --method, {', '.join(names)}")
        settings[name][key] = value
    return settings


def make_plan(options: SampleOptions, labels: Sequence[Label]) -> list[MethodRun]:
    """Images, masks and files for each method and mask. Raises ValueError for options that do not fit together."""
    check_seed(options.seed, "--seed")
    output, names = Path(options.output), {mask: mask_name(mask) for mask in options.mask or [""]}
    several = options.tree or len(labels) > 1
    if several and output.suffix.lower() == ".png" and not output.is_dir():
        raise ValueError(f"--output {output}: several methods or masks write a folder each; give a folder")
    if len(set(names.values())) < len(names):
        raise ValueError(f"--mask {' '.join(names)}: two masks of one name would share a folder: rename one")
    for kind in GUIDES:
        source = getattr(options, f"{kind}_image")
        if source is not None and not is_source(source):
            raise ValueError(f"--{kind}_image {source}: no such file or folder")
    images, runs = list_images(options.image), []
    for mask, name in names.items():
        root, inputs = output / name if options.tree else output, _inputs(options, mask, images)
        for label in labels:
            folder = root / label.text if several else output
            runs.append(MethodRun(name, label, folder, _make_jobs(options, inputs, folder)))
    _check_files(options, runs)
    return runs


def contact_sheets(runs: Sequence[MethodRun]) -> list[Path]:
    """The contact sheet of each mask, for several methods."""
    return list(dict.fromkeys(run.folder.parent / "methods.png" for run in runs if run.label != runs[0].label))


def select_part(runs: Sequence[MethodRun], part: tuple[int, int], size: int) -> list[MethodRun]:
    """The jobs of --shard `part` (number, count): blocks of `size` jobs go to the parts in turn, over all runs."""
    number, count = part
    kept, before = [], 0
    for run in runs:
        blocks = [run.jobs[start : start + size] for start in range(0, len(run.jobs), size)]
        mine = [block for place, block in enumerate(blocks, before) if place % count == number - 1]
        kept.append(replace(run, jobs=[job for block in mine for job in block]))
        before += len(blocks)
    return kept


def mask_name(mask: str) -> str:
    """Name of a --mask in the results: of the file (without suffix), folder or generator; "extend" without a mask."""
    if not mask:
        return "extend"
    path = Path(mask)
    if not is_source(mask):
        return mask
    return path.resolve().name if path.is_dir() else path.stem


def read_prompts(path: str) -> dict[str, str]:
    """The prompts in a JSON file, by the name of the image, with its folder in the source or without."""
    try:
        prompts = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--prompts {path} cannot be read ({error}): give a JSON file") from None
    if not (isinstance(prompts, dict) and prompts and all(isinstance(prompt, str) for prompt in prompts.values())):
        raise ValueError(f'--prompts {path} has to hold an object, as {{"cat.png": "a cat", "dog.png": "a dog"}}')
    return {normalize("NFC", name): prompt for name, prompt in prompts.items()}


def _make_jobs(options: SampleOptions, inputs: Sequence[tuple[ImageFile, str, MaskSource]], output: Path) -> list[Job]:
    """A job for each image, with its files in `output`; the masks of a tree lie beside it."""
    into_file = _check_output(options, output)
    jobs, prompts = [], {} if options.prompts is None else read_prompts(options.prompts)
    for image, identity, mask in inputs:
        stem = str(output.with_suffix("") if into_file else output / identity)
        samples = [stem] if options.num_samples == 1 else [f"{stem}-{n}" for n in range(options.num_samples)]
        outputs = [Path(f"{sample}.png") for sample in samples]
        raw = [Path(f"{sample}-raw.png") for sample in samples] if options.raw else []
        mask_output = Path(f"{stem}-mask.png") if options.save_mask else None
        if options.tree:
            mask_output = output.parent / "masks" / f"{identity}.png"
        name = normalize("NFC", image.name)
        overlay = Path(f"{output.parent / identity if options.tree else stem}-overlay.png")
        prompt = prompts.get(name, prompts.get(PurePosixPath(name).name, options.prompt or None))
        if prompt is None and prompts:
            raise ValueError(f"--prompts {options.prompts} has none for {image.name}: add it, or give --prompt")
        jobs.append(Job(image, identity, mask, outputs, raw, mask_output, prompt or "", overlay))
    return jobs


def _check_output(options: SampleOptions, output: Path) -> bool:
    """Whether `output` is the file of a single result. Raises ValueError for a place that cannot take the results."""
    source, is_folder = Path(options.image), output.is_dir()
    single, suffix = holds_one(source), output.suffix.lower()
    whole = output == Path(options.output)  # not the folder of a method, as "rad@10,eta=0.5"
    into_file = single and whole and not options.tree and suffix != "" and not is_folder
    folder, problem = output.parent if into_file else output, ""
    if not single and suffix == ".png" and not is_folder:
        problem = f"{source} holds several images: give a folder"
    elif into_file and suffix != ".png":
        problem = "results are PNG files, which keep every pixel: end the name in .png"
    elif source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        problem = f"it lies in {source}, and would be an input of the next run: give another folder"
    elif any(path.is_file() for path in (folder, *folder.parents)):
        problem = f"there is a file where the folder {folder} has to be: give another folder"
    if problem:
        raise ValueError(f"--output {output} cannot be used: {problem}")
    return into_file


def _check_files(options: SampleOptions, runs: Sequence[MethodRun]) -> None:
    """Raise ValueError where two results of a run share a file, or a result would replace an input."""
    sheets = contact_sheets(runs)
    written = set(sheets)
    for run in runs:
        counts = Counter(path for job in run.jobs for path in ([job.overlay] if options.preview_masks else job.files))
        double = sorted(str(path) for path, count in counts.items() if count > 1)
        if double:
            raise ValueError(
                f"{len(double)} files would be written twice, the first {double[0]}: rename images of {options.image}"
            )
        written |= counts.keys()
    entries = (entry for run in runs for job in run.jobs for entry in (job.image, job.mask))
    sources = {entry.source for entry in entries if isinstance(entry, ImageFile) and isinstance(entry.source, Path)}
    read = {os.path.realpath(source) for source in sources}  # `Path.resolve` fails for a link to itself
    _check_lengths(Path(options.output), written)
    lost = sorted(str(path) for path in written if os.path.realpath(path) in read)
    if lost:
        raise ValueError(f"--output {options.output} would write over the input {lost[0]}: give another folder or name")
    if folders := [sheet for sheet in sheets if sheet.is_dir()]:
        raise ValueError(f"the contact sheet {folders[0]} cannot be written, for it is a folder: remove it")


def _check_lengths(output: Path, files: Iterable[Path]) -> None:
    """Raise ValueError for names that the file system of `output` does not take, before anything is computed."""
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())
    try:
        longest, longest_path = (os.pathconf(existing, name) for name in ("PC_NAME_MAX", "PC_PATH_MAX"))
    except (AttributeError, OSError, ValueError):  # not on Windows
        longest, longest_path = 255, 4096
    start = len(os.fsencode(output.absolute())) - len(os.fsencode(output))
    for path in files:
        length = max(len(os.fsencode(part)) for part in path.parts)
        if length > longest or start + len(os.fsencode(path)) >= longest_path:
            raise ValueError(
                f"the result {path.name[:40]}... would have a name of {length} bytes or too long a path; this disk allows "
                f"{longest} bytes: rename the image, or leave out --raw and --save_mask"
            )


def _inputs(options: SampleOptions, mask: str, images: Sequence[ImageFile]) -> list[tuple[ImageFile, str, MaskSource]]:
    """(Image, name of its results, mask) of at most --limit images; only lists of names are read."""
    names = stems(images)
    masks = find_masks(mask, images, names, pattern=options.mask_pattern, in_order=options.mask_by == "order")
    inputs = without_masks(list(zip(images, names, masks, strict=True)))
    if options.mask_channel != "alpha":
        check_not_itself(inputs, mask)
    count = len(inputs) if options.limit is None else min(options.limit, len(inputs))
    return [inputs[number * len(inputs) // count] for number in range(count)]  # evenly, to cover all folders
