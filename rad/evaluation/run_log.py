"""The log of a sampling run: run.json with its settings, costs.csv with the cost of each image."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rad.images.atomic import write_text
from rad.streams import from_cell, to_cell

COSTS = ("image", "nfe", "vjp", "seconds", "peak_mib")
COLUMNS = (*COSTS, "training")
"""Columns of costs.csv."""

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
"""Entries of run.json: the type of each, and the type of its elements."""

Run = dict[str, Any]
"""The content of a run.json."""


def read_run(folder: Path) -> Run:
    """The run.json of a folder; empty if there is none. Raises ValueError for a damaged file."""
    path = folder / RUN
    if not path.is_file():
        return {}

    def broken(reason: object) -> ValueError:
        return ValueError(f"{path} is broken ({reason}): remove it, or sample again")

    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise broken(error) from error
    if not isinstance(run, dict):
        raise broken("not an object")
    for name, (outer, inner) in ENTRIES.items():
        value = run.get(name, outer())
        parts = value.values() if isinstance(value, dict) else value
        if not isinstance(value, outer) or not all(isinstance(part, inner) for part in parts):
            raise broken(f"{name} is {json.dumps(value)[:60]}")
    for number, entry in enumerate(run.get("runs", [])):
        for name in ("environment", "options"):
            if not isinstance(entry.get(name, {}), dict):
                raise broken(f"{name} of run {number}")
    return run


@dataclass(frozen=True)
class Usage:
    """Resources used: network evaluations, backward passes, seconds, peak memory in bytes, training passes of adaptations."""

    nfe: int = 0
    vjp: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    training: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        peak = max(self.peak_memory, other.peak_memory)
        nfe, vjp, training = self.nfe + other.nfe, self.vjp + other.vjp, self.training + other.training
        return Usage(nfe, vjp, self.seconds + other.seconds, peak, training)


class Costs:
    """costs.csv in the folder of a method. Lines are only appended; the last line of an image counts.

    Each `shard` (number, count) of a run has its own file.
    """

    def __init__(self, folder: Path, *, shard: tuple[int, int] | None = None) -> None:
        self.path = folder / ("costs.csv" if shard is None else f"costs-{shard[0]}of{shard[1]}.csv")
        self._begun = False

    def add(self, images: Sequence[str], effort: Usage, shares: Sequence[int]) -> None:
        """Divide the cost of a batch by the share of each image, as its planned calls. Raises ValueError for a damaged file."""
        rows = {}
        for image, share in zip(images, shares, strict=True):
            part = share / max(1, sum(shares))
            seconds, peak = round(effort.seconds * part, 6), round(effort.peak_memory / 2**20)
            rows[image] = (
                round(effort.nfe * part),
                round(effort.vjp * part),
                seconds,
                peak,
                round(effort.training * part),
            )
        begun, self._begun = self._begun, False
        if begun:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines(rows))
        else:  # without an incomplete line at the end, which a full disk or a killed process leaves
            before = read_costs(self.path) if self.path.exists() else {}
            known = {image: tuple(cost.values()) for image, cost in before.items()}
            write_text(self.path, ",".join(COLUMNS) + "\n" + _lines({**known, **rows}))
        self._begun = True


def _lines(rows: Mapping[str, tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([to_cell(image), *row] for image, row in rows.items())
    return text.getvalue()


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """By image: NFE, VJPs and seconds for all its samples, the peak memory in MiB, and the training passes.

    A last line without its end, of a stopped process, is left out. Raises ValueError for other damage.
    """
    try:
        content = path.read_bytes()
        text = content[: content.rfind(b"\n") + 1].decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if rows and None in rows[-1].values():  # ends within a name
            rows.pop()
        for row in rows:
            row.setdefault("training", "0")  # of earlier versions
        return {from_cell(row["image"]): {name: float(row[name]) for name in COLUMNS[1:]} for row in rows}
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): delete it") from None
