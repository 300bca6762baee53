"""One pass over the files of a mask set: the numbers of every image, and the features that distances between sets need."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from rad.evaluation import metrics
from rad.evaluation.layout import MaskResults
from rad.evaluation.results import Result
from rad.images.codecs import open_image, to_tensor
from rad.images.sources import ImageFile
from rad.masks.files import read_mask
from rad.masks.sets import Entry

if TYPE_CHECKING:
    from rad.evaluation.features import Extractor

Element = TypeVar("Element")


@dataclass(frozen=True)
class _Truth:
    """What an image should be, and where it was filled: (3,H,W) in [0,1], (1,H,W), and the box of the crop."""

    image: Tensor
    hole: Tensor
    box: metrics.Box


@dataclass
class _Item:
    """A file that is being scored."""

    method: str
    name: str
    sample: int
    file: Path
    truth: _Truth
    image: Tensor
    raw: Tensor | None
    values: dict[str, float] = field(default_factory=dict)
    errors: tuple[float, float] = (0.0, 0.0)
    """Mean errors of known and of filled pixels, in grey levels; NaN where there are none."""


@dataclass
class Scored:
    """The numbers of one mask set.

    Args:
        results: in the order of methods, images and samples.
        features: by extractor (its number), region ("whole", "crop") and method: the features (D) by image and sample.
        crops: by extractor: the features of the crops of the original images.
        holes: what stands for the hole of each image, for the hash of the set.
        digests: of the pixels of each reference.
        notes: what was left out and why.
    """

    results: list[Result] = field(default_factory=list)
    features: dict[tuple[int, str, str], dict[tuple[str, int], Tensor]] = field(default_factory=dict)
    crops: dict[int, metrics.ReferenceFeatures] = field(default_factory=dict)
    holes: dict[str, Entry] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def has_features(extractor: "Extractor") -> bool:
    """Whether any distance between sets is computed from it."""
    return extractor.frechet_name is not None or extractor.kernel_name is not None


def digest(image: Tensor) -> str:
    """What stands for the 8-bit pixels of an image (3,H,W) in [0,1]."""
    pixels = image.mul(255).round().to(torch.uint8).contiguous().numpy()
    return blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()


def grouped(elements: Iterable[Element], shape: Callable[[Element], object], size: int) -> Iterator[list[Element]]:
    """Batches of at most `size` elements of one shape."""
    groups: dict[object, list[Element]] = {}
    for element in elements:
        groups.setdefault(shape(element), []).append(element)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def reference_features(
    originals: Mapping[str, ImageFile], extractors: Sequence["Extractor"], *, batch_size: int, notes: list[str]
) -> tuple[dict[int, metrics.ReferenceFeatures], dict[str, str]]:
    """Features of whole original images by the number of the extractor, and the digest of each image.

    What cannot be read is left out with a note.
    """
    found: dict[int, dict[str, Tensor]] = {n: {} for n, extractor in enumerate(extractors) if has_features(extractor)}
    digests: dict[str, str] = {}
    names = sorted(originals)
    for start in range(0, len(names), batch_size):
        loaded: dict[str, Tensor] = {}
        for name in names[start : start + batch_size]:
            try:
                loaded[name] = to_tensor(originals[name].open())
            except (ValueError, OSError) as error:
                notes.append(f"reference {name} is left out: {error}")
                continue
            digests[name] = digest(loaded[name])
        for group in grouped(loaded, lambda name: loaded[name].shape, batch_size):  # noqa: B023, used at once
            images = torch.stack([loaded[name] for name in group])
            for number, features in found.items():
                features.update(zip(group, extractors[number].features(images).cpu(), strict=True))
    return _as_references(found), digests


def _as_references(found: Mapping[int, Mapping[str, Tensor]]) -> dict[int, metrics.ReferenceFeatures]:
    """Of features (D) by extractor and name."""
    return {
        number: metrics.ReferenceFeatures(torch.stack([some[name] for name in sorted(some)]), sorted(some))
        for number, some in found.items()
        if some
    }


def score(
    files: MaskResults,
    references: Mapping[str, ImageFile],
    extractors: Sequence["Extractor"],
    *,
    batch_size: int,
    on_file: Callable[[], None],
) -> Scored:
    """Score all files of a mask set. What cannot be used costs its own numbers alone, and leaves a note.

    The files of all methods on an image are scored together, for they share its reference and its crop.

    Args:
        on_file: called after every file, scored or not.
    """
    scored = Scored()
    errors: dict[str, list[tuple[float, float]]] = {}
    crops: dict[int, dict[str, Tensor]] = {n: {} for n, extractor in enumerate(extractors) if has_features(extractor)}
    taken = {label: {path for one in some.values() for path in one.values()} for label, some in files.files.items()}
    for names in _blocks(files, batch_size):
        truths: dict[str, _Truth] = {}
        items = []
        for name in names:
            truth = _read_truth(files, references, name, scored)
            if truth is not None:
                truths[name] = truth
            for label, some in files.files.items():
                for sample, path in sorted(some.get(name, {}).items()):
                    if truth is not None:
                        items += _read_item(label, name, sample, path, truth, scored, taken[label])
                    on_file()
        _score_pixels(items, batch_size)
        for number, extractor in enumerate(extractors):
            _score_network(number, extractor, items, batch_size, scored)
            if number in crops:
                for group in grouped(truths, lambda name: _size(truths[name].box), batch_size):  # noqa: B023
                    images = torch.stack([metrics.crop(truths[name].image, truths[name].box) for name in group])
                    crops[number].update(zip(group, extractor.features(images).cpu(), strict=True))
        for item in items:
            errors.setdefault(item.method, []).append(item.errors)
            reference = references[item.name]
            scored.results.append(
                Result(
                    mask=files.name,
                    method=item.method,
                    image=item.name,
                    sample=item.sample,
                    file=item.file,
                    reference=reference.source if isinstance(reference.source, Path) else reference,
                    hole=files.holes[item.name],
                    values=item.values,
                )
            )
    scored.notes += _on_known(files.name, errors)
    scored.crops = _as_references(crops)
    order = {label: number for number, label in enumerate(files.files)}
    scored.results.sort(key=lambda result: (order[result.method], result.image, result.sample))
    return scored


def _on_known(mask: str, errors: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    """Remarks on known pixels that differ from the original, by the errors of known and filled pixels of each method."""
    notes = []
    for method, some in errors.items():
        changed = [(known, filled) for known, filled in some if known > 0]
        if not changed:
            continue
        known, filled = (sum(numbers) / len(changed) for numbers in zip(*changed, strict=True))
        notes.append(
            f"{mask}: known pixels of {len(changed)} of {len(some)} results of {method} differ from the original, by "
            f"{known:.3g} grey levels on average"
        )
        if known > filled:
            notes.append(
                f"{mask}: ARE THE MASKS INVERTED? Known pixels of {method} differ more from the original than filled ones "
                f"({known:.3g} against {filled:.3g} grey levels): look at --mask_polarity"
            )
    return notes


def _blocks(files: MaskResults, batch_size: int) -> Iterator[list[str]]:
    """Images in runs that have about `batch_size` files together."""
    block, count = [], 0
    for name in files.images:
        block.append(name)
        count += sum(len(some.get(name, {})) for some in files.files.values())
        if count >= batch_size:
            yield block
            block, count = [], 0
    if block:
        yield block


def _read_truth(files: MaskResults, references: Mapping[str, ImageFile], name: str, scored: Scored) -> _Truth | None:
    try:
        if name not in references:
            raise ValueError("there is no reference of this name")
        image = to_tensor(references[name].open())
        hole = read_mask(files.holes[name], size=(image.shape[-2], image.shape[-1]))
        truth = _Truth(image, hole, metrics.crop_box(hole))
    except (ValueError, OSError) as error:
        scored.notes.append(f"{files.name}: image {name} is left out: {error}")
        return None
    scored.holes[name], scored.digests[name] = Entry.from_hole(name, hole), digest(image)
    return truth


def _read_item(
    method: str, name: str, sample: int, path: Path, truth: _Truth, scored: Scored, taken: Set[Path]
) -> list[_Item]:
    """`taken`: files that are results of the method, whatever they are called."""
    try:
        item = _Item(method, name, sample, path, truth, _read(path, truth), raw=None)
    except (ValueError, OSError) as error:
        scored.notes.append(f"{method}: a file is left out: {error}")
        return []
    raw = path.with_name(f"{path.stem}-raw{path.suffix}")
    try:
        item.raw = _read(raw, truth) if raw.is_file() and raw not in taken else None
    except (ValueError, OSError) as error:
        scored.notes.append(f"{method}: a raw output is left out: {error}")
    return [item]


def _read(path: Path, truth: _Truth) -> Tensor:
    image = to_tensor(open_image(path, name=str(path)))
    if image.shape != truth.image.shape:
        (height, width), (high, wide) = image.shape[1:], truth.image.shape[1:]
        raise ValueError(f"{path} is {width}x{height} pixels (width x height), its reference {wide}x{high}")
    return image


def _size(box: metrics.Box) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _put(items: Sequence[_Item], name: str, values: Tensor) -> None:
    """What is not defined, such as the seam of a hole without border, is left out."""
    for item, value in zip(items, values.tolist(), strict=True):
        if math.isfinite(value):
            item.values[name] = value


def _whole(items: Sequence[_Item], batch_size: int) -> Iterator[tuple[list[_Item], Tensor, Tensor]]:
    """Batches with their results and references (B,3,H,W)."""
    for group in grouped(items, lambda item: item.image.shape, batch_size):
        yield group, torch.stack([item.image for item in group]), torch.stack([item.truth.image for item in group])


def _crops(items: Sequence[_Item], batch_size: int) -> Iterator[tuple[list[_Item], Tensor, Tensor]]:
    """The same of the crops."""
    for group in grouped(items, lambda item: _size(item.truth.box), batch_size):
        yield (
            group,
            torch.stack([metrics.crop(item.image, item.truth.box) for item in group]),
            torch.stack([metrics.crop(item.truth.image, item.truth.box) for item in group]),
        )


def _score_pixels(items: Sequence[_Item], batch_size: int) -> None:
    for group, image, reference in _whole(items, batch_size):
        hole = torch.stack([item.truth.hole for item in group])
        _put(group, "psnr", metrics.psnr(image, reference))
        _put(group, "psnr-hole", metrics.psnr(image, reference, hole))
        _put(group, "ssim", metrics.ssim(image, reference))
        _put(group, "seam", metrics.seam(image, reference, hole))
        known, inside = metrics.known_error(image, reference, hole), metrics.hole_error(image, reference, hole)
        for item, *errors in zip(group, known.tolist(), inside.tolist(), strict=True):
            item.errors = errors[0], errors[1]
        for item in group:
            if item.raw is not None:
                known = metrics.known_error(item.raw[None], item.truth.image[None], item.truth.hole[None])
                _put([item], "known-raw", known)
    for group, image, reference in _crops(items, batch_size):
        _put(group, "psnr-crop", metrics.psnr(image, reference))
        _put(group, "ssim-crop", metrics.ssim(image, reference))


def _score_network(
    number: int, extractor: "Extractor", items: Sequence[_Item], batch_size: int, scored: Scored
) -> None:
    distance = extractor.distance_name
    for region, batches in (("whole", _whole), ("crop", _crops)):
        for group, image, reference in batches(items, batch_size):
            if distance is not None:
                name = distance if region == "whole" else metrics.cropped(distance)
                _put(group, name, extractor.distance(image, reference))
            if has_features(extractor):
                for item, features in zip(group, extractor.features(image).cpu(), strict=True):
                    some = scored.features.setdefault((number, region, item.method), {})
                    some[item.name, item.sample] = features
    if distance is None:
        return
    samples: dict[tuple[str, str], list[_Item]] = {}
    for item in items:
        samples.setdefault((item.method, item.name), []).append(item)
    for some in samples.values():
        if len(some) > 1:
            images = torch.stack([item.image for item in some])
            value = metrics.diversity(extractor.distance, images, batch_size=batch_size)
            _put(some, metrics.renamed(distance, "diversity"), torch.full((len(some),), value, dtype=torch.float64))
