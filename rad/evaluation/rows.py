"""Rows of the tables: means with intervals, distances between sets, and tests against the baseline."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from rad.evaluation.features.extractor import Extractor
from rad.evaluation.layout import MaskResults
from rad.evaluation.metrics import sets
from rad.evaluation.metrics.columns import cropped, renamed
from rad.evaluation.results import Cost, Interval, Metric, Result, Row
from rad.evaluation.scoring import Scored
from rad.evaluation.statistics import difference, holm, interval, set_interval
from rad.masks.sets import hash_entries
from rad.rng import key


@dataclass(frozen=True)
class Settings:
    """The parts of an evaluation that all mask sets share; remarks are appended to `notes`.

    `references` are features of all originals by extractor number; `digests`: hash of each original; `columns`: all metrics.
    """

    extractors: Sequence[Extractor]
    references: Mapping[int, sets.ReferenceFeatures]
    digests: Mapping[str, str]
    columns: Sequence[Metric]
    baseline: str
    seed: int
    notes: list[str]


def mask_rows(files: MaskResults, scored: Scored, settings: Settings) -> list[Row]:
    """The rows of one mask set, in the order of its methods."""
    by_method: dict[str, list[Result]] = {}
    for result in scored.results:
        by_method.setdefault(result.method, []).append(result)
    rows = []
    for label in files.files:
        if label in by_method:
            row = _image_row(files, label, by_method[label], scored, settings)
            rows.append(_with_sets(row, scored, settings))
        else:
            settings.notes.append(f"{files.name}: none of the files of {label} can be scored, so it has no row")
    return _with_differences(rows, by_method, settings)


def hash_json(content: object) -> str:
    """Sixteen hex digits of any JSON content; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _by_image(results: Iterable[Result], name: str) -> dict[str, float]:
    """A metric by image, averaged over samples, sorted by name."""
    values: dict[str, list[float]] = {}
    for result in results:
        if name in result.values:
            values.setdefault(result.image, []).append(result.values[name])
    return {image: sum(values[image]) / len(values[image]) for image in sorted(values)}


def _image_row(files: MaskResults, label: str, results: list[Result], scored: Scored, settings: Settings) -> Row:
    counts = dict(Counter(result.image for result in results))
    samples = max(counts.values())
    missing = sorted(set(scored.holes) - set(counts))
    if missing:
        settings.notes.append(
            f"{files.name}: {label} lacks {len(missing)} of {len(scored.holes)} images, such as {missing[0]}"
        )
    fewer = [image for image, count in counts.items() if count < samples]
    if fewer:
        settings.notes.append(
            f"{files.name}: {label} has fewer than {samples} samples of {len(fewer)} images, such as {fewer[0]}"
        )
    values = {}
    for metric in settings.columns:
        numbers = list(_by_image(results, metric.name).values())
        if 0 < len(numbers) < len(counts):
            settings.notes.append(
                f"{files.name}: {metric.title} is known for only {len(numbers)} of {len(counts)} images"
            )
        if numbers:
            seed = key(settings.seed, "interval", files.name, label, metric.name)
            values[metric.name] = interval(numbers, seed=seed)
    costs = files.costs.get(label, {})
    compared_with = settings.digests or {image: scored.digests[image] for image in counts}
    provenance = {
        "masks hash": hash_entries([scored.holes[image] for image in counts]),
        "references": str(len(compared_with)),
        "references hash": hash_json(compared_with),
    }
    return Row(
        mask=files.name,
        method=label,
        group=hash_json([provenance, counts, {metric.name: metric.provenance for metric in settings.columns}])[:8],
        images=len(counts),
        samples=samples,
        values=values,
        cost=_mean_cost([costs[image] for image in counts if image in costs]),
        missing=len(missing),
        provenance=provenance,
    )


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    def known(name: str) -> list[float]:
        return [value for cost in costs if (value := getattr(cost, name)) is not None]

    def mean(name: str) -> float | None:
        return sum(known(name)) / len(known(name)) if known(name) else None

    return Cost(mean("nfe"), mean("vjp"), mean("seconds"), max(known("peak_mib"), default=None))


