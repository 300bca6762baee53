"""Tables and contact sheets of benchmarks/photographs.py, from the rows of `rad evaluate`."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rad.evaluation.compare import evaluate, extractors
from rad.evaluation.features import has_lpips
from rad.evaluation.metrics import gradient_energy
from rad.evaluation.provenance import scoring
from rad.evaluation.report import write_report
from rad.evaluation.results import Comparison, Interval, Metric, Row
from rad.evaluation.statistics import ends
from rad.images.atomic import replacing, write_text
from rad.images.grid import blend, contact_sheet
from rad.images.tensors import to_tensor
from rad.masks.files import read_written_mask
from rad.rng import key

RESAMPLES, SHEET_ROWS, GREY = 2000, 8, (0.5, 0.5, 0.5)


def compare(
    output: Path, items: Sequence[str], order: Sequence[str], *, feature_net: str, seed: int, shown: Sequence[str]
) -> Comparison:
    """Score output/results and write its report, output/table.md, and a sheet of each item.

    Args:
        order: labels of the systems in the order of the tables; others follow by name.
        shown: systems on the sheets; empty: all.
    """
    results = output / "results"
    networks = extractors([feature_net], ["alex"] if has_lpips("alex") else [], False, device="cpu")
    present = {path.name for path in results.glob("*/*") if path.is_dir() and any(path.glob("*.png"))} - {"masks"}
    labels = [label for label in dict.fromkeys(order) if label in present] + sorted(present - set(order))
    if not labels:
        raise ValueError(f"{results} holds no results: no system ran")
    baseline = "rad" if "rad" in labels else labels[0]
    comparison = evaluate(
        results,
        references=output / "images",
        extractors=networks,
        baseline=baseline,
        seed=seed,
        scoring=scoring(reference=str(output / "images"), seed=seed),
    )
    write_report(comparison, results)
    texts = []
    for item in items:
        rows = {row.method: row for row in comparison.rows if row.mask == item}
        if rows:
            textures = {label: texture(results / item, output / "images", label, seed=seed) for label in rows}
            texts.append(table(item, [rows[label] for label in labels if label in rows], textures, comparison))
            columns = [label for label in labels if label in rows and (not shown or label in shown)]
            with replacing(output / f"{item}.png") as temporary:
                sheet(results / item, output / "images", columns).save(temporary)
    write_text(output / "table.md", "\n".join(texts))
    return comparison


def texture(folder: Path, originals: Path, label: str, *, seed: int) -> Interval:
    """Gradient energy in the holes over that of the originals, summed over images, with a 95 % bootstrap interval."""
    energies = []
    for path in sorted((folder / label).glob("*.png")):
        hole = read_written_mask(folder / "masks" / path.name)[None]
        pair = [to_tensor(Image.open(file).convert("RGB")) for file in (path, originals / path.name)]
        energies.append(gradient_energy(torch.stack(pair), hole.expand(2, -1, -1, -1)).numpy())
    result, original = np.array(energies).T
    count, random = len(result), np.random.default_rng(key(seed, "texture", folder.name, label))
    value = float(result.sum() / original.sum()) if original.sum() else math.nan
    if count < 2:
        return Interval(value, math.nan, math.nan)
    drawn = random.integers(count, size=(RESAMPLES, count))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = result[drawn].sum(1) / original[drawn].sum(1)
    low, high = np.nanquantile(ratios, [ends(count), 1 - ends(count)])
    return Interval(value, float(low), float(high))


def columns_of(comparison: Comparison) -> list[Metric]:
    """Perceptual distances on the crop, PSNR in the hole, and the Fréchet distance on the crop."""
    wanted = ("perceptual-crop", "lpips-crop", "psnr-hole", "fd-crop")
    return [metric for want in wanted for metric in comparison.metrics if metric.name.split("/")[0] == want]


def table(item: str, rows: Sequence[Row], textures: dict[str, Interval], comparison: Comparison) -> str:
    """The Markdown table of an item. A star marks a significant difference from the baseline (p < 0.05, Holm)."""
    metrics = columns_of(comparison)
    heads = ["system", "images", "calls", *(metric.title for metric in metrics), "texture", "seconds", "MiB"]
    lines = [f"## {item}", "", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for row in rows:
        values = [cell(row, metric) for metric in metrics]
        costs = [number(row.cost.seconds, 2), number(row.cost.peak_mib, 0)]
        texts = [f"`{row.method}`", str(row.images), number(row.cost.nfe, 0), *values]
        lines.append(f"| {' | '.join([*texts, interval(textures[row.method], 2), *costs])} |")
    return "\n".join([*lines, ""])


def cell(row: Row, metric: Metric) -> str:
    if metric.name not in row.values:
        return "-"
    digits = max(4, metric.digits) if metric.name.startswith(("perceptual", "lpips")) else metric.digits
    tested = row.against.get(metric.name)
    return interval(row.values[metric.name], digits) + ("" if tested is None or tested.is_noise else " *")


def interval(value: Interval, digits: int) -> str:
    """ "0.12 [0.10, 0.15]", or without unknown ends."""
    if math.isnan(value.low) or math.isnan(value.high):
        return number(value.value, digits)
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def sheet(folder: Path, originals: Path, labels: Sequence[str]) -> Image.Image:
    """The first photographs at full size: damaged, filled by each system, original."""
    rows = []
    for mask in sorted((folder / "masks").glob("*.png"))[:SHEET_ROWS]:
        original = Image.open(originals / mask.name).convert("RGB")
        damaged = blend(original, GREY, read_written_mask(mask)[0].numpy())
        paths = [folder / label / mask.name for label in labels]
        filled = [Image.open(path).convert("RGB") if path.is_file() else None for path in paths]
        rows.append([damaged, *filled, original])
    side = max(rows[0][0].size)
    return contact_sheet(rows, column_labels=["damaged", *labels, "original"], cell_size=side)
