"""From files to a comparison: every number of every image, a row for each mask set and method, what is sure and what is noise."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rad.device import find_device
from rad.evaluation import metrics
from rad.evaluation.layout import MaskResults, Polarity, by_name, read_folders, read_tree, unlike
from rad.evaluation.results import Comparison, Cost, Interval, Metric, Result, Row
from rad.evaluation.run_log import COSTS, read_run
from rad.evaluation.scoring import Scored, has_features, reference_features, score
from rad.evaluation.statistics import difference, holm, interval, set_interval
from rad.images.atomic import write_text
from rad.images.sources import ImageFile
from rad.masks.sets import hash_entries
from rad.rng import key

if TYPE_CHECKING:
    from rad.evaluation.features import Extractor, LPIPSNet

BATCH_SIZE = 32
BASELINE = "rad"

References = Sequence[ImageFile] | str | Path
Scoring = Mapping[str, object]
OnProgress = Callable[[int, int], None]


def evaluate(
    output: Path,
    *,
    references: References,
    extractors: Sequence["Extractor"] = (),
    baseline: str | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
    tables: Path | None = None,
    scoring: Scoring | None = None,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Score all that rad sample wrote into a folder, and write metrics.csv, sets.csv and provenance.json.

    Its masks are white = fill, whatever the polarity of those that rad sample was given. A file that is missing, broken or of
    another size than its reference costs its own numbers alone, leaves a note, and counts in `Row.missing`.

    Args:
        output: folder with MASK/masks/NAME.png and MASK/METHOD/NAME.png, and run.json for the order of rows.
        references: the original images, or the folder, zip or file with them. Distances between sets use all of them, also
            those that were not filled.
        extractors: networks for perceptual distances and features; without any, only pixels are compared.
        baseline: the method that others are compared with; None: "rad" if it is there, or else the first.
        seed: of the resamples.
        batch_size: images that are scored together; numbers do not depend on it, but for rounding.
        on_progress: called with the number of files done and that of all.
        tables: folder for the files written; None: `output`.
        scoring: how the files are scored, for the reader of the report (`rad.cli.sample.record.scoring`).
        remarks: further notes, such as what could not be made.

    Raises:
        ValueError: there is nothing that can be scored, no method is called `baseline`, or images share a name.
    """
    run = read_run(output)
    notes = [*remarks, *unlike(run)]
    files = read_tree(output, run, notes=notes)
    return _compare(
        tables or output,
        files,
        by_name(_listed(references)),
        extractors,
        baseline=baseline,
        seed=seed,
        batch_size=batch_size,
        on_progress=on_progress,
        run=run | ({"scoring": dict(scoring)} if scoring else {}),
        notes=notes,
    )


def evaluate_folders(
    results: Mapping[str, Path],
    *,
    references: References,
    mask: Path,
    output: Path,
    mask_polarity: Polarity = "white_is_fill",
    extractors: Sequence["Extractor"] = (),
    baseline: str | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
    scoring: Scoring | None = None,
) -> Comparison:
    """Score the results of any other system; the rest as `evaluate`.

    Args:
        results: a folder for each method, by its label; files are called like the references, with any suffix of images.
            Where there is no NAME, NAME-0, NAME-1 ... are its samples.
        mask: an image for all images, or a folder or zip of them called like the references.
        output: folder for the files written, and for the holes as they were understood, MASK/masks/NAME.png, white = fill.

    Raises:
        ValueError: also for a folder without any such file, and where no mask fits.
    """
    named, notes = by_name(_listed(references)), []
    files = read_folders(results, set(named), mask, polarity=mask_polarity, output=output, notes=notes)
    return _compare(
        output,
        [files],
        named,
        extractors,
        baseline=baseline,
        seed=seed,
        batch_size=batch_size,
        on_progress=on_progress,
        run={"scoring": dict(scoring)} if scoring else {},
        notes=notes,
    )


def extractors(
    feature_net: Sequence[str | Path], lpips: Sequence["LPIPSNet"], fid: bool, *, device: str = "auto"
) -> list["Extractor"]:
    """The networks that the command lines ask for, in this order.

    Args:
        feature_net: files or folders, see `rad.evaluation.features.feature_net`.
        fid: also torch-fidelity's Inception, for FID and KID.
        device: "auto": an accelerator if there is one.

    Raises ValueError for one that cannot be loaded, two of one name, and a device that cannot be used.
    """
    from rad.evaluation import features

    device = find_device(device)
    made = [features.feature_net(path, device=device) for path in feature_net]
    made += [features.lpips(net, device=device) for net in dict.fromkeys(lpips)]
    made += [features.inception(device=device)] if fid else []
    names = [name for one in made for name in (one.distance_name, one.frechet_name) if name is not None]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"two networks would both give {double[0]}: name each once, and differently")
    return made