def _with_sets(row: Row, scored: Scored, settings: Settings) -> Row:
    seed = key(settings.seed, "sets", row.mask, row.method)
    for number, whole in settings.references.items():
        extractor = settings.extractors[number]
        for region in ("whole", "crop"):
            features = scored.features[number, region, row.method]
            # Crops are compared with the crops of the row's own images: other holes give other crops.
            reference = whole if region == "whole" else scored.crops[number].of({image for image, _ in features})
            values = _set_values(extractor, features, reference, crop=region == "crop", seed=seed)
            row = replace(row, values=row.values | values)
            least = min(row.images, len(reference.features))
            if least < 2:
                settings.notes.append(f"{row.mask}: rows with fewer than two images have no distances between sets")
            elif least <= sets.NEIGHBOURS:
                settings.notes.append(
                    f"{row.mask}: rows with at most {sets.NEIGHBOURS} images have no precision and recall"
                )
            if 2 <= least <= whole.features.shape[1] and extractor.frechet_name is not None:
                settings.notes.append(
                    f"{extractor.frechet_name} has fewer images than features ({whole.features.shape[1]}) and depends on "
                    "their number: compare it within a group only"
                )
    return row


def _set_values(
    extractor: Extractor,
    by_sample: Mapping[tuple[str, int], Tensor],
    reference: sets.ReferenceFeatures,
    *,
    crop: bool,
    seed: int,
) -> dict[str, Interval]:
    """Distances of features (D) by image and sample from the references."""
    order = sorted(by_sample)
    images, features = [image for image, _ in order], torch.stack([by_sample[place] for place in order])
    least = min(len(set(images)), len(reference.features))
    values: dict[str, Interval] = {}

    def column(name: str) -> str:
        return cropped(name) if crop else name

    if extractor.frechet_name is not None and least >= 2:
        name, terms = column(extractor.frechet_name), sets.FrechetTerms(features, reference)
        value = sets.frechet_distance(features, reference)
        values[name] = set_interval(value, terms.distance, images, seed=key(seed, name), least=0)
    if extractor.kernel_name is not None and least >= 2:
        name, terms = column(extractor.kernel_name), sets.KernelTerms(features, reference, images)
        values[name] = set_interval(terms.whole, terms.distance, images, seed=key(seed, name))
    if extractor.frechet_name is not None and least > sets.NEIGHBOURS:
        numbers = {"precision": _precisions(features, reference, images)}
        if recalls := _recalls(features, reference, order):
            numbers["recall"] = recalls
        for kind, shares in numbers.items():
            name = column(renamed(extractor.frechet_name, kind))
            values[name] = interval(shares, seed=key(seed, name))
    return values


def _precisions(features: Tensor, reference: sets.ReferenceFeatures, images: list[str]) -> list[float]:
    inside: dict[str, list[float]] = {}
    for image, value in zip(images, sets.precise(features, reference, images).tolist(), strict=True):
        inside.setdefault(image, []).append(value)
    return [sum(values) / len(values) for values in inside.values()]


def _recalls(features: Tensor, reference: sets.ReferenceFeatures, order: list[tuple[str, int]]) -> list[float]:
    """For each reference the share of sample numbers that cover it; a set needs one sample per image."""
    covered = []
    for sample in sorted({number for _, number in order}):
        rows = [row for row, (_, number) in enumerate(order) if number == sample]
        if len(rows) > sets.NEIGHBOURS:
            covered.append(sets.recalled(features[rows], reference, [order[row][0] for row in rows]))
    return torch.stack(covered).mean(0).tolist() if covered else []


def _with_differences(rows: list[Row], by_method: Mapping[str, list[Result]], settings: Settings) -> list[Row]:
    """The rows with their differences from the baseline; p-values are adjusted over the methods of each metric."""
    baseline = settings.baseline
    if baseline not in by_method:
        if rows:
            settings.notes.append(
                f"{rows[0].mask}: {baseline} has no results, so nothing is compared with the baseline"
            )
        return rows
    against = {row.method: dict(row.against) for row in rows}
    for metric in settings.columns:
        known = _by_image(by_method[baseline], metric.name)
        differences = {}
        for row in rows:
            if row.method != baseline:
                values = _by_image(by_method[row.method], metric.name)
                seed = key(settings.seed, "difference", row.mask, row.method, baseline, metric.name)
                if (tested := difference(values, known, seed=seed)) is not None:
                    differences[row.method] = tested
        adjusted = holm([tested.p for tested in differences.values()])
        for (label, tested), p in zip(differences.items(), adjusted, strict=True):
            against[label][metric.name] = replace(tested, p=p)
    return [replace(row, against=against[row.method]) for row in rows]
