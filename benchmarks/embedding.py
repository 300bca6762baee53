"""Measures FLOPs and time of the spatial noise embedding: unpatched, factorised and dense networks side by side.

    python benchmarks/embedding.py --config ffhq
    python benchmarks/embedding.py --config ffhq --train --lora

Prints a table with FLOPs, seconds, and their ratios to the unpatched network. Weights are random. torch's FlopCounterMode counts
convolutions, matrix products and attention, without computing them.

Goals for the factorised network: at most 1.002 times the FLOPs and 1.05 times the time of the unpatched one.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

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
    parameters_in_millions,
    training_step,
    variant_of,
)


def flops(config: ConfigName, variant: Variant, *, batch: int = 1, train: bool = False, lora: bool = False) -> int:
    """FLOPs of a forward pass, or of forward and backward together."""
    network = variant_of(build(config, device="meta"), variant, lora=lora)
    fake = FakeTensorMode(
        allow_non_fake_inputs=True
    )  # like "meta", with the CPU's paths through autocast and attention
    with fake, nullcontext() if train else torch.no_grad():
        network.to_empty(device="cpu")
        call = forward(network, variant, image(config, batch=batch))
        with FlopCounterMode(display=False) as counter:
            (training_step(network, call) if train else call)()
    return counter.get_total_flops()


def seconds(
    config: ConfigName,
    variants: tuple[Variant, ...],
    *,
    batch: int,
    repeats: int,
    train: bool,
    lora: bool,
    device: str,
) -> dict[str, timing.Seconds]:
    """Times of a forward pass, or of a training step, for each variant."""
    unet = build(config, device=device)
    inputs = image(config, batch=batch, device=device)
    runs: dict[str, Callable[[], object]] = {}
    for variant in variants:
        network = variant_of(unet, variant, lora=lora)
        call = forward(network, variant, inputs)
        runs[variant] = training_step(network, call) if train else call
    with nullcontext() if train else torch.no_grad():
        return timing.interleaved(runs, repeats=repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description="unpatched, factorised and dense networks: FLOPs and wall time")
    parser.add_argument("--config", choices=list(CONFIGS), default="ffhq")
    parser.add_argument("--batch", type=int, default=None, help="images (default: 1; nature32: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per network; 0: count FLOPs only")
    parser.add_argument("--train", action="store_true", help="forward and backward instead of forward")
    parser.add_argument("--lora", action="store_true", help="train RAD's adapter instead of all parameters")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense reference out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    batch = given.batch or BATCH[given.config]
    setting = {"batch": batch, "train": given.train, "lora": given.lora}
    variants = VARIANTS[:2] if given.no_dense else VARIANTS

    size = CONFIGS[given.config]["sample_size"]
    millions = parameters_in_millions(build(given.config, device="meta"))
    trained = " of RAD's adapter" if given.lora else " of all parameters" if given.train else ""
    what = f"training step{trained}" if given.train else f"forward{' with an adapter' if given.lora else ''}"
    timing.print_setting(
        f"{given.config}, {millions:.2f} M parameters, {size}x{size}, batch {batch}, random weights, {what}",
        repeats=given.repeats,
        device=given.device,
    )
    counted = {variant: flops(given.config, variant, **setting) for variant in variants}
    rows = {v: [v, f"{count / 1e9:.1f}", f"{count / counted['unpatched']:.5f}"] for v, count in counted.items()}
    headings = ["network", "GFLOP", "ratio"]
    if given.repeats:
        timed = seconds(given.config, variants, repeats=given.repeats, device=given.device, **setting)
        headings += timing.COMPARED
        for variant, cells in timing.compare(timed, to="unpatched").items():
            rows[variant] += cells
    timing.print_table(headings, list(rows.values()))


if __name__ == "__main__":
    main()
