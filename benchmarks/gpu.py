"""Measures the speed and memory of training and sampling on one GPU, in at most eight minutes, and writes a table.

    python benchmarks/gpu.py --output runs/gpu
    python benchmarks/gpu.py --output runs/gpu --cases train-ffhq sample-ffhq --seconds 120
    python benchmarks/gpu.py --dry-run --device cpu --size 32 --output runs/gpu-dry

Writes OUTPUT/gpu.md and OUTPUT/gpu.json after every case, so that an interrupted run leaves valid tables. `--dry-run` runs every
case with a tiny network in about a minute, to check the script; its times mean nothing.

The networks have the shapes of configs/rad_ffhq.yaml (93.6 M) and configs/rad_imagenet.yaml (552.8 M) and random weights. Speed
does not depend on the weights. No data are read. The variants of a case run in alternation in one process; "relative time" is 1
for the first of them. Cases run in order of importance until `--seconds` are over. A variant without enough memory, or with
another error, is a row with the reason.

| case | content |
|---|---|
| train-NETWORK | an adapter on ready tensors: plain fine-tuning, RAD, RAD with the dense embedding; the step of `rad train` |
| waits | where and how often a training step and a sampling run wait for the device |
| precision-NETWORK | the whole step in float32, TF32 and bf16-mixed |
| sample-NETWORK | time of a network call in rad, ddnm, repaint and dps |
| sample-options-NETWORK | rad with bfloat16, channels_last |
| options-NETWORK | the whole step with channels_last, gradient checkpointing, fused AdamW |
| numerics | errors of each precision against float64, on a small network |
| compile-NETWORK, sample-compile-NETWORK | torch.compile, with CUDA graphs for sampling |
| graphs | number of graphs of torch.compile, and the reasons of the breaks; counted on the CPU |
"""

import argparse
import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from diffusers import UNet2DModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu_counts, gpu_numerics
from benchmarks.gpu_report import Report, Row
from benchmarks.gpu_timing import (
    PRECISIONS,
    OutOfTimeError,
    Precision,
    Timing,
    Work,
    alternate,
    describe,
    free,
    time_limit,
)
from benchmarks.gpu_waits import quietly
from benchmarks.gpu_work import Options, Sampling, Setting, TrainingStep, network_step
from benchmarks.networks import ConfigName, Variant
from rad.cli.environment import cores, cpu
from rad.evaluation.provenance import call

CASE_SECONDS = 60.0
"""Time limit of a case; the compiling cases and the graphs have twice as much."""
CHECKPOINTED: dict[ConfigName, bool] = {"ffhq": False, "imagenet": True}
"""Gradient checkpointing in configs/rad_ffhq.yaml and configs/rad_imagenet.yaml."""
TINY = {
    "block_out_channels": (32,),
    "layers_per_block": 1,
    "attention_head_dim": 32,
    "down_block_types": ("AttnDownBlock2D",),
    "up_block_types": ("AttnUpBlock2D",),
}
"""The network of a dry run, of one level, as changes to a configuration."""
PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "peft", "triton", "numpy")


