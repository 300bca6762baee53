"""run.json of a comparison: how its results were computed, so that only comparable results share a folder."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, fields
from pathlib import Path

from rad.cli.environment import cpu
from rad.cli.sample.options import GUIDES, RECORDED, SampleOptions
from rad.cli.sample.plan import Label, mask_name, read_prompts
from rad.cli.sample.runtimes.base import Model, Runtime
from rad.evaluation.provenance import call
from rad.evaluation.run_log import ENTRIES, RUN, Run, read_run
from rad.images.atomic import write_text
from rad.images.sources import absolute, is_source
from rad.lock import RECORD, one_at_a_time
from rad.resources import located

COMMON = (
    *("image", "runtime", "seed", "noise_device", "num_samples", "size_policy", "margin", "prompts", "size", "prompt"),
    *("pyramid_coarsest", "pyramid_strength", "pyramid_steps"),
    *("mask_polarity", "mask_channel", "mask_threshold", "soft_mask", "mask_resize", "mask_dilate", "mask_pattern"),
    *("negative_prompt", "guidance", *(f"{kind}_{part}" for kind in GUIDES for part in ("image", "scale"))),
    *(*GUIDES.values(), "lora", "quantize", "vae_tiling"),
)
"""Options that all results in a folder have in common."""

UNRECORDED = {"start_strength": 1.0, "mean_of": 1, "adapt_steps": 0, "thin_steps": None}
"""Entries of --strength, --average, --adapt and --thin_steps, at the values that are left out.

Some methods have settings of the names of the first three options.
"""

ONLY_IF_GIVEN = {"grid": None, "dilate": 0, "encode_full": False, "feather": 0, "extend": None}
"""Options that count as settings of a method, with the values at which they are left out."""

NOT_COMPARED = {"run", "method_file"}
"""Settings that may differ between runs; for a method file its hash decides."""

FIRST_SOLVER = {"solver": "ddpm", "spacing": "even"}
"""Solver of results from before there was a choice."""


class OtherSettings(ValueError):
    """The results in --output come from other settings."""


class Record:
    """OUTPUT/run.json: the runs before, and this one after its first result. Shards may write it at the same time.

    Raises:
        OtherSettings: the results in the folder come from other images, masks or settings.
        ValueError: run.json is broken.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, options = runtime, runtime.options
        self.path, self.part = Path(options.output) / RUN, options.part
        recorded = {"image": absolute(options.image), "prompts": _prompts(options.prompts), "lora": options.loras}
        recorded["noise_device"] = noise_kind(options)
        self.options = {**asdict(options), **recorded, "shard": options.part}
        self.masks = {
            mask_name(mask): {"mask": absolute(mask) if is_source(mask) else mask, "mask_by": options.mask_by}
            for mask in dict.fromkeys(options.mask)
        }
        self.settings = {label.text: method_settings(runtime, label) for label in runtime.methods}
        self.model: dict[str, str] = {}
        self.environment: dict[str, object] = {}
        self._written = False
        adapter = located(options.checkpoint) / "adapter_model.safetensors"
        if adapter.is_file():
            self.model["adapter_hash"] = _hash(adapter)
        self._read(ignore={"steps"})  # known with the model only

    @property
    def methods(self) -> list[str]:
        """Labels of all methods with results in the folder, after this run."""
        return list(dict.fromkeys([*self.before["methods"], *self.settings]))

    def complete(self, model: Model, steps: Mapping[Label, int], devices: Sequence[str]) -> None:
        """Add the model, the steps of each method, and the devices. Raises ValueError as the class."""
        self.model.update({"checkpoint": str(self.options["checkpoint"]), **model.recorded()})
        for label, count in steps.items():
            if "eta" in self.settings[label.text]:
                self.settings[label.text]["steps"] = count
        self.environment = {
            **self._runtime.environment(devices),
            "processes": len(devices),
            "cpu": cpu(),
            "system": platform.system(),
        }
        self._read()

    def write(self) -> None:
        """Add this run to run.json once; a --shard only if no other has on an equal machine. Raises as the class."""
        if self._written:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.path.with_name(RECORD)):
            self._read()
            if self.part is None or not self._is_known():
                write_text(self.path, json.dumps(self._content(), indent=2, default=str) + "\n", durable=True)
        self._written = True

    def _is_known(self) -> bool:
        """Whether run.json has a run with these options on such a machine, except for --shard."""
        runs = ({**entry, "options": {**entry.get("options", {}), "shard": None}} for entry in self.before["runs"])
        options = {**self.options, "shard": None}
        return any(
            _as_json((entry.get("environment"), entry["options"])) == _as_json((self.environment, options))
            for entry in runs
        )

    def _content(self) -> Run:
        run = {**call(), "environment": self.environment, "options": self.options}
        before, number = self.before, len(self.before["runs"])
        return {
            "runs": [*before["runs"], run],
            "options": before["options"] or self.options,
            "model": {**before["model"], **self.model},
            "masks": list(dict.fromkeys([*before["masks"], *self.masks])),
            "mask_sources": {**before["mask_sources"], **self.masks},
            "methods": self.methods,
            "settings": before["settings"] | {n: {"run": number, **values} for n, values in self.settings.items()},
        }

    def _read(self, *, ignore: Set[str] = frozenset()) -> None:
        """Read the runs before, and compare this one with them, except for the settings in `ignore`."""
        self.before = read_run(self.path.parent)
        if self.path.is_file() and ENTRIES.keys() - self.before.keys():
            raise ValueError(f"{self.path} is not the record of a comparison: give another --output")
        self.before = self.before or {name: outer() for name, (outer, _) in ENTRIES.items()}
        # Records from before an option match its default.
        defaults = (
            {field.name: field.default for field in fields(SampleOptions)} | RECORDED
            if self.before["options"]
            else self.options
        )
        for name in COMMON:
            self._compare(f"--{name}", self.before["options"].get(name, defaults[name]), self.options[name])
        for name, source in self.masks.items():
            self._compare(f"masks {name}", self.before["mask_sources"].get(name, source), source)
        for label in self.settings:
            self._compare_settings(label, ignore=ignore)
        self._compare_model()

    def _compare_settings(self, label: str, *, ignore: Set[str] = frozenset()) -> None:
        now = self.settings[label]
        before = self.before["settings"].get(label, now)
        before = {**FIRST_SOLVER, **before} if "eta" in before else before
        defaults = {**ONLY_IF_GIVEN, **UNRECORDED, "method_sha256": None}
        names = sorted((now.keys() | before.keys()) - NOT_COMPARED - ignore)
        old, new = ({name: some.get(name, defaults.get(name)) for name in names} for some in (before, now))
        self._compare(label, old, new)

    def _compare_model(self) -> None:
        for name, new in self.model.items():
            if name.endswith("hash"):  # a run of the base alone fits to any of its adapters
                self._compare(f"the model's {name}", self.before["model"].get(name, new), new)

    def _compare(self, what: str, old: object, new: object) -> None:
        if _as_json(old) != _as_json(new):
            there = f"{self.path.parent} holds results of {what} {old}, this is {new}"
            raise OtherSettings(f"{there}: give another --output, or delete those")


