"""What is kept beside the results of a comparison: run.json, how they were made, and costs.csv, what each image cost."""

import argparse
import datetime
import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rad.cli.environment import commit, cpu
from rad.cli.guidance_options import CONDITIONS, NETWORKS
from rad.cli.plan import Label, mask_name, read_prompts
from rad.evaluation.run_log import ENTRIES, RUN, read_run
from rad.images.atomic import write_text
from rad.images.sources import absolute, is_source
from rad.resources import located

if TYPE_CHECKING:
    from rad.inpainting.inpainter import Inpainter
    from rad.sampling.method import Method


SAME = (
    *("image", "seed", "num_samples", "size_policy", "margin", "mask_polarity", "prompts", "size"),
    *CONDITIONS,
    *NETWORKS,
)
"""Options that all results of a folder have in common: without them they could not be compared."""


ONLY_IF_GIVEN = {"grid": None, "dilate": 0, "encode_full": False, "feather": 0}
"""Options that are settings of a method where they are not what they are by default."""


NOT_COMPARED = {"run", "method_file"}
"""Entries of a method's settings that may differ between runs: the hash of its file says whether it is the same method."""


FIRST_SOLVER = {"solver": "ddpm", "spacing": "even"}
"""The settings of results whose record does not name them: there was no choice."""


class Record:
    """OUTPUT/run.json of a comparison: what is there already, and what this run adds once it has made something.

    Args:
        options: of rad sample; methods: with their settings.

    Raises:
        ValueError: the results in the folder come from other images, masks or settings.
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
            names = (own.keys() | (there.keys() & (ONLY_IF_GIVEN.keys() | {"method_sha256"}))) - NOT_COMPARED
            defaults.setdefault("method_sha256", None)
            before, now = ({name: one.get(name, defaults[name]) for name in sorted(names)} for one in (there, own))
            self._compare(label, before, now)
        adapter = located(options.checkpoint) / "adapter_model.safetensors"
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
            old, new = ({k: v for k, v in one.items() if k not in NOT_COMPARED} for one in (there, own))
            self._compare(label.text, old, new)
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
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def _program() -> list[str]:
    """As it was called: `rad`, python with a script, or python -m with a package."""
    if Path(sys.argv[0]).name == "rad":
        return ["rad"]
    package = getattr(getattr(sys.modules["__main__"], "__spec__", None), "parent", None)
    named = ["-m", package] if package and Path(sys.argv[0]).name == "__main__.py" else sys.argv[:1]
    return ["python", *named]


def _hash(adapter: Path) -> str:
    from safetensors.torch import load_file

    from rad.models.weights import weights_hash

    return weights_hash(load_file(adapter))


def _settings(options: argparse.Namespace, label: Label, method: "Method") -> dict[str, Any]:
    """Of a method as it is called; the steps are known with the model only."""
    from rad.methods.own import file_of

    own = {one.name: getattr(method, one.name) for one in fields(method)}
    shown = {name: value if isinstance(value, int | float | str | None) else str(value) for name, value in own.items()}
    given = {
        name: getattr(options, name) for name, default in ONLY_IF_GIVEN.items() if getattr(options, name) != default
    }
    file = file_of(type(method))
    if file is not None:
        given |= {"method_file": str(file.path), "method_sha256": file.sha256}
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
