"""The record of a sampling run: what was run, and the cost of each image."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rad.images.atomic import write_text

COSTS = ("image", "nfe", "vjp", "seconds", "peak_mib")


RUN = "run.json"


ENTRIES: dict[str, tuple[type, type]] = {
    "runs": (list, dict),
    "options": (dict, object),
    "model": (dict, object),
    "masks": (list, str),
    "mask_sources": (dict, dict),
    "methods": (list, str),
    "settings": (dict, dict),
}
"""Entries of run.json, and what they hold."""


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says; empty where there is none. Raises ValueError for a broken one, and for entries of another kind."""
    path = folder / RUN
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): remove it, or sample again") from error
    if not isinstance(run, dict):
        raise ValueError(f"{path} is broken (not an object): remove it, or sample again")
    for name, (outer, inner) in ENTRIES.items():
        value = run.get(name, outer())
        parts = value.values() if isinstance(value, dict) else value
        if not isinstance(value, outer) or not all(isinstance(part, inner) for part in parts):
            raise ValueError(f"{path} is broken ({name} is {json.dumps(value)[:60]}): remove it, or sample again")
    for number, one in enumerate(run.get("runs", [])):
        for name in ("environment", "options"):
            if not isinstance(one.get(name, {}), dict):
                raise ValueError(f"{path} is broken ({name} of run {number}): remove it, or sample again")
    return run


@dataclass(frozen=True)
class Usage:
    """What was spent: network calls, backward passes, seconds in the sampling loops, and the peak memory in bytes."""

    nfe: int = 0
    vjp: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        peak = max(self.peak_memory, other.peak_memory)
        return Usage(self.nfe + other.nfe, self.vjp + other.vjp, self.seconds + other.seconds, peak)


class Costs:
    """costs.csv in the folder of a method. Of an image with two lines the later one counts, so lines are only added.

    Args:
        shard: (number, of how many) if the run is one of several, each of which has a file of its own.
    """

    def __init__(self, folder: Path, *, shard: tuple[int, int] | None = None) -> None:
        self.path = folder / ("costs.csv" if shard is None else f"costs-{shard[0]}of{shard[1]}.csv")
        self._begun = False

    def add(self, images: Sequence[str], effort: Usage, windows: Sequence[int]) -> None:
        """Share out the cost of a batch by the windows of each image. Raises ValueError if the file there is broken."""
        rows = {}
        for image, share in zip(images, windows, strict=True):
            part = share / max(1, sum(windows))
            seconds, peak = round(effort.seconds * part, 6), round(effort.peak_memory / 2**20)
            rows[image] = (round(effort.nfe * part), round(effort.vjp * part), seconds, peak)
        if self._begun:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines(rows))
            return
        there = read_costs(self.path) if self.path.exists() else {}
        known = {image: tuple(one.values()) for image, one in there.items()}
        write_text(self.path, ",".join(COSTS) + "\n" + _lines({**known, **rows}))
        self._begun = True


def _lines(rows: Mapping[str, tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([image, *row] for image, row in rows.items())
    return text.getvalue()


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """By image: network calls, backward passes and seconds for all its samples, and the peak memory in MiB.

    Raises ValueError for a file that says something else.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["image"]: {name: float(row[name]) for name in COSTS[1:]} for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): delete it") from None
