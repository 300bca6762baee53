"""What is kept beside the results of a comparison: run.json, how they were made, and costs.csv, what each image cost."""

import argparse
import csv
import datetime
import hashlib
import io
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rad.conditions import CONDITIONS, NETWORKS
from rad.environment import commit, cpu
from rad.files import write_text
from rad.jobs import Label, mask_name, read_prompts
from rad.pictures import absolute, is_source

if TYPE_CHECKING:
    from rad.inpainter import Inpainter
    from rad.sampler import Method

COSTS = ("image", "nfe", "vjp", "seconds", "peak_mib")
SAME = (
    *("image", "seed", "num_samples", "size_policy", "margin", "mask_polarity", "prompts", "size"),
    *CONDITIONS,
    *NETWORKS,
)
"""Options that all results of a folder have in common: without them they could not be compared."""
ONLY_IF_GIVEN = {"grid": None, "dilate": 0, "encode_full": False, "feather": 0}
"""Options that are settings of a method where they are not what they are by default."""

FIRST_SOLVER = {"solver": "ddpm", "spacing": "even"}
"""The settings of results whose record does not name them: there was no choice."""


class Record:
    """OUTPUT/run.json of a comparison: what is there already, and what this run adds once it has made something.

    Args:
        options: of sample.py; methods: with their settings.

    Raises:
        ValueError: the results in the folder come from other pictures, masks or settings.
    """

    def __init__(self, options: argparse.Namespace, methods: Mapping[Label, "Method"]) -> None:
        self.path = Path(options.output) / RUN
        self.before = read_run(self.path.parent)
        if self.path.is_file() and ENTRIES.keys() - self.before.keys():
            raise ValueError(f"{self.path} is not the record of a comparison: give another --output")
        self.before = self.before or {name: outer() for name, (outer, _) in ENTRIES.items()}
        self.options = {**vars(options), "image": absolute(options.image), "prompts": _prompts(options.prompts)}
        self.masks = {
            mask_name(mask): {
                "mask": absolute(mask) if is_source(mask) else mask,
                "mask_by": options.mask_by,
            }
            for mask in dict.fromkeys(options.mask)
        }
        self.settings = {label.text: _settings(options, label, method) for label, method in methods.items()}
        self.model: dict[str, str] = {}
        self.environment: dict[str, Any] = {}
        self._written = False
        for name in SAME:
            self._compare(f"--{name}", self.before["options"].get(name, self.options[name]), self.options[name])
        for name, source in self.masks.items():
            self._compare(f"masks {name}", self.before["mask_sources"].get(name, source), source)
        for label, own in self.settings.items():
            there = self._there(label, own)
            defaults = {**own, **ONLY_IF_GIVEN}
            names = own.keys() | (there.keys() & ONLY_IF_GIVEN.keys())
            before, now = ({name: one.get(name, defaults[name]) for name in sorted(names)} for one in (there, own))
            self._compare(label, before, now)
        adapter = Path(options.checkpoint) / "adapter_model.safetensors"
        if adapter.is_file():
            self.model["adapter_hash"] = _hash(adapter)
            self._compare_model()

    def _there(self, label: str, own: dict[str, Any]) -> dict[str, Any]:
        """The settings of the results that are there; `own` where there are none."""
        there = self.before["settings"].get(label, own)
        return {**FIRST_SOLVER, **there} if "eta" in there else there

    @property
    def methods(self) -> list[str]:
        """The labels of all methods whose results are in the folder, or will be."""
        return list(dict.fromkeys([*self.before["methods"], *self.settings]))

    def complete(self, inpainter: "Inpainter", steps: Mapping[Label, int], devices: Sequence[str]) -> None:
        """With the model, the steps on it, and the device of each process. Raises ValueError as above."""
        self.model.update(
            checkpoint=self.options["checkpoint"], base=inpainter.model.source, base_hash=inpainter.model.hash
        )
        self._compare_model()
        for label, count in steps.items():
            own = self.settings[label.text]
            if "eta" in own:
                own["steps"] = count
            there = self._there(label.text, own)
            self._compare(label.text, {name: value for name, value in there.items() if name != "run"}, own)
        self.environment = _environment(devices)

    def write(self) -> None:
        """Add this run to run.json, the first time that it is called; of the shards of a run the first one does."""
        shard = self.options["shard"]
        if self._written or (shard is not None and shard[0] > 1):
            return
        self._written = True
        run = {**_now(), "environment": self.environment, "options": self.options}
        before, number = self.before, len(self.before["runs"])
        content = {
            "runs": [*before["runs"], run],
            "options": before["options"] or self.options,
            "model": {**before["model"], **self.model},
            "masks": list(dict.fromkeys([*before["masks"], *self.masks])),
            "mask_sources": {**before["mask_sources"], **self.masks},
            "methods": self.methods,
            "settings": {**before["settings"], **{n: {"run": number, **own} for n, own in self.settings.items()}},
        }
        write_text(self.path, json.dumps(content, indent=2, default=str) + "\n")

    def _compare_model(self) -> None:
        for name, new in self.model.items():
            if name.endswith("hash"):  # a run of the base alone has no adapter, and fits to any of its adapters
                self._compare(f"the model's {name}", self.before["model"].get(name, new), new)

    def _compare(self, what: str, old: object, new: object) -> None:
        if json.dumps(old, default=str, sort_keys=True) != json.dumps(new, default=str, sort_keys=True):
            raise ValueError(
                f"{self.path.parent} holds results of {what} {old}, this is {new}: give another --output, or delete those"
            )


