"""`rad doctor`: the environment of this installation, and a test that it trains, resumes after a kill, and samples.

Each check prints a line that begins with ok, FAILED or note; a failed check names the remedy. The output hides the path of the
home directory. No check uses a network.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import IO

from rad.cli import environment
from rad.cli.environment import format_bytes
from rad.console import EXIT_FAILED, EXIT_OK, Parser, counted, guarded, print_line, program
from rad.evaluation import provenance
from rad.evaluation.provenance import ROOT

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
"""Name on the package index, and module name."""


INSTALL = "`pip install -c constraints.txt -e .` in the project folder installs the tested versions"


MINIMUM_SPACE = 2**30
"""Required free bytes in the working folder and the cache: enough for a checkpoint of a large adapter."""


SIZE, EVERY, MORE = 16, 2, 3
"""Of the training test: pixels per side, steps between checkpoints, steps after the kill."""

TIMEOUT = 600
"""Seconds after which a process of the training test counts as hanging. It usually takes ten."""

REPORT_IT, SEE_LOG = "report it with this output", "see the last lines of its log"


class Failure(Exception):
    """A failed check: the problem, the remedy, and log lines."""

    def __init__(self, problem: str, remedy: str, details: str = "") -> None:
        super().__init__(f"{problem}: {remedy}")
        self.details = details


class Report:
    """Prints a line per check and counts the failures."""

    def __init__(self) -> None:
        self.checks = self.failed = 0

    def ok(self, text: str) -> None:
        self.checks += 1
        self._line("ok", text)

    def note(self, text: str) -> None:
        self._line("note", text)

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Report any exception of the block, except Ctrl-C, as a failed check."""
        try:
            yield
        except Exception as error:
            self.checks += 1
            self.failed += 1
            known = isinstance(error, Failure)
            text = str(error) if known else f"{name}: {type(error).__name__}: {error}; {REPORT_IT}"
            self._line("FAILED", " ".join(text.split()))
            for line in (error.details if known else "").splitlines():
                print_line(without_home(f"        | {line}"))

    def _line(self, state: str, text: str) -> None:
        print_line(without_home(f"{state:<8}{text}"))


