"""One pass over the files of a mask set: values of each image, and features for the distances between sets."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rad.evaluation.features.extractor import Extractor
from rad.evaluation.layout import MaskResults
from rad.evaluation.metrics import ReferenceFeatures, pixels
from rad.evaluation.metrics.columns import cropped, renamed
from rad.evaluation.results import Result
from rad.images.codecs import open_image
from rad.images.sources import ImageFile
from rad.images.tensors import round_to_uint8, to_tensor
from rad.masks.files import read_written_mask
from rad.masks.sets import Entry

Element = TypeVar("Element")
Features = dict[str, Tensor]
"""Features (D) by image name."""


@dataclass(frozen=True)
class _Truth:
    """The original (3,H,W) in [0,1], the hole (1,H,W), and the box of the crop."""

    image: Tensor
    hole: Tensor
    box: pixels.Box


@dataclass
class _Item:
    """A result file with its image; `errors`: mean errors of known and of hole pixels in grey levels."""

    method: str
    name: str
    sample: int
    file: Path
    truth: _Truth
    image: Tensor
    raw: Tensor | None = None
    values: dict[str, float] = field(default_factory=dict)
    errors: tuple[float, float] = (0.0, 0.0)


@dataclass
class Scored:
    """The values of one mask set.

    Args:
        results: sorted by method, image and sample.
        features: by extractor number, region ("whole", "crop") and method: features (D) by image and sample.
        crops: by extractor number: features of the crops of the originals.
        holes, digests: entries of the holes, and hash of the pixels of each reference.
        notes: omitted files, with the reason.
    """

    results: list[Result] = field(default_factory=list)
    features: dict[tuple[int, str, str], dict[tuple[str, int], Tensor]] = field(default_factory=dict)
    crops: dict[int, ReferenceFeatures] = field(default_factory=dict)
    holes: dict[str, Entry] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def has_features(extractor: Extractor) -> bool:
    """Whether any distance between sets uses it."""
    return extractor.frechet_name is not None or extractor.kernel_name is not None


def _digest(image: Tensor) -> str:
    """Hash of the 8-bit pixels of an image (3,H,W) in [0,1]."""
    pixels = round_to_uint8(image).contiguous().numpy()
    return blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()


def _batches(elements: Iterable[Element], shape: Callable[[Element], object], size: int) -> Iterator[list[Element]]:
    groups: dict[object, list[Element]] = {}
    for element in elements:
        groups.setdefault(shape(element), []).append(element)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _add_features(
    features: Mapping[int, Features], extractors: Sequence[Extractor], images: Mapping[str, Tensor], size: int
) -> None:
    for names in _batches(images, lambda name: images[name].shape, size):
        batch = torch.stack([images[name] for name in names])
        for number, known in features.items():
            known.update(zip(names, extractors[number].features(batch).cpu(), strict=True))


def _no_features(extractors: Sequence[Extractor]) -> dict[int, Features]:
    return {number: {} for number, extractor in enumerate(extractors) if has_features(extractor)}


def _as_references(features: Mapping[int, Features]) -> dict[int, ReferenceFeatures]:
    return {
        number: ReferenceFeatures(torch.stack([known[name] for name in sorted(known)]), sorted(known))
        for number, known in features.items()
        if known
    }


def reference_features(
    originals: Mapping[str, ImageFile], extractors: Sequence[Extractor], *, batch_size: int, notes: list[str]
) -> tuple[dict[int, ReferenceFeatures], dict[str, str]]:
    """Features of whole originals by extractor number, and the hash of each image; unreadable images leave a note."""
    features, digests = _no_features(extractors), {}
    names = sorted(originals)
    for start in range(0, len(names), batch_size):
        images: dict[str, Tensor] = {}
        for name in names[start : start + batch_size]:
            try:
                images[name] = to_tensor(originals[name].open())
            except (ValueError, OSError) as error:
                notes.append(f"reference {name} is left out: {error}")
                continue
            digests[name] = _digest(images[name])
        _add_features(features, extractors, images, batch_size)
    return _as_references(features), digests


def score(
    files: MaskResults,
    references: Mapping[str, ImageFile],
    extractors: Sequence[Extractor],
    *,
    batch_size: int,
    on_file: Callable[[], None],
) -> Scored:
    """Score all files of a mask set, with `on_file` after each; an unusable file only loses its values and leaves a note.

    Results of all methods on one image are scored together, since they share its reference and crop.
    """
    scored, crops = Scored(), _no_features(extractors)
    errors: dict[str, list[tuple[float, float]]] = {}
    taken = {label: {path for by in some.values() for path in by.values()} for label, some in files.files.items()}
    for names in _blocks(files, batch_size):
        truths: dict[str, _Truth] = {}
        items: list[_Item] = []
        for name in names:
            truth = _read_truth(files, references, name, scored)
            if truth is not None:
                truths[name] = truth
            for label, some in files.files.items():
                for sample, path in sorted(some.get(name, {}).items()):
                    if truth is not None:
                        item = _read_item(label, name, sample, path, truth, scored, taken[label])
                        items += [item] if item is not None else []
                    on_file()
        _score_pixels(items, batch_size)
        for number, extractor in enumerate(extractors):
            _score_network(number, extractor, items, batch_size, scored)
        cut = {name: pixels.crop(truth.image, truth.box) for name, truth in truths.items()}
        _add_features(crops, extractors, cut, batch_size)
        for item in items:
            errors.setdefault(item.method, []).append(item.errors)
            source = references[item.name].source
            original = source if isinstance(source, Path) else references[item.name]
            place = files.name, item.method, item.name, item.sample
            scored.results.append(Result(*place, item.file, original, files.holes[item.name], item.values))
    scored.notes += _known_pixel_notes(files.name, errors)
    scored.crops = _as_references(crops)
    order = {label: number for number, label in enumerate(files.files)}
    scored.results.sort(key=lambda result: (order[result.method], result.image, result.sample))
    return scored


def _known_pixel_notes(mask: str, errors: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    """Notes on changed known pixels, from the errors of known and hole pixels of each result."""
    notes = []
    for method, pairs in errors.items():
        changed = [pair for pair in pairs if pair[0] > 0]
        if not changed:
            continue
        known, filled = (sum(values) / len(changed) for values in zip(*changed, strict=True))
        notes.append(
            f"{mask}: known pixels of {len(changed)} of {len(pairs)} results of {method} differ from the original, by "
            f"{known:.3g} grey levels on average"
        )
        if known > filled:
            notes.append(
                f"{mask}: ARE THE MASKS INVERTED? Known pixels of {method} differ more from the original than filled pixels "
                f"({known:.3g} and {filled:.3g} grey levels): check --mask_polarity"
            )
    return notes


def _blocks(files: MaskResults, batch_size: int) -> Iterator[list[str]]:
    """Runs of images with about `batch_size` files in total."""
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
        hole = read_written_mask(files.holes[name], size=(image.shape[-2], image.shape[-1]))
        truth = _Truth(image, hole, pixels.crop_box(hole))
    except (ValueError, OSError) as error:
        scored.notes.append(f"{files.name}: image {name} is left out: {error}")
        return None
    scored.holes[name], scored.digests[name] = Entry.from_hole(name, hole), _digest(image)
    return truth


def _read_item(
    method: str, name: str, sample: int, path: Path, truth: _Truth, scored: Scored, taken: Set[Path]
) -> _Item | None:
    """`taken`: all result files of the method, even if named like raw outputs."""
    try:
        item = _Item(method, name, sample, path, truth, _read(path, truth))
    except (ValueError, OSError) as error:
        scored.notes.append(f"{method}: a file is left out: {error}")
        return None
    raw = path.with_name(f"{path.stem}-raw{path.suffix}")
    try:
        item.raw = _read(raw, truth) if raw.is_file() and raw not in taken else None
    except (ValueError, OSError) as error:
        scored.notes.append(f"{method}: a raw output is left out: {error}")
    return item


def _read(path: Path, truth: _Truth) -> Tensor:
    image = to_tensor(open_image(path, name=str(path)))
    if image.shape != truth.image.shape:
        (height, width), (high, wide) = image.shape[1:], truth.image.shape[1:]
        raise ValueError(f"{path} is {width}x{height} pixels (width x height), its reference {wide}x{high}")
    return image


def _put(items: Sequence[_Item], name: str, values: Tensor) -> None:
    """Store finite values; an undefined one, such as the seam of a hole without border, is left out."""
    for item, value in zip(items, values.tolist(), strict=True):
        if math.isfinite(value):
            item.values[name] = value


def _pairs(items: Sequence[_Item], region: str, batch_size: int) -> Iterator[tuple[list[_Item], Tensor, Tensor]]:
    """Batches with their results and references (B,3,H,W): the "whole" images or the "crop" of each."""
    boxes = [item.truth.box if region == "crop" else (0, 0, item.image.shape[1], item.image.shape[2]) for item in items]
    for group in _batches(zip(items, boxes, strict=True), lambda pair: _size(pair[1]), batch_size):
        images = torch.stack([pixels.crop(item.image, box) for item, box in group])
        yield (
            [item for item, _ in group],
            images,
            torch.stack([pixels.crop(item.truth.image, box) for item, box in group]),
        )


def _size(box: pixels.Box) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _score_pixels(items: Sequence[_Item], batch_size: int) -> None:
    for group, image, reference in _pairs(items, "whole", batch_size):
        hole = torch.stack([item.truth.hole for item in group])
        _put(group, "psnr", pixels.psnr(image, reference))
        _put(group, "psnr-hole", pixels.psnr(image, reference, hole))
        _put(group, "ssim", pixels.ssim(image, reference))
        _put(group, "seam", pixels.seam(image, reference, hole))
        known, filled = pixels.known_error(image, reference, hole), pixels.hole_error(image, reference, hole)
        for item, *errors in zip(group, known.tolist(), filled.tolist(), strict=True):
            item.errors = errors[0], errors[1]
        for item in group:
            if item.raw is not None:
                known = pixels.known_error(item.raw[None], item.truth.image[None], item.truth.hole[None])
                _put([item], "known-raw", known)
    for group, image, reference in _pairs(items, "crop", batch_size):
        _put(group, "psnr-crop", pixels.psnr(image, reference))
        _put(group, "ssim-crop", pixels.ssim(image, reference))


def _score_network(number: int, extractor: Extractor, items: Sequence[_Item], batch_size: int, scored: Scored) -> None:
    distance = extractor.distance_name
    for region in ("whole", "crop"):
        for group, image, reference in _pairs(items, region, batch_size):
            if distance is not None:
                name = distance if region == "whole" else cropped(distance)
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
            value = pixels.diversity(extractor.distance, images, batch_size=batch_size)
            _put(some, renamed(distance, "diversity"), torch.full((len(some),), value, dtype=torch.float64))
