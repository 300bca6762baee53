"""The images of the report: the ones shown, and data URIs that fit into the page."""

import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from rad.evaluation.report.cells import number
from rad.evaluation.results import Comparison, Metric, Result
from rad.images.codecs import open_image
from rad.images.sources import ImageFile
from rad.images.tensors import blank, to_tensor
from rad.masks.files import read_written_mask

PAGE_BYTES = 10_000_000
"""Estimated size of all images in a page."""

LADDER = ((256, 100), (256, 85), (192, 80), (128, 75), (96, 70))
"""Longest side and WebP quality, the first that fits is used; 100: files as they are."""

TINY, CASES = 48, 3
Kind = Literal["input", "result", "original"]
Opener = Callable[[Result], Image.Image]


@dataclass(frozen=True)
class Case:
    """A shown result with its value as text."""

    result: Result
    value: str


@dataclass(frozen=True)
class Shown:
    """A data URI with its display size (width, height), or in `missing` the reason why there is none."""

    uri: str = ""
    size: tuple[int, int] = (0, 0)
    tiny: bool = False
    missing: str = ""


def open_reference(result: Result) -> Image.Image:
    """The reference of a result as 8-bit RGB. Raises ValueError if it cannot be read."""
    reference = result.reference
    return reference.open() if isinstance(reference, ImageFile) else open_image(reference)


def case_metric(comparison: Comparison, results: Sequence[Result]) -> Metric | None:
    """The ranking metric, or the first metric of single images if the ranking metric is one of sets."""
    metrics = sorted(comparison.metrics, key=lambda metric: metric.name != comparison.rank_by)
    known = {name for result in results for name, value in result.values.items() if not math.isnan(value)}
    return next((metric for metric in metrics if metric.name in known and metric.better != "none"), None)


def _case(result: Result, metric: Metric | None) -> Case:
    if metric is None or metric.name not in result.values:
        return Case(result, "")
    return Case(result, number(result.values[metric.name], metric.digits))


def sheet(results: dict[str, list[Result]], metric: Metric | None, rows: int) -> list[tuple[str, dict[str, Case]]]:
    """First samples of `rows` images by method, evenly over the names that all methods have; otherwise that any has."""
    first: dict[str, dict[str, Result]] = {}
    for method, some in results.items():
        first[method] = {result.image: result for result in sorted(some, key=lambda result: -result.sample)}
    sets = [set(some) for some in first.values() if some]
    names = sorted(set.intersection(*sets) or set.union(*sets)) if sets else []
    chosen = [names[round(index)] for index in np.linspace(0, len(names) - 1, min(rows, len(names)))]
    return [
        (name, {method: _case(some[name], metric) for method, some in first.items() if name in some}) for name in chosen
    ]


def best_and_worst(results: dict[str, list[Result]], metric: Metric | None) -> dict[str, tuple[list[Case], list[Case]]]:
    """By method up to `CASES` best results, best first, and worst results, worst first; no result is in both."""
    if metric is None:
        return {}
    cases = {}
    for method, some in results.items():
        known = [result for result in some if not math.isnan(result.values.get(metric.name, math.nan))]
        known.sort(key=lambda result: (result.image, result.sample))
        known.sort(key=lambda result: result.values[metric.name], reverse=metric.better == "higher")
        best, worst = known[: min(CASES, (len(known) + 1) // 2)], known[::-1][: min(CASES, len(known) // 2)]
        if known:
            cases[method] = tuple([_case(result, metric) for result in part] for part in (best, worst))
    return cases


class Images:
    """Data URIs of images, each encoded once, all with one `reduction` of `LADDER`."""

    def __init__(self, open_reference: Opener) -> None:
        self.open_reference = open_reference
        self.reduction = LADDER[0]
        self._shown: dict[tuple[Kind, str, str], Shown] = {}

    def fit(self, shown: Sequence[tuple[Kind, Result]]) -> None:
        """Choose the smallest reduction with which all fit into `PAGE_BYTES`, estimated from forty of them."""
        if not shown:
            return
        chosen = np.random.default_rng(0).choice(len(shown), min(40, len(shown)), replace=False)
        for self.reduction in LADDER:
            self._shown.clear()
            sizes = [len(self.show(*shown[index]).uri) for index in chosen]
            if sum(sizes) / len(sizes) * len(shown) <= PAGE_BYTES:
                break

    def show(self, kind: Kind, result: Result, side: int = 112) -> Shown:
        """The image, displayed with about `side` pixels; tiny images are enlarged by a whole number."""
        file = result.file if kind == "result" else result.reference
        key = (kind, str(file), str(result.hole) if kind == "input" else "")
        if key not in self._shown:
            try:
                self._shown[key] = self._encode(kind, result)
            except (ValueError, OSError) as error:
                self._shown[key] = Shown(missing=" ".join(str(error).split()))
        shown = self._shown[key]
        longest = max(*shown.size, 1)
        tiny = longest <= TINY
        factor = max(math.ceil(96 / longest), min(side, 160) // longest) if tiny else side / longest
        width, height = (max(1, round(length * factor)) for length in shown.size)
        return replace(shown, size=(width, height), tiny=tiny)

    def describe(self) -> str:
        longest, quality = self.reduction
        if quality == 100:
            return (
                f"Images up to {longest} pixels are the original files; larger images are reduced to {longest} pixels."
            )
        return f"Images are reduced to at most {longest} pixels and compressed, to keep the page small."

    def _encode(self, kind: Kind, result: Result) -> Shown:
        image = open_image(result.file, name=str(result.file)) if kind == "result" else self.open_reference(result)
        if kind == "input":
            image = blank(to_tensor(image), read_written_mask(result.hole, size=(image.height, image.width)))
        longest, quality = self.reduction
        data = BytesIO()
        if quality == 100 and max(image.size) <= longest:
            image.save(data, format="PNG")
            raw = result.file.read_bytes() if kind == "result" else b""
            form, content = "png", raw if raw.startswith(b"\x89PNG") else data.getvalue()
        else:
            image = image.copy()
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            image.save(data, format="WEBP", quality=min(quality, 85))
            form, content = "webp", data.getvalue()
        return Shown(f"data:image/{form};base64,{b64encode(content).decode()}", image.size)