class Bench:
    """The cases. Each returns its rows; see the table at the top.

    Args:
        size: side of the images; batch: images; rounds: blocks of each variant; dry: a tiny network and one round.
    """

    def __init__(self, device: str, *, size: int, batch: int, rounds: int, dry: bool) -> None:
        self.device, self.size, self.batch, self.rounds, self.dry = device, size, batch, rounds, dry
        self._kept: tuple[ConfigName, UNet2DModel] | None = None

    def setting(self, config: ConfigName) -> Setting:
        setting = Setting(config, self.size, self.batch, self.device)
        return replace(setting, changes=TINY) if self.dry else setting

    def unet(self, config: ConfigName) -> UNet2DModel:
        """The network of a configuration; the last one is kept."""
        if self._kept is None or self._kept[0] != config:
            self._kept = None
            self._kept = config, self.setting(config).network()
        return self._kept[1]

    @property
    def backend(self) -> str:
        """Backend of torch.compile."""
        return "eager" if self.dry else "inductor"

    def timed(self, variants: Mapping[str, Callable[[], Work]], seconds: float) -> dict[str, Timing]:
        """Measure variants side by side."""
        return alternate(
            variants,
            device=self.device,
            seconds=seconds,
            rounds=1 if self.dry else self.rounds,
            block_seconds=0.0 if self.dry else 0.3,
        )

    def train(self, config: ConfigName, seconds: float) -> tuple[str, list[Row]]:
        setting, unet, rows = self.setting(config), self.unet(config), []
        stock: dict[str, Variant] = {"plain fine-tuning": "unpatched", "RAD": "factorised", "RAD, dense": "dense"}
        options = Options(checkpointing=CHECKPOINTED[config])
        precisions: tuple[Precision, ...] = ("bf16-mixed", "torch default")
        for precision in precisions:
            runs: dict[str, Callable[[], Work]] = {
                name: partial(network_step, setting, unet, variant, precision, checkpointing=options.checkpointing)
                for name, variant in stock.items()
            }
            runs["RAD, whole step"] = lambda precision=precision: TrainingStep(setting, unet, precision, options).work()
            timed = self.timed(runs, seconds / len(precisions))
            rows += self._training_rows(config, timed, precision=precision)
        return "Training step of an adapter", rows

    def whole_steps(
        self, title: str, config: ConfigName, runs: Mapping[str, tuple[Precision, Options]], seconds: float
    ) -> tuple[str, list[Row]]:
        """The whole step with each precision and options."""
        setting, unet = self.setting(config), self.unet(config)
        works = {
            name: (lambda choice=choice: TrainingStep(setting, unet, *choice).work()) for name, choice in runs.items()
        }
        timed = self.timed(works, seconds)
        return f"Whole training step: {title}", self._training_rows(config, timed)

    def _training_rows(self, config: ConfigName, timed: Mapping[str, Timing], **cells: str) -> list[Row]:
        rows, first = [], next(iter(timed.values()))
        for name, timing in timed.items():
            speed = self.batch / timing.median if timing.seconds else None
            shared = shared_cells(timing, first)
            rows.append({"network": config, "variant": name, **cells, "batch": self.batch, "images/s": speed, **shared})
        return rows

    def precision(self, config: ConfigName, seconds: float) -> tuple[str, list[Row]]:
        options = Options(checkpointing=CHECKPOINTED[config])
        return self.whole_steps("precision", config, {name: (name, options) for name in PRECISIONS}, seconds)

    def options(self, config: ConfigName, seconds: float) -> tuple[str, list[Row]]:
        usual = Options(checkpointing=CHECKPOINTED[config])
        changed = {
            "bf16-mixed": usual,
            "gradient checkpointing" if not usual.checkpointing else "no gradient checkpointing": replace(
                usual, checkpointing=not usual.checkpointing
            ),
            "channels_last, base weights": replace(usual, channels_last="weights"),
            "channels_last, everything": replace(usual, channels_last="all"),
            "base weights in bfloat16": replace(usual, base_dtype="bfloat16"),
            "fused AdamW": replace(usual, fused=True),
            "cudnn.benchmark": replace(usual, tuned=True),
        }
        return self.whole_steps(
            "options", config, {name: ("bf16-mixed", each) for name, each in changed.items()}, seconds
        )

    def compiled(self, config: ConfigName, seconds: float) -> tuple[str, list[Row]]:
        usual = Options(checkpointing=CHECKPOINTED[config])
        changed = {"bf16-mixed": usual, "torch.compile": replace(usual, compile=self.backend)}
        return self.whole_steps(
            "torch.compile", config, {name: ("bf16-mixed", each) for name, each in changed.items()}, seconds
        )

    def sample(self, config: ConfigName, seconds: float) -> tuple[str, list[Row]]:
        runs: dict[str, Callable[..., Sampling]] = {
            name: partial(Sampling, method=name, precision="torch default")
            for name in ("rad", "ddnm", "repaint", "dps")
        }
        return self._sampling("methods", config, runs, seconds)

    def sample_options(self, config: ConfigName, seconds: float) -> tuple[str, list[Row]]:
        rad = partial(Sampling, method="rad")
        runs: dict[str, Callable[..., Sampling]] = {f"rad, {name}": partial(rad, precision=name) for name in PRECISIONS}
        last = Options(channels_last="all")
        runs["rad, bf16-mixed, channels_last"] = partial(rad, precision="bf16-mixed", options=last)
        return self._sampling("precision and memory format", config, runs, seconds)

    def sample_compiled(self, config: ConfigName, seconds: float) -> tuple[str, list[Row]]:
        rad = partial(Sampling, method="rad", precision="bf16-mixed")
        compiled = partial(rad, options=Options(compile=self.backend))
        runs: dict[str, Callable[..., Sampling]] = {
            "rad, bf16-mixed": rad,
            "rad, torch.compile": compiled,
            "rad, torch.compile, CUDA graphs": partial(compiled, mode=None if self.dry else "reduce-overhead"),
        }
        return self._sampling("torch.compile", config, runs, seconds)

    def _sampling(
        self, title: str, config: ConfigName, runs: Mapping[str, Callable[..., Sampling]], seconds: float
    ) -> tuple[str, list[Row]]:
        """Rows of runs; `runs` build them from the setting and the network. Ratios are of the times of a network call."""
        setting, unet, built = self.setting(config), self.unet(config), {}

        def work(name: str) -> Work:
            built[name] = runs[name](setting, unet)
            return built[name].work()

        timed = self.timed({name: partial(work, name) for name in runs}, seconds)
        rows, first = [], next(iter(timed))
        for name, timing in timed.items():
            row: Row = {"network": config, "variant": name, "batch": self.batch}
            if timing.seconds:
                nfe, rate = built[name].nfe, built[name].nfe / timing.median
                row |= {"calls": nfe, "VJPs": built[name].vjp, "calls/s": rate, "images x calls/s": rate * self.batch}
            scale = built[first].nfe / built[name].nfe if timing.seconds and timed[first].seconds else 1.0
            rows.append(row | shared_cells(timing, timed[first], scale=scale))
        return f"Sampling: {title}", rows

    def numerics(self, seconds: float) -> tuple[str, list[Row]]:
        changes = TINY if self.dry else {"block_out_channels": (64, 128, 256)}
        rows = gpu_numerics.errors(Setting("nature32", 32 if self.dry else 64, 2, self.device, changes))
        return "Relative errors of a small network", rows

    def waits(self, seconds: float) -> tuple[str, list[Row]]:
        return "Waits for the device", gpu_counts.waits(self.setting("ffhq"), self.unet("ffhq"))

    def graphs(self, seconds: float) -> tuple[str, list[Row]]:
        narrow = {"block_out_channels": (32, 32, 32, 32, 64, 64), "attention_head_dim": 32}
        setting = Setting("ffhq", 64, 4, "cpu", TINY if self.dry else narrow)
        return "Graphs of torch.compile", gpu_counts.graphs(setting)


