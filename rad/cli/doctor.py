"""`rad doctor`: what this installation is, and a proof that it trains, survives a kill and keeps known pixels.

A line for each check begins with ok, FAILED or note; a failed one says what to do. The whole output, without the name of the
home directory, is what a bug report needs. Nothing is fetched from a network.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rad.cli.environment import ROOT, commit, cores, cpu, memory
from rad.console import EXIT_FAILED, EXIT_OK, Parser, counted, guarded, program

if TYPE_CHECKING:
    from collections.abc import Iterator


PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "lightning",
    "peft": "peft",
    "diffusers": "diffusers",
    "jsonargparse": "jsonargparse",
    "noise": "noise",
    "safetensors": "safetensors",
    "huggingface-hub": "huggingface_hub",
    "numpy": "numpy",
    "pillow": "PIL",
    "scikit-image": "skimage",
}
"""Name on the package index, and of the module."""


SUPPORTED, TESTED = ((3, 10), (3, 13)), (3, 11)
"""Versions of Python: the lowest and highest that rad is written for; the one that its tests run on."""


INSTALL = "in the folder of the project, `pip install -c constraints.txt -e .` installs what was tested"


ROOM = 2**30
"""Bytes that have to be free where runs and the cache are written: less holds no checkpoint of a large adapter."""


SIZE, EVERY, MORE = 16, 2, 3
"""Of the proof: pixels a side, steps between checkpoints, steps after the kill."""


PATIENCE = 600
"""Seconds after which a process of the proof counts as hanging; it takes about ten."""


class Failure(Exception):
    """A check has failed: what happened, what to do, and lines that help to find out why."""

    def __init__(self, what: str, todo: str, details: str = "") -> None:
        super().__init__(f"{what}: {todo}")
        self.details = details


class Report:
    """Prints a line for each check, and counts those that failed."""

    def __init__(self) -> None:
        self.checks = self.failed = 0

    def ok(self, text: str) -> None:
        self.checks += 1
        self._line("ok", text)

    def note(self, text: str) -> None:
        self._line("note", text)

    @contextmanager
    def check(self, name: str) -> "Iterator[None]":
        """Whatever is raised inside is a failed check; Ctrl-C is not."""
        try:
            yield
        except Exception as error:
            self.checks += 1
            self.failed += 1
            known = isinstance(error, Failure)
            text = str(error) if known else f"{name}: {type(error).__name__}: {error}; report it with this output"
            self._line("FAILED", " ".join(text.split()))
            for line in (error.details if known else "").splitlines():
                print(without_home(f"        | {line}"), flush=True)

    def _line(self, state: str, text: str) -> None:
        print(without_home(f"{state:<8}{text}"), flush=True)


def without_home(text: str) -> str:
    """`text` with ~ for the home directory."""
    home = str(Path.home())
    return text if home == os.sep else re.sub(re.escape(home) + r"(?![\w.-])", "~", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out `rad doctor`. Returns the exit code: 0, or 1 where a check failed."""
    parser = Parser(prog=program("doctor"), description="Say what this installation is, and prove that it works.")
    parser.add_argument("--no_proof", action="store_true", help="print the environment alone, which takes seconds")
    options = parser.parse_args(arguments)
    report = Report()
    describe(report)
    if not options.no_proof:
        prove(report)
    if report.failed:
        print(
            f"{report.failed} of {counted(report.checks, 'check')} failed; a bug report needs all lines of this output"
        )
        return EXIT_FAILED
    print(f"all {counted(report.checks, 'check')} passed")
    return EXIT_OK


def describe(report: Report) -> None:
    """Versions, machine, devices, hub and disks."""
    from rad import __version__

    made = commit()
    report.note(f"rad {__version__}, {f'commit {made}' if made else 'no checkout'}, in {ROOT}")
    report.note(f"python {platform.python_version()}, {sys.executable}; {_tested()}")
    bounds = _bounds()
    for package, module in PACKAGES.items():
        with report.check(package):
            _check_package(report, package, module, bounds.get(package, ""))
    usable, there = cores()
    amount = memory()
    told = "memory unknown" if amount is None else f"{_bytes(amount[0])} of memory"
    free = "" if amount is None or amount[1] is None else f", {_bytes(amount[1])} free"
    report.note(f"machine: {platform.platform()}, {cpu()}, {usable} of {counted(there, 'core')} usable, {told}{free}")
    with report.check("devices"):
        _check_devices(report)
    with report.check("hub"):
        cache = _describe_hub(report)
        for name, folder in (("the working folder", Path.cwd()), ("the cache", cache)):
            with report.check("disk"):
                _check_disk(report, name, folder)


def _tested() -> str:
    """What is known about rad on this version of Python."""
    running = sys.version_info[:2]
    known = (
        "rad's tests run on it"
        if running == TESTED
        else "rad's tests have not run on it, only on {}.{}".format(*TESTED)
    )
    lowest, highest = (".".join(map(str, version)) for version in SUPPORTED)
    return f"{known}; {lowest} to {highest} are meant to work"