def _as_json(value: object) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def _hash(adapter: Path) -> str:
    from safetensors.torch import load_file

    from rad.models.weights import weights_hash

    return weights_hash(load_file(adapter))


def method_settings(runtime: Runtime, label: Label) -> dict[str, object]:
    """The settings of a method, without its number of steps."""
    options, method = runtime.options, runtime.methods[label]
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    values |= {name: getattr(options, name) for name, off in ONLY_IF_GIVEN.items() if getattr(options, name) != off}
    values |= runtime.method_file(label)
    if method.weights == "none":
        return {"method": method.name, **values}
    schedule = vars(method.choose(**label.given(options)))
    sampler = {name: schedule[name] for name in ("eta", "solver", "spacing")}
    strength = label.given_strength(options)
    sampler |= {} if strength == 1 else {"start_strength": strength}
    sampler |= {} if (average := label.given_average(options)) == 1 else {"mean_of": average}
    sampler |= {} if (adapt := label.given_adapt(options)) == 0 else {"adapt_steps": adapt}
    sampler |= {} if (thin_steps := label.given_thin_steps(options)) is None else {"thin_steps": thin_steps}
    return {"method": method.name, **sampler, "precision": runtime.precision, **values}


def _prompts(path: str | None) -> str | None:
    """Name of a file of prompts, and a hash of its content."""
    if path is None:
        return None
    content = json.dumps(read_prompts(path), sort_keys=True)
    return f"{Path(path).name}, sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def noise_kind(options: SampleOptions) -> str:
    """The kind of device that draws the noise: "cpu", or the name of the accelerator."""
    if options.noise_device == "cpu":
        return "cpu"
    from rad.device import find_device, kind_of

    return kind_of(find_device(options.device))
