"""Measures memory of a training step: unpatched, factorised and dense networks side by side.

    python benchmarks/memory.py --config ffhq
    python benchmarks/memory.py --config ffhq --lora

Prints a table with the bytes kept for the backward pass and the peak, and their ratios to the unpatched network. Weights are
random. The peak is the growth of the process's maximum resident size during the step (on "cuda": torch's maximum allocation).
Each peak is measured in a fresh process; the processes take turns.

Goal for the factorised network: at most 1.05 times the peak of the unpatched one.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing
from benchmarks.networks import (
    BATCH,
    CONFIGS,
    VARIANTS,
    ConfigName,
    Variant,
    build,
    forward,
    image,
    training_step,
    variant_of,
)


def saved_bytes(network: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes that `call` keeps for the backward pass: each storage once, without the parameters of `network`."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # keeps the storage alive without a cycle through the graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    assert output.requires_grad
    return sum(storages.values())


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Growth of the peak during `step`, which must be the first work of this process on `device`."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = _largest_resident()
    step()
    return _largest_resident() - before


def _largest_resident() -> int:
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


def measure(
    config: ConfigName, variant: Variant, quantity: str, *, batch: int, lora: bool, device: str, threads: int
) -> int:
    """Bytes in this process; quantity: "saved" or "peak"."""
    torch.set_num_threads(threads)
    network = variant_of(build(config, device=device), variant, lora=lora)
    call = forward(network, variant, image(config, batch=batch, device=device))
    return saved_bytes(network, call) if quantity == "saved" else peak_bytes(training_step(network, call), device)


def measure_afresh(**setting: str | int | bool) -> int:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "--one", json.dumps(setting)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="unpatched, factorised and dense networks: memory of a training step")
    parser.add_argument("--config", choices=list(CONFIGS), default="ffhq")
    parser.add_argument("--batch", type=int, default=None, help="images (default: 1; nature32: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="processes per peak")
    parser.add_argument("--lora", action="store_true", help="train RAD's adapter instead of all parameters")
    parser.add_argument("--no-dense", action="store_true", help="skip the dense reference")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(measure(**json.loads(given.one)))
        return
    torch.set_num_threads(given.threads)
    batch = given.batch or BATCH[given.config]
    variants = VARIANTS[:2] if given.no_dense else VARIANTS
    setting = {
        "config": given.config,
        "batch": batch,
        "lora": given.lora,
        "device": given.device,
        "threads": given.threads,
    }
    size = CONFIGS[given.config]["sample_size"]
    trained = "RAD's adapter" if given.lora else "all parameters"
    timing.print_setting(
        f"{given.config}, {size}x{size}, batch {batch}, random weights, training step of {trained}",
        repeats=given.repeats,
        device=given.device,
    )
    saved = {variant: measure_afresh(variant=variant, quantity="saved", **setting) for variant in variants}
    peaks: dict[Variant, list[int]] = {variant: [] for variant in variants}
    for _ in range(given.repeats):
        for variant in variants:
            peaks[variant].append(measure_afresh(variant=variant, quantity="peak", **setting))
    peak = {variant: statistics.median(values) for variant, values in peaks.items()}
    timing.print_table(
        ["network", "kept for backward, MB", "ratio", "median peak, MB", "smallest, largest", "ratio of medians"],
        [
            [
                variant,
                f"{saved[variant] / 1e6:.1f}",
                f"{saved[variant] / saved['unpatched']:.3f}",
                f"{peak[variant] / 1e6:.0f}",
                f"{min(peaks[variant]) / 1e6:.0f}, {max(peaks[variant]) / 1e6:.0f}",
                f"{peak[variant] / peak['unpatched']:.3f}",
            ]
            for variant in variants
        ],
    )


if __name__ == "__main__":
    main()
