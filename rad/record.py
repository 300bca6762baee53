"""What is kept beside the results of a comparison: run.json, how they were made, and costs.csv, what each image cost."""

import argparse
import csv
import datetime
import io
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rad.files import write_text
from rad.jobs import Cell, Job, Label

if TYPE_CHECKING:
    from rad.inpainter import Inpainted, Inpainter
    from rad.sampler import Method

COSTS = ("image", "nfe", "vjp", "seconds", "peak_mib")
SAME = ("image", "seed", "num_samples", "size_policy", "margin", "mask_polarity")
"""Options that all results of a folder have in common: without them they could not be compared."""


def describe(
    options: argparse.Namespace, inpainter: "Inpainter", methods: Mapping[Label, "Method"], steps: Mapping[Label, int]
) -> None:
    """Write OUTPUT/run.json, or add this run to the one that is there.

    Raises:
        ValueError: the results in the folder come from another model, other pictures or other settings.
    """
    path = Path(options.output) / "run.json"
    settings = {label.text: _settings(options, method, steps[label]) for label, method in methods.items()}
    model = {"checkpoint": options.checkpoint, "base": inpainter.base.source, "base_hash": inpainter.base.hash}
    if inpainter.peft is not None:
        from safetensors.torch import load_file

        from rad.load import weights_hash

        model["adapter_hash"] = weights_hash(load_file(Path(options.checkpoint) / "adapter_model.safetensors"))
    run: dict[str, Any] = {
        "command": [_command()],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "environment": _environment(inpainter),
        "options": vars(options),
        "model": model,
        "masks": [Path(mask).stem if Path(mask).exists() else mask for mask in dict.fromkeys(options.mask)],
        "methods": list(settings),
        "settings": settings,
    }
    if path.exists():
        run = _joined(json.loads(path.read_text()), run, path, overwrite=options.overwrite)
    write_text(path, json.dumps(run, indent=2, default=str) + "\n")


def _joined(before: dict[str, Any], run: dict[str, Any], path: Path, *, overwrite: bool) -> dict[str, Any]:
    """The record of a folder after one more run."""
    for name in SAME:
        old, new = before["options"].get(name), run["options"].get(name)
        if old != new:
            raise ValueError(f"{path.parent} holds results of --{name} {old}, this is {new}: give another --output")
    for name in ("base_hash", "adapter_hash"):
        old, new = before["model"].get(name), run["model"].get(name)
        if old != new and not (
            name == "adapter_hash" and None in (old, new)
        ):  # the base alone fits to any of its adapters
            raise ValueError(
                f"{path.parent} holds results of {before['model']['checkpoint']} ({name} {old}), "
                f"this is {run['model']['checkpoint']} ({new}): give another --output"
            )
    for label in before["settings"].keys() & run["settings"].keys():
        if before["settings"][label] != run["settings"][label] and not overwrite:
            raise ValueError(
                f"{path.parent} holds results of {label} with {before['settings'][label]}, this is "
                f"{run['settings'][label]}: give another --output, or --overwrite"
            )
    return {
        **run,
        "model": {**before["model"], **run["model"]},
        "command": list(dict.fromkeys([*before["command"], *run["command"]])),
        "masks": list(dict.fromkeys([*before["masks"], *run["masks"]])),
        "methods": list(dict.fromkeys([*before["methods"], *run["methods"]])),
        "settings": {**before["settings"], **run["settings"]},
    }


def add_costs(cell: Cell, jobs: Sequence[Job], result: "Inpainted", windows: Sequence[int]) -> None:
    """Write what a batch cost into the cell's costs.csv, shared out by the windows of each picture."""
    path, total = cell.folder / "costs.csv", max(1, sum(windows))
    rows = read_costs(path) if path.exists() else {}
    for job, share in zip(jobs, windows, strict=True):
        part = share / total
        rows[job.identity] = {
            "nfe": round(result.nfe * part),
            "vjp": round(result.vjp * part),
            "seconds": round(result.seconds * part, 6),
            "peak_mib": round(result.peak_memory / 2**20),
        }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COSTS)
    writer.writerows([image, *row.values()] for image, row in rows.items())
    write_text(path, text.getvalue())


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """By image: network calls, backward passes and seconds for all its samples, and the peak memory in MiB."""
    with path.open(newline="") as file:
        return {row["image"]: {name: float(row[name]) for name in COSTS[1:]} for row in csv.DictReader(file)}


def _settings(options: argparse.Namespace, method: "Method", steps: int) -> dict[str, Any]:
    eta = options.eta if options.eta is not None and method.uses_eta else method.preset_eta
    own = {one.name: getattr(method, one.name) for one in fields(method)}
    shown = {name: value if isinstance(value, int | float | str | None) else str(value) for name, value in own.items()}
    if method.weights == "none":
        return {"method": method.name, **shown}
    return {"method": method.name, "steps": steps, "eta": eta, "precision": options.precision, **shown}


def _command() -> str:
    return shlex.join(["python", *sys.argv])


def _commit() -> str | None:
    """The commit of the program, with "+" if its files were changed since; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[1])]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _environment(inpainter: "Inpainter") -> dict[str, Any]:
    import torch

    import rad

    device = inpainter.device
    return {
        "rad": rad.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "system": platform.system(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