def shared_cells(timing: Timing, to: Timing, *, scale: float = 1.0) -> Row:
    """Cells of all timed tables. `scale`: factor of the ratio, for runs of unequal length."""
    if not timing.seconds:
        return {"remark": timing.error}
    return {
        "ms": 1000 * timing.median,
        "spread": timing.spread,
        "blocks": len(timing.seconds),
        "relative time": scale * timing.ratio(to) if to.seconds else None,
        "peak GiB": None if timing.peak is None else timing.peak / 2**30,
        "first call s": timing.first_call,
        "remark": "",
    }


def cases(bench: Bench) -> dict[str, tuple[float, Callable[[float], tuple[str, list[Row]]]]]:
    """Name, time limit in seconds, and function of each case, the most important first."""
    once = CASE_SECONDS * (10 if bench.dry else 1)  # a dry run checks the script, also on a busy machine
    twice = 2 * once
    return {
        "train-ffhq": (once, partial(bench.train, "ffhq")),
        "sample-ffhq": (once, partial(bench.sample, "ffhq")),
        "waits": (once, bench.waits),
        "precision-ffhq": (once, partial(bench.precision, "ffhq")),
        "options-ffhq": (once, partial(bench.options, "ffhq")),
        "sample-options-ffhq": (once, partial(bench.sample_options, "ffhq")),
        "numerics": (once, bench.numerics),
        "train-imagenet": (once, partial(bench.train, "imagenet")),
        "sample-imagenet": (once, partial(bench.sample, "imagenet")),
        "compile-ffhq": (twice, partial(bench.compiled, "ffhq")),
        "sample-compile-ffhq": (twice, partial(bench.sample_compiled, "ffhq")),
        "options-imagenet": (once, partial(bench.options, "imagenet")),
        "graphs": (twice, bench.graphs),
    }