def _bounds() -> dict[str, str]:
    """The versions that rad asks for, by package; empty where it is not installed as a package."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires("rad-inpainting") or []]
    except metadata.PackageNotFoundError:
        return {}
    return {one.name: str(one.specifier) for one in wanted if one.marker is None}


def _check_package(report: Report, package: str, module: str, bounds: str) -> None:
    from packaging.specifiers import SpecifierSet

    try:
        loaded = import_module(module)
        version = metadata.version(package)
    except Exception as error:  # a broken binary raises anything
        raise Failure(f"{package} cannot be imported ({type(error).__name__}: {error})", INSTALL) from error
    if not SpecifierSet(bounds).contains(version, prereleases=True):
        raise Failure(f"{package} {version} is not {bounds}", INSTALL)
    own = str(getattr(loaded, "__version__", ""))  # torch's also says for which CUDA it was built
    report.ok(f"{package} {own if own.startswith(version) else version}" + (f" ({bounds})" if bounds else ""))


def _check_devices(report: Report) -> None:
    import torch

    from rad.device import find_device

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        built = f"; this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
        report.note(f"devices: no accelerator{built}; everything runs on the CPU")
        return
    for number in range(torch.accelerator.device_count()):
        with report.check(f"device {found.type}:{number}"):
            device = find_device(f"{found.type}:{number}")
            report.ok(f"device {device}" + (f": {_cuda(number)}" if found.type == "cuda" else ""))


def _cuda(number: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    with torch.cuda.device(number):
        half = torch.cuda.is_bf16_supported(including_emulation=False)
    name = torch.cuda.get_device_name(number)
    return f"{name}, {_bytes(total)}, {_bytes(free)} free, {'bf16' if half else 'no bf16: use --precision 32'}"


def _describe_hub(report: Report) -> Path:
    """A note on the Hugging Face hub. Returns its cache folder."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    files = (Path(folder, name) for folder, _, names in os.walk(cache) for name in names)
    size = sum(file.lstat().st_size for file in files if not file.is_symlink())
    switches = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    told = "; ".join(f"{name}={os.environ[name]}" for name in switches) or "HF_HUB_OFFLINE is not set"
    state = "offline" if constants.HF_HUB_OFFLINE else "online, used for hub ids alone"
    report.note(f"hub: {state} ({told}), cache {cache}, {_bytes(size)}")
    return cache


def _check_disk(report: Report, name: str, folder: Path) -> None:
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < ROOM:
        raise Failure(f"disk: {_bytes(free)} free for {name} {folder}", f"make room, at least {_bytes(ROOM)}")
    writable = "" if os.access(there, os.W_OK) else "; it cannot be written to"
    report.ok(f"disk: {_bytes(free)} free for {name} {folder}{writable}")


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def prove(report: Report) -> None:
    """Train through the command line in a folder of its own, kill it, resume it, compare, sample."""
    report.note("proof: a small random network and photographs of scikit-image; of the machinery, not of the quality")
    with report.check("proof"), tempfile.TemporaryDirectory(prefix="rad-doctor-") as name:
        folder = Path(name)
        _write_inputs(folder)
        begun = time.monotonic()
        step = _train_until_killed(folder)
        report.ok(f"proof: training, killed in the middle; saved up to step {step} ({_since(begun)})")
        begun = time.monotonic()
        last = step + MORE
        _train(folder, {"killed": ["--ckpt_path", "last"], "whole": []}, steps=last)
        compared = [_compare(folder / "runs", last, step, suffix) for suffix in ("", "-ema")]
        report.ok(
            f"proof: resumed up to step {last}: {compared[0]} tensors of weights and {compared[1]} of averages equal those of an "
            f"uninterrupted run, bit for bit ({_since(begun)})"
        )
        _sample(report, folder / "runs" / "killed" / "checkpoints" / f"step={last}-ema")


def _since(begun: float) -> str:
    return f"{time.monotonic() - begun:.0f} s"


def _write_inputs(folder: Path) -> None:
    """A base model with random weights, and proof.yaml, which trains an adapter on it."""
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel

    from rad.diffusion.schedules import linear_betas
    from rad.models.base import save_base

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=SIZE,
            out_channels=6,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            attention_head_dim=32,
            resnet_time_scale_shift="scale_shift",
        )
    save_base(folder / "base", unet, betas=linear_betas(), half=False)
    callbacks: list[dict[str, Any]] = [
        {"class_path": "rad.training.EMA"},
        {"class_path": "rad.training.Checkpoint", "init_args": {"every_n_train_steps": EVERY}},
    ]
    config = {
        "model": {"base": str(folder / "base"), "lora": {"rank": 4}, "optimizer": {"init_args": {"lr": 1e-3}}},
        "data": {
            "path": "skimage",
            "val_count": 0,
            "size": SIZE,
            "crop": "random_scale",
            "flip": True,
            "batch_size": 2,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "logger": False,
            "callbacks": callbacks,
        },
    }
    (folder / "proof.yaml").write_text(json.dumps(config))  # JSON is YAML