def scoring(**options: object) -> dict[str, Any]:
    """How a comparison is scored now, for its report: command, date, commit and versions, and `options`."""
    return {**_now(), **{name: value for name, value in options.items() if value is not None}, **_versions()}


def _now() -> dict[str, Any]:
    return {
        "command": shlex.join(["python", *_program(), *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def _program() -> list[str]:
    """The script, or -m and the package, as it was called."""
    package = getattr(getattr(sys.modules["__main__"], "__spec__", None), "parent", None)
    return ["-m", package] if package and Path(sys.argv[0]).name == "__main__.py" else sys.argv[:1]


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


def _hash(adapter: Path) -> str:
    from safetensors.torch import load_file

    from rad.load import weights_hash

    return weights_hash(load_file(adapter))


@dataclass(frozen=True)
class Effort:
    """What was spent: network calls, backward passes, seconds in the sampling loops, and the peak memory in bytes."""

    nfe: int = 0
    vjp: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    def __add__(self, other: "Effort") -> "Effort":
        peak = max(self.peak_memory, other.peak_memory)
        return Effort(self.nfe + other.nfe, self.vjp + other.vjp, self.seconds + other.seconds, peak)


class Costs:
    """costs.csv in the folder of a method. Of an image with two lines the later one counts, so lines are only added.

    Args:
        shard: (number, of how many) if the run is one of several, each of which has a file of its own.
    """

    def __init__(self, folder: Path, *, shard: tuple[int, int] | None = None) -> None:
        self.path = folder / ("costs.csv" if shard is None else f"costs-{shard[0]}of{shard[1]}.csv")
        self._begun = False

    def add(self, images: Sequence[str], effort: Effort, windows: Sequence[int]) -> None:
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


def _settings(options: argparse.Namespace, label: Label, method: "Method") -> dict[str, Any]:
    """Of a method as it is called; the steps are known with the model only."""
    own = {one.name: getattr(method, one.name) for one in fields(method)}
    shown = {name: value if isinstance(value, int | float | str | None) else str(value) for name, value in own.items()}
    given = {
        name: getattr(options, name) for name, default in ONLY_IF_GIVEN.items() if getattr(options, name) != default
    }
    if method.weights == "none":
        return {"method": method.name, **shown, **given}
    chosen = method.choose(**label.given(options))
    return {
        "method": method.name,
        "eta": chosen.eta,
        "solver": chosen.solver,
        "spacing": chosen.spacing,
        "precision": options.precision,
        **shown,
        **given,
    }


def _prompts(path: str | None) -> str | None:
    """The prompts of a file, by a hash: what it is called changes nothing."""
    if path is None:
        return None
    content = json.dumps(read_prompts(path), sort_keys=True)
    return f"{Path(path).name}, sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _versions() -> dict[str, str]:
    import torch

    import rad

    return {"rad": rad.__version__, "python": platform.python_version(), "torch": torch.__version__}


def _environment(devices: Sequence[str]) -> dict[str, Any]:
    import torch

    from rad.device import threads_of_each

    first = torch.device(devices[0])
    return {
        **_versions(),
        "device": torch.cuda.get_device_name(first) if first.type == "cuda" else first.type,
        "processes": len(devices),
        "threads": threads_of_each(devices),
        "cpu": cpu(),
        "system": platform.system(),
    }