def measure(report: Report, bench: Bench, chosen: Sequence[str], *, seconds: float) -> None:
    """Run the chosen cases within `seconds`, and write the report after each."""
    end = time.perf_counter() + seconds
    listed = cases(bench)
    for name in chosen:
        limit, case = listed[name]
        begin = time.perf_counter()
        left = end - begin
        if left < 0.1 * limit:
            report.unfinished[name] = "the time was over"
            continue
        try:
            with time_limit(min(left, 1.5 * limit)), quietly():
                title, rows = case(min(left, limit))
                report.add(title, rows)
        except (Exception, OutOfTimeError) as error:
            report.unfinished[name] = describe(error)
        free(bench.device)
        report.head["seconds"] = round(seconds - (end - time.perf_counter()))
        report.write()
        print(f"{name}: {time.perf_counter() - begin:.0f} s {report.unfinished.get(name, '')}", flush=True)
    report.write()


def machine(device: str) -> dict[str, object]:
    """Device, versions and command."""
    found: dict[str, object] = {"device": "CPU" if device == "cpu" else torch.cuda.get_device_name()}
    found["processor"] = f"{cpu()}, {cores()[0]} cores"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["memory of the device"] = f"{properties.total_memory / 2**30:.0f} GiB"
        found["multiprocessors"] = properties.multi_processor_count
        found["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    found["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {**found, "python": platform.python_version(), **call()}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of gpu.md and gpu.json")
    parser.add_argument("--seconds", type=float, default=480, help="time limit of all cases")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="run these cases only, in this order")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each variant")
    parser.add_argument("--dry-run", action="store_true", help="tiny networks, one call a block: checks the script")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options()
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device: use --dry-run --device cpu --size 32 to check the script without one")
    bench = Bench(given.device, size=given.size, batch=given.batch, rounds=given.rounds, dry=given.dry_run)
    chosen = given.cases or list(cases(bench))
    unknown = sorted(set(chosen) - set(cases(bench)))
    if unknown:
        parser.error(f"unknown cases {', '.join(unknown)}; there are {', '.join(cases(bench))}")
    if given.device == "cpu" and not given.dry_run and set(chosen) != {"graphs"}:
        parser.error("the networks are too large for a CPU: add --dry-run, or choose --cases graphs")
    setting = f"{given.size}x{given.size}, batch {given.batch}, random weights (speed does not depend on them)"
    if given.dry_run:
        setting += "; DRY RUN of a tiny network: the times mean nothing"
    report = Report(given.output, {**machine(given.device), "setting": setting})
    report.write()
    # The results so far are on the disk; a call that cannot be interrupted must not outlast the limit by much.
    last_resort = threading.Timer(given.seconds + 30, os._exit, [124])
    last_resort.daemon = True
    last_resort.start()
    try:
        measure(report, bench, chosen, seconds=given.seconds)
    finally:
        last_resort.cancel()
    print(report.markdown())


if __name__ == "__main__":
    main()
