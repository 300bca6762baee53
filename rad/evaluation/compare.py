"""From files to a comparison: the values of every image, and a row for each mask set and method."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rad.device import find_device
from rad.evaluation.layout import MaskResults, by_name, different_machines, read_folders, read_tree
from rad.evaluation.metrics import ReferenceFeatures
from rad.evaluation.metrics.columns import cropped, distance_metrics, pixel_metrics, set_metrics
from rad.evaluation.results import Comparison, Metric, Result
from rad.evaluation.rows import Settings, hash_json, mask_rows
from rad.evaluation.run_log import Run, read_run
from rad.evaluation.scoring import has_features, reference_features, score
from rad.evaluation.tables import write_tables
from rad.images.sources import ImageFile
from rad.masks.reading.format import DEFAULT, MaskFormat
from rad.modes import float32_modes
from rad.rng import check_seed

if TYPE_CHECKING:
    from rad.evaluation.features import Extractor
    from rad.evaluation.options import LPIPSNet

BATCH_SIZE = 32
BASELINE = "rad"

References = Sequence[ImageFile] | str | Path
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
    scoring: Run | None = None,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Score a folder of rad sample, and write metrics.csv, sets.csv and provenance.json.

    A missing, damaged or wrongly sized file loses only its own values; it leaves a note and counts in `Row.missing`.

    Args:
        output: folder with MASK/masks/NAME.png (white = fill), MASK/METHOD/NAME.png, and run.json.
        references: the originals, or their folder, zip or file. Distances between sets use all of them.
        extractors: networks for perceptual distances and features; none: pixel metrics only.
        baseline: the method that others are compared with; None: "rad" if present, otherwise the first.
        seed, batch_size: seed of the resamples; images per batch, which changes values by rounding only.
        on_progress: called with the number of files done, and of all files.
        tables: folder of the written files; None: `output`.
        scoring, remarks: description of this evaluation (`rad.evaluation.provenance.scoring`), and further notes.

    Raises ValueError if nothing can be scored, no method is called `baseline`, or two images share a name.
    """
    run = read_run(output)
    notes = [*remarks, *different_machines(run)]
    files = read_tree(output, run, notes=notes)
    run |= {"scoring": scoring} if scoring else {}
    originals = by_name(_listed(references))
    return _compare(tables or output, files, originals, extractors, baseline, seed, batch_size, on_progress, run, notes)


def evaluate_folders(
    results: Mapping[str, Path],
    *,
    references: References,
    mask: Path,
    output: Path,
    mask_format: MaskFormat = DEFAULT,
    extractors: Sequence["Extractor"] = (),
    baseline: str | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
    scoring: Run | None = None,
) -> Comparison:
    """Score the results of other systems; further arguments and errors as `evaluate`.

    Args:
        results: a folder per method, by label. Files are named like the references, with any image suffix; without NAME,
            the files NAME-0, NAME-1 ... are its samples.
        mask: one image for all, or a folder or zip of masks named like the references.
        mask_format: how the masks are read.
        output: folder of the written files, and of the holes as read, MASK/masks/NAME.png, white = fill.
    """
    originals, notes = by_name(_listed(references)), []
    files = read_folders(results, set(originals), mask, format=mask_format, output=output, notes=notes)
    run: Run = {"scoring": scoring} if scoring else {}
    return _compare(output, [files], originals, extractors, baseline, seed, batch_size, on_progress, run, notes)


def extractors(
    feature_net: Sequence[str | Path], lpips: Sequence["LPIPSNet"], fid: bool, *, device: str = "auto"
) -> list["Extractor"]:
    """The networks requested on the command line, in this order.

    Args:
        feature_net: files or folders, see `rad.evaluation.features.feature_net`.
        fid: torch-fidelity's Inception, for FID and KID.
        device: "auto": an accelerator if there is one.

    Raises ValueError for a network that cannot be loaded, two with one name, and an unusable device.
    """
    from rad.evaluation import features

    device = find_device(device)
    networks = [features.feature_net(path, device=device) for path in feature_net]
    networks += [features.lpips(net, device=device) for net in dict.fromkeys(lpips)]
    networks += [features.inception(device=device)] if fid else []
    names = [name for net in networks for name in (net.distance_name, net.frechet_name) if name is not None]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"two networks have metrics called {double[0]}: give each network once, with its own name")
    return networks