def _listed(references: References) -> list[ImageFile] | str | Path:
    return references if isinstance(references, str | Path) else list(references)


def _compare(
    output: Path,
    files: list[MaskResults],
    references: Mapping[str, ImageFile],
    extractors: Sequence["Extractor"],
    *,
    baseline: str | None,
    seed: int,
    batch_size: int,
    on_progress: OnProgress | None,
    run: dict[str, Any],
    notes: list[str],
) -> Comparison:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    methods = list(dict.fromkeys(label for one in files for label in one.files))
    chosen = _choose_baseline(baseline, methods)
    digests: dict[str, str] = {}
    sets: dict[int, metrics.ReferenceFeatures] = {}
    if any(has_features(extractor) for extractor in extractors):
        sets, digests = reference_features(references, extractors, batch_size=batch_size, notes=notes)
        notes.append(
            "the originals of these results are among the references: Frechet distances are smaller than from other "
            "images; kernel distances, precision and recall compare no image with its own original"
        )

    total = sum(len(some) for one in files for images in one.files.values() for some in images.values())
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    scored = {one.name: score(one, references, extractors, batch_size=batch_size, on_file=count) for one in files}
    notes += [note for one in scored.values() for note in one.notes]
    results = [result for one in scored.values() for result in one.results]
    if not results:
        raise ValueError(f"nothing can be scored{': ' + notes[0] if notes else ', for there are no results'}")
    described = _describe(extractors, results, sets, digests)
    rows = []
    for one in files:
        made = _rows(one, scored[one.name], described, digests, seed=seed, notes=notes)
        made = _with_sets(made, one.name, scored[one.name], extractors, sets, seed=seed, notes=notes)
        rows += _against(made, scored[one.name].results, described, chosen, seed=seed, notes=notes)
    described = _present(described, rows)
    perceptual = [metrics.cropped(one.distance_name) for one in extractors if one.distance_name is not None]
    comparison = Comparison(
        metrics=described,
        rows=rows,
        results=results,
        baseline=chosen,
        rank_by=perceptual[0] if perceptual else "psnr-hole",
        run=run,
        notes=list(dict.fromkeys(" ".join(note.split()) for note in notes)),
        unknown=sum(one.unknown for one in files),
    )
    _write(comparison, output, files, seed)
    return comparison


def _choose_baseline(baseline: str | None, methods: list[str]) -> str:
    if not methods:
        raise ValueError("there are no results of any method")
    if baseline in methods:
        return str(baseline)
    if baseline is not None:
        raise ValueError(f"baseline {baseline} has no results: choose one of {', '.join(methods)}")
    return BASELINE if BASELINE in methods else methods[0]


def _describe(
    extractors: Sequence["Extractor"],
    results: Sequence[Result],
    sets: Mapping[int, metrics.ReferenceFeatures],
    digests: dict[str, str],
) -> list[Metric]:
    """All columns that these results can have, those of networks first."""
    made: list[Metric] = []
    samples = any(result.sample > 0 for result in results)
    for number, extractor in enumerate(extractors):
        if extractor.distance_name is not None:
            made += metrics.distance_metrics(extractor.distance_name, extractor.provenance, samples=samples)
        if number in sets:
            count = f"{len(sets[number].features)}, the originals of these results among them"
            known = {"references": count, "references hash": _hash(digests)}
            made += metrics.set_metrics(
                extractor.frechet_name, extractor.kernel_name, extractor.provenance, references=known
            )
    return made + metrics.pixel_metrics(raw=any("known-raw" in result.values for result in results))


def _present(described: list[Metric], rows: list[Row]) -> list[Metric]:
    """Without the columns that no row has."""
    return [metric for metric in described if any(metric.name in row.values for row in rows)]


def _hash(parts: object) -> str:
    """Sixteen hexadecimal digits of anything that JSON can hold; order in mappings does not matter."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _by_image(results: Iterable[Result], name: str) -> dict[str, float]:
    """The metric of each image that has it, samples averaged, in the order of names."""
    found: dict[str, list[float]] = {}
    for result in results:
        if name in result.values:
            found.setdefault(result.image, []).append(result.values[name])
    return {image: sum(found[image]) / len(found[image]) for image in sorted(found)}


def _of(results: Iterable[Result]) -> dict[str, list[Result]]:
    """By method."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.method, []).append(result)
    return found