def _start(folder: Path, name: str, log: IO[str], *words: object) -> "subprocess.Popen[str]":
    """`rad train` in a process of its own, on one thread: that makes results equal bit for bit."""
    program = "from rad.cli.main import train; raise SystemExit(train())"
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(place for place in places if place),
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    }
    command = [sys.executable, "-c", program, "--config", "proof.yaml", "--name", name, *map(str, words)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)


def _train_until_killed(folder: Path) -> int:
    """Begin a run without end, and kill it when it has saved something. Returns the newest step that it saved."""
    from rad.training.resume import find_checkpoint

    runs, log = folder / "runs" / "killed", folder / "killed.log"
    with log.open("w") as stream, _start(folder, "killed", stream, "--trainer.max_steps", 10**9) as running:
        try:
            deadline = time.monotonic() + PATIENCE
            while running.poll() is None and time.monotonic() < deadline:
                if any((runs / "checkpoints").glob("step=*.ckpt")):
                    break
                time.sleep(0.01)
        finally:
            running.kill()
    saved = find_checkpoint("last", runs) if any((runs / "checkpoints").glob("step=*.ckpt")) else None
    if saved is None:
        raise Failure(f"proof: training {_ended(running.returncode)}", "the reason is in its last lines", _tail(log))
    return int(Path(saved).resolve().stem.removeprefix("step="))


def _train(folder: Path, runs: dict[str, list[str]], *, steps: int) -> None:
    """Train runs side by side, each to the end. `runs`: name and further options of each."""
    started = {}
    try:
        for name, words in runs.items():
            with (folder / f"{name}.log").open("w") as log:
                started[name] = _start(folder, name, log, "--trainer.max_steps", steps, *words)
        deadline = time.monotonic() + PATIENCE
        for name, running in started.items():
            try:
                running.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Failure(
                    f"proof: run {name!r} hangs", "report it with this output", _tail(folder / f"{name}.log")
                ) from None
            if running.returncode:
                what = f"proof: run {name!r} {_ended(running.returncode)}"
                raise Failure(what, "the reason is in its last lines", _tail(folder / f"{name}.log"))
    finally:
        for running in started.values():
            running.kill()
            running.wait()


def _ended(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _tail(log: Path, count: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


def _compare(runs: Path, last: int, step: int, suffix: str) -> int:
    """The number of tensors in the last adapters of both runs. Raises Failure where one differs, or nothing was learnt."""
    killed, whole = (runs / run / "checkpoints" for run in ("killed", "whole"))
    name = f"step={last}{suffix}"
    count, wrong = len(_contents(whole / name)), differences(killed / name, whole / name)
    if wrong:
        raise Failure(
            f"proof: {len(wrong)} of {count} tensors of {name} differ between a resumed and an uninterrupted run, the first "
            f"{wrong[0]}",
            "runs are not reproducible on this machine; report it with this output",
        )
    # Not of the killed run: the kill may have come between the checkpoint and the adapter beside it.
    if not differences(whole / name, whole / f"step={step}{suffix}"):
        raise Failure(f"proof: {name} equals that of step {step}", "nothing was learnt; report it with this output")
    return count


def differences(first: Path, second: Path) -> list[str]:
    """Names of tensors of two adapter folders that are not equal, bit for bit."""
    one, other = _contents(first), _contents(second)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _contents(folder: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    return {name: bytes(str(list(w.shape)), "ascii") + w.numpy().tobytes() for name, w in weights.items()}


def _sample(report: Report, adapter: Path) -> None:
    """Fill the middle of a photograph on every kind of device."""
    import numpy as np
    import torch

    from rad.cli.demo import held_out_crops
    from rad.images.codecs import to_uint8
    from rad.inpainting.inpainter import Inpainter
    from rad.masks.shapes import make

    image = to_uint8(held_out_crops(1, size=SIZE)[0])
    hole = make("center")([torch.Generator()], SIZE, SIZE)[0]
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    for device in ["cpu", *([found.type] if found else [])]:
        with report.check(f"proof: sampling on {device}"):
            filled = Inpainter.from_pretrained(adapter, device=device)(image, hole, steps=4).images[0]
            same = (np.asarray(filled) == np.asarray(image)).all(-1)
            known = hole[0].numpy() == 0
            if not same[known].all() or same[~known].all():
                raise Failure(
                    f"proof: sampling on {device} changed {np.sum(~same[known])} of {known.sum()} known pixels and "
                    f"{np.sum(~same[~known])} of the others",
                    "report it with this output",
                )
            report.ok(f"proof: sampling on {device}: {known.sum()} known pixels untouched, {np.sum(~known)} filled")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