def _listed(references: References) -> list[ImageFile] | str | Path:
    return references if isinstance(references, str | Path) else list(references)


@float32_modes()
def _compare(
    output: Path,
    files: list[MaskResults],
    references: Mapping[str, ImageFile],
    extractors: Sequence["Extractor"],
    baseline: str | None,
    seed: int,
    batch_size: int,
    on_progress: OnProgress | None,
    run: Run,
    notes: list[str],
) -> Comparison:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    seed = check_seed(seed)
    baseline = _choose_baseline(baseline, list(dict.fromkeys(label for mask_set in files for label in mask_set.files)))
    digests: dict[str, str] = {}
    sets: dict[int, ReferenceFeatures] = {}
    if any(has_features(extractor) for extractor in extractors):
        sets, digests = reference_features(references, extractors, batch_size=batch_size, notes=notes)
        notes.append(
            "the references include the originals of these results. Fréchet distances are smaller than with other images. "
            "Kernel distances, precision and recall never compare an image with its own original"
        )
    count = _counter(files, on_progress)
    scored = [score(some, references, extractors, batch_size=batch_size, on_file=count) for some in files]
    notes += [note for values in scored for note in values.notes]
    results = [result for values in scored for result in values.results]
    if not results:
        raise ValueError(f"nothing can be scored: {notes[0] if notes else 'there are no results'}")
    columns = _columns(extractors, results, sets, digests)
    settings = Settings(extractors, sets, digests, columns, baseline, seed, notes)
    rows = [row for some, values in zip(files, scored, strict=True) for row in mask_rows(some, values, settings)]
    perceptual = [cropped(net.distance_name) for net in extractors if net.distance_name is not None]
    comparison = Comparison(
        metrics=[metric for metric in columns if any(metric.name in row.values for row in rows)],
        rows=rows,
        results=results,
        baseline=baseline,
        rank_by=perceptual[0] if perceptual else "psnr-hole",
        run=run,
        notes=list(dict.fromkeys(" ".join(note.split()) for note in notes)),
        unknown=sum(mask_set.unknown for mask_set in files),
    )
    write_tables(comparison, output, files, seed)
    return comparison


def _choose_baseline(baseline: str | None, methods: list[str]) -> str:
    if not methods:
        raise ValueError("there are no results of any method")
    if baseline is None:
        return BASELINE if BASELINE in methods else methods[0]
    if baseline not in methods:
        raise ValueError(f"baseline {baseline} has no results: choose one of {', '.join(methods)}")
    return baseline


def _counter(files: Sequence[MaskResults], on_progress: OnProgress | None) -> Callable[[], None]:
    total = sum(len(some) for mask_set in files for images in mask_set.files.values() for some in images.values())
    done = iter(range(1, total + 1))

    def count() -> None:
        number = next(done)
        if on_progress is not None:
            on_progress(number, total)

    return count


def _columns(
    extractors: Sequence["Extractor"],
    results: Sequence[Result],
    sets: Mapping[int, ReferenceFeatures],
    digests: dict[str, str],
) -> list[Metric]:
    columns: list[Metric] = []
    samples = any(result.sample > 0 for result in results)
    for number, extractor in enumerate(extractors):
        if extractor.distance_name is not None:
            columns += distance_metrics(extractor.distance_name, extractor.provenance, samples=samples)
        if number in sets:
            count = f"{len(sets[number].features)}, the originals of these results among them"
            known = {"references": count, "references hash": hash_json(digests)}
            columns += set_metrics(
                extractor.frechet_name, extractor.kernel_name, extractor.provenance, references=known
            )
    return columns + pixel_metrics(raw=any("known-raw" in result.values for result in results))