def _rows(
    files: MaskResults,
    scored: Scored,
    described: list[Metric],
    digests: dict[str, str],
    *,
    seed: int,
    notes: list[str],
) -> list[Row]:
    """The rows of a mask set, with the means of what each image has."""
    by_method = _of(scored.results)
    rows = []
    for label in files.files:
        some = by_method.get(label, [])
        if not some:
            notes.append(f"{files.name}: none of the files of {label} can be scored, so it has no row")
            continue
        counts: dict[str, int] = {}
        for result in some:
            counts[result.image] = counts.get(result.image, 0) + 1
        missing = sorted(set(scored.holes) - set(counts))
        if missing:
            notes.append(
                f"{files.name}: {label} lacks {len(missing)} of {len(scored.holes)} images, such as {missing[0]}"
            )
        samples = max(counts.values())
        fewer = [image for image, count in counts.items() if count < samples]
        if fewer:
            notes.append(
                f"{files.name}: {label} has less than {samples} samples of {len(fewer)} images, such as {fewer[0]}"
            )
        values = {}
        for metric in described:
            numbers = list(_by_image(some, metric.name).values())
            if 0 < len(numbers) < len(counts):
                notes.append(f"{files.name}: {metric.title} is known of {len(numbers)} of {len(counts)} images alone")
            if numbers:
                values[metric.name] = interval(numbers, seed=key(seed, "interval", files.name, label, metric.name))
        compared_with = digests or {image: scored.digests[image] for image in counts}
        provenance = {
            "masks hash": hash_entries([scored.holes[image] for image in counts]),
            "references": str(len(compared_with)),
            "references hash": _hash(compared_with),
        }
        parts = [provenance, counts, {metric.name: metric.provenance for metric in described}]
        rows.append(
            Row(
                mask=files.name,
                method=label,
                group=_hash(parts)[:8],
                images=len(counts),
                samples=samples,
                values=values,
                cost=_mean_cost(files.costs.get(label, {}), counts),
                missing=len(missing),
                provenance=provenance,
            )
        )
    return rows


def _mean_cost(costs: Mapping[str, Cost], images: Iterable[str]) -> Cost:
    def known(name: str) -> list[float]:
        numbers = [getattr(costs[image], name) for image in images if image in costs]
        return [number for number in numbers if number is not None]

    def mean(name: str) -> float | None:
        return sum(known(name)) / len(known(name)) if known(name) else None

    return Cost(mean("nfe"), mean("vjp"), mean("seconds"), max(known("peak_mib"), default=None))


def _with_sets(
    rows: list[Row],
    mask: str,
    scored: Scored,
    extractors: Sequence["Extractor"],
    references: Mapping[int, metrics.ReferenceFeatures],
    *,
    seed: int,
    notes: list[str],
) -> list[Row]:
    """The rows with the distances between sets as well."""
    if not rows:
        return []
    for number, whole in references.items():
        extractor = extractors[number]
        crops: dict[frozenset[str], metrics.ReferenceFeatures] = {}
        for region in ("whole", "crop"):
            for place, row in enumerate(rows):
                found = scored.features[number, region, row.method]
                reference = whole
                if region == "crop":
                    images = frozenset(image for image, _ in found)
                    reference = crops[images] = crops.get(images) or scored.crops[number].of(images)
                made = _set_values(extractor, region, found, reference, key(seed, "sets", mask, row.method))
                rows[place] = replace(row, values=row.values | made)
                least = min(row.images, len(reference.features))
                if least < 2:
                    notes.append(f"{mask}: rows of less than two images have no distances between sets")
                elif least <= metrics.NEIGHBOURS:
                    notes.append(f"{mask}: rows of at most {metrics.NEIGHBOURS} images have no precision and recall")
                if 2 <= least <= whole.features.shape[1] and extractor.frechet_name is not None:
                    notes.append(
                        f"{extractor.frechet_name} is of fewer images than features ({whole.features.shape[1]}) and depends on "
                        "their number: compare it within a group only"
                    )
    return rows