def without_home(text: str) -> str:
    """`text` with ~ for the home directory."""
    home = str(Path.home())
    return text if home == os.sep else re.sub(re.escape(home) + r"(?![\w.-])", "~", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a check failed."""
    parser = Parser(prog=program("doctor"), description="Print the environment and test the installation.")
    parser.add_argument("--no_proof", action="store_true", help="print the environment only, in seconds")
    options = parser.parse_args(arguments)
    report = Report()
    describe(report)
    if not options.no_proof:
        prove(report)
    checks = counted(report.checks, "check")
    if report.failed:
        print_line(f"{report.failed} of {checks} failed; include all lines of this output in a bug report")
        return EXIT_FAILED
    print_line(f"all {checks} passed")
    return EXIT_OK


def describe(report: Report) -> None:
    """Report versions, machine, devices, hub and disks."""
    from rad import __version__

    commit = provenance.commit()
    report.note(f"rad {__version__}, {f'commit {commit}' if commit else 'no checkout'}, in {ROOT}")
    report.note(f"python {platform.python_version()}, {sys.executable}; {environment.python_support()}")
    bounds, tested = environment.version_bounds(), environment.tested_versions()
    for package, module in PACKAGES.items():
        with report.check(package):
            _check_package(report, package, module, bounds.get(package, ""), tested.get(package))
    (usable, total), amount = environment.cores(), environment.memory()
    size = "memory unknown" if amount is None else f"{format_bytes(amount[0])} of memory"
    free = "" if amount is None or amount[1] is None else f", {format_bytes(amount[1])} free"
    report.note(
        f"machine: {platform.platform()}, {environment.cpu()}, {usable} of {counted(total, 'core')} usable, {size}{free}"
    )
    with report.check("devices"):
        _check_devices(report)
    with report.check("hub"):
        cache = _describe_hub(report)
        for name, folder in (("the working folder", Path.cwd()), ("the cache", cache)):
            with report.check("disk"):
                _check_disk(report, name, folder)


def _check_package(report: Report, package: str, module: str, bounds: str, tested: tuple[str, str] | None) -> None:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    try:
        loaded = import_module(module)
        version = metadata.version(package)
    except Exception as error:  # a broken binary raises anything
        raise Failure(f"{package} cannot be imported ({type(error).__name__}: {error})", INSTALL) from error
    if not SpecifierSet(bounds).contains(version, prereleases=True):
        raise Failure(f"{package} {version} is not {bounds}", INSTALL)
    full = str(getattr(loaded, "__version__", ""))  # torch's includes the CUDA version
    text = f"{package} {full if full.startswith(version) else version}" + (f" ({bounds})" if bounds else "")
    if tested is not None:
        lowest, highest = map(Version, tested)
        inside = lowest <= Version(Version(version).public) <= highest
        text += f", {'tested' if inside else 'outside the tested'} {lowest} to {highest}"
    report.ok(text)


def _check_devices(report: Report) -> None:
    import torch

    from rad.device import find_device

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        report.note(f"devices: no accelerator; everything runs on the CPU; this torch is {build}")
        return
    for number in range(torch.accelerator.device_count()):
        with report.check(f"device {accelerator.type}:{number}"):
            device = find_device(f"{accelerator.type}:{number}")
            report.ok(f"device {device}" + (f": {_cuda(number)}" if accelerator.type == "cuda" else ""))


def _cuda(number: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    with torch.cuda.device(number):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    name = torch.cuda.get_device_name(number)
    return (
        f"{name}, {format_bytes(total)}, {format_bytes(free)} free, {'bf16' if bf16 else 'no bf16: use --precision 32'}"
    )


def _describe_hub(report: Report) -> Path:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    files = (Path(folder, name) for folder, _, names in os.walk(cache) for name in names)
    size = sum(file.lstat().st_size for file in files if not file.is_symlink())
    names = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    switches = "; ".join(f"{name}={os.environ[name]}" for name in names) or "HF_HUB_OFFLINE is not set"
    state = "offline" if constants.HF_HUB_OFFLINE else "online, used for hub ids only"
    report.note(f"hub: {state} ({switches}), cache {cache}, {format_bytes(size)}")
    return cache


def _check_disk(report: Report, name: str, folder: Path) -> None:
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < MINIMUM_SPACE:
        raise Failure(
            f"disk: {format_bytes(free)} free for {name} {folder}", f"free at least {format_bytes(MINIMUM_SPACE)}"
        )
    writable = "" if os.access(existing, os.W_OK) else "; it cannot be written to"
    report.ok(f"disk: {format_bytes(free)} free for {name} {folder}{writable}")


def prove(report: Report) -> None:
    """Train through the command line in a temporary folder, kill, resume, compare with an uninterrupted run, sample."""
    report.note("proof: tests the program with a small random network; it says nothing about quality")
    with report.check("proof"), tempfile.TemporaryDirectory(prefix="rad-doctor-") as name:
        folder = Path(name)
        _write_inputs(folder)
        began = time.monotonic()
        step = _train_until_killed(folder)
        report.ok(f"proof: training killed; saved up to step {step} ({_since(began)})")
        began = time.monotonic()
        last = step + MORE
        _train(folder, {"killed": ["--ckpt_path", "last"], "whole": []}, steps=last)
        compared = [_compare(folder / "runs", last, step, suffix) for suffix in ("", "-ema")]
        report.ok(
            f"proof: resumed up to step {last}: {compared[0]} weight tensors and {compared[1]} averages equal those of an "
            f"uninterrupted run, bit for bit ({_since(began)})"
        )
        _sample(report, folder / "runs" / "killed" / "checkpoints" / f"step={last}-ema")


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"


def _write_inputs(folder: Path) -> None:
    """Write a random base model, and proof.yaml, the configuration that trains an adapter on it."""
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
    checkpoint = {"class_path": "rad.training.Checkpoint", "init_args": {"every_n_train_steps": EVERY}}
    callbacks = [{"class_path": "rad.training.EMA"}, checkpoint]
    trainer = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}
    config = {
        "model": {"base": str(folder / "base"), "lora": {"rank": 4}, "optimizer": {"init_args": {"lr": 1e-3}}},
        "data": {"path": "skimage", "val_count": 0, "size": SIZE, "crop": "random_scale", "batch_size": 2},
        "trainer": {**trainer, "callbacks": callbacks},
    }
    (folder / "proof.yaml").write_text(json.dumps(config))  # JSON is YAML


def _start(folder: Path, name: str, log: IO[str], *words: object) -> "subprocess.Popen[str]":
    """Start `rad train` as a process with one thread, which makes its results reproducible bit for bit."""
    code = "from rad.cli.main import train; raise SystemExit(train())"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    }
    command = [sys.executable, "-c", code, "--config", "proof.yaml", "--name", name, *map(str, words)]
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log, text=True)


def _train_until_killed(folder: Path) -> int:
    """Start a run without a last step, and kill it after its first checkpoint. Returns the last saved step."""
    from rad.training.resume import find_checkpoint

    run, log = folder / "runs" / "killed", folder / "killed.log"
    with log.open("w") as stream, _start(folder, "killed", stream, "--trainer.max_steps", 10**9) as running:
        try:
            deadline = time.monotonic() + TIMEOUT
            while running.poll() is None and not _saved(run) and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            running.kill()
    saved = find_checkpoint("last", run) if _saved(run) else None
    if saved is None:
        raise Failure(f"proof: training {_ended(running.returncode)}", SEE_LOG, _tail(log))
    return int(Path(saved).resolve().stem.removeprefix("step="))


def _saved(run: Path) -> bool:
    return any((run / "checkpoints").glob("step=*.ckpt"))


def _train(folder: Path, runs: dict[str, list[str]], *, steps: int) -> None:
    """Train runs side by side to the last step. `runs`: names with extra options."""
    started = {}
    try:
        for name, words in runs.items():
            with (folder / f"{name}.log").open("w") as log:
                started[name] = _start(folder, name, log, "--trainer.max_steps", steps, *words)
        for name, running in started.items():
            try:
                running.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                raise Failure(f"proof: run {name!r} hangs", REPORT_IT, _tail(folder / f"{name}.log")) from None
            if running.returncode:
                problem = f"proof: run {name!r} {_ended(running.returncode)}"
                raise Failure(problem, SEE_LOG, _tail(folder / f"{name}.log"))
    finally:
        for running in started.values():
            running.kill()
            running.wait()


def _ended(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _tail(log: Path, count: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


def _compare(runs: Path, last: int, step: int, suffix: str) -> int:
    """Number of tensors in the last adapters of both runs. Raises Failure if a tensor differs or training has no effect."""
    killed, whole = (runs / run / "checkpoints" for run in ("killed", "whole"))
    name = f"step={last}{suffix}"
    count, changed = len(_contents(whole / name)), differences(killed / name, whole / name)
    if changed:
        raise Failure(
            f"proof: {len(changed)} of {count} tensors of {name} differ between a resumed and an uninterrupted run, first "
            f"{changed[0]}",
            f"runs are not reproducible on this machine; {REPORT_IT}",
        )
    # The killed run may lack this adapter, which is written after the checkpoint.
    if not differences(whole / name, whole / f"step={step}{suffix}"):
        raise Failure(f"proof: {name} equals step {step}, so training has no effect", REPORT_IT)
    return count


def differences(first: Path, second: Path) -> list[str]:
    """Names of the tensors that differ between two adapter folders."""
    left, right = _contents(first), _contents(second)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def _contents(folder: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    return {name: bytes(str(list(w.shape)), "ascii") + w.numpy().tobytes() for name, w in weights.items()}


def _sample(report: Report, adapter: Path) -> None:
    import numpy as np
    import torch

    from rad.cli.demo import held_out_crops
    from rad.inpainting.inpainter import Inpainter
    from rad.masks.shapes import make

    image = held_out_crops()[0].resize((SIZE, SIZE))
    hole = make("center")([torch.Generator()], SIZE, SIZE)[0]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    for device in ["cpu", *([accelerator.type] if accelerator else [])]:
        with report.check(f"proof: sampling on {device}"):
            filled = Inpainter.from_pretrained(adapter, device=device)(image, hole, steps=4).images[0]
            same = (np.asarray(filled) == np.asarray(image)).all(-1)
            known = hole[0].numpy() == 0
            if not same[known].all() or same[~known].all():
                raise Failure(
                    f"proof: sampling on {device} changed {np.sum(~same[known])} of {known.sum()} known pixels and "
                    f"{np.sum(~same[~known])} of {np.sum(~known)} in the hole",
                    REPORT_IT,
                )
            report.ok(f"proof: sampling on {device}: {known.sum()} known pixels unchanged, {np.sum(~known)} filled")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