def _set_values(
    extractor: "Extractor",
    region: str,
    found: Mapping[tuple[str, int], Tensor],
    reference: metrics.ReferenceFeatures,
    seed: int,
) -> dict[str, Interval]:
    """Of features (D) by image and sample."""
    order = sorted(found)
    images, features = [image for image, _ in order], torch.stack([found[one] for one in order])
    made: dict[str, Interval] = {}

    def named(name: str) -> str:
        return name if region == "whole" else metrics.cropped(name)

    least = min(len(set(images)), len(reference.features))
    if extractor.frechet_name is not None and least >= 2:
        column, terms = named(extractor.frechet_name), metrics.FrechetTerms(features, reference)
        value = metrics.frechet_distance(features, reference)
        made[column] = set_interval(value, terms.distance, images, seed=key(seed, column), least=0)
    if extractor.kernel_name is not None and least >= 2:
        column, terms = named(extractor.kernel_name), metrics.KernelTerms(features, reference, images)
        made[column] = set_interval(terms.whole, terms.distance, images, seed=key(seed, column))
    if extractor.frechet_name is not None and least > metrics.NEIGHBOURS:
        inside: dict[str, list[float]] = {}
        for image, value in zip(images, metrics.precise(features, reference, images).tolist(), strict=True):
            inside.setdefault(image, []).append(value)
        numbers = {"precision": [sum(some) / len(some) for some in inside.values()]}
        of_samples = [
            [row for row, one in enumerate(order) if one[1] == sample] for sample in sorted({n for _, n in order})
        ]
        recalls = [
            metrics.recalled(features[rows], reference, [images[row] for row in rows])
            for rows in of_samples
            if len(rows) > metrics.NEIGHBOURS
        ]
        if recalls:
            numbers["recall"] = torch.stack(recalls).mean(0).tolist()
        for kind, some in numbers.items():
            column = named(metrics.renamed(extractor.frechet_name, kind))
            made[column] = interval(some, seed=key(seed, column))
    return made


def _against(
    rows: list[Row], results: Sequence[Result], described: list[Metric], baseline: str, *, seed: int, notes: list[str]
) -> list[Row]:
    """The rows with their differences from the baseline; p-values are adjusted over the methods of each metric."""
    by_method = _of(results)
    if baseline not in by_method:
        if rows:
            notes.append(f"{rows[0].mask}: {baseline} has no results, so there is nothing to compare the others with")
        return rows
    made = {row.method: dict(row.against) for row in rows}
    for metric in described:
        known = _by_image(by_method[baseline], metric.name)
        found = {}
        for row in rows:
            if row.method != baseline:
                numbers = _by_image(by_method[row.method], metric.name)
                seeded = key(seed, "difference", row.mask, row.method, baseline, metric.name)
                one = difference(numbers, known, seed=seeded)
                if one is not None:
                    found[row.method] = one
        adjusted = holm([one.p for one in found.values()])
        for (label, one), p in zip(found.items(), adjusted, strict=True):
            made[label][metric.name] = replace(one, p=p)
    return [replace(row, against=made[row.method]) for row in rows]


# ---------------------------------------------------------------------------------------------------- files


def _write(
    comparison: Comparison,
    output: Path,
    files: list[MaskResults],
    seed: int,
) -> None:
    """metrics.csv, sets.csv and provenance.json, each whole or not at all."""
    single = [metric.name for metric in comparison.metrics if any(metric.name in r.values for r in comparison.results)]
    costs = {one.name: one.costs for one in files}
    lines: list[list[object]] = [["mask", "method", "image", "sample", *single, *COSTS[1:]]]
    for result in comparison.results:
        cost = costs[result.mask].get(result.method, {}).get(result.image, Cost())
        numbers = [result.values.get(name) for name in single]
        lines.append([result.mask, result.method, result.image, result.sample, *numbers, *_cells(cost)])
    write_text(output / "metrics.csv", _csv(lines))

    names = [metric.name for metric in comparison.metrics]
    heads = [head for name in names for head in (name, f"{name}_low", f"{name}_high")]
    lines = [["mask", "method", "group", "images", "samples", "missing", *COSTS[1:], *heads]]
    for row in comparison.rows:
        bounds = [asdict(row.values[name]) if name in row.values else {} for name in names]
        numbers = [one.get(part) for one in bounds for part in ("value", "low", "high")]
        lines.append(
            [row.mask, row.method, row.group, row.images, row.samples, row.missing, *_cells(row.cost), *numbers]
        )
    write_text(output / "sets.csv", _csv(lines))

    provenance = {
        "metrics": {metric.name: asdict(metric) for metric in comparison.metrics},
        "rows": [
            {
                "mask": row.mask,
                "method": row.method,
                "group": row.group,
                "images": row.images,
                "samples": row.samples,
                **row.provenance,
            }
            for row in comparison.rows
        ],
        "baseline": comparison.baseline,
        "rank_by": comparison.rank_by,
        "seed": seed,
    }
    write_text(output / "provenance.json", json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")


def _cells(cost: Cost) -> list[float | None]:
    return [getattr(cost, name) for name in COSTS[1:]]


def _csv(lines: Iterable[Sequence[object]]) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_written(cell) for cell in line] for line in lines)
    return text.getvalue()


def _written(cell: object) -> object:
    if not isinstance(cell, float):
        return cell
    return "" if math.isnan(cell) else f"{cell:.8g}"
