"""Measures the time of 8 Perlin masks of 256x256: `Perlin` against a loop over pixels with the `noise` package.

    python benchmarks/perlin.py

Prints median seconds of both and their ratio, with one thread and with torch's default number. Both draw scales, compute the
noise and threshold it; they take turns in one run. On a busy machine set OMP_WAIT_POLICY=passive; otherwise the time that
threads wait for each other dominates.

Goal: a ratio of at least 15, and at most 5 ms per image.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rad.masks import MaskGenerator
from rad.masks.perlin import Perlin, Pnoise

BATCH, SIDE = 8, 256


def seconds(masks: MaskGenerator, seed: int) -> float:
    generators = [torch.Generator().manual_seed(BATCH * seed + image) for image in range(BATCH)]
    start = time.perf_counter()
    masks(generators, SIDE, SIDE)
    return time.perf_counter() - start


def compare(repeats: int) -> None:
    vectorised, per_pixel = [], []
    seconds(Perlin(), 0)
    for seed in range(1, repeats + 1):
        vectorised.append(seconds(Perlin(), seed))
        per_pixel.append(seconds(Pnoise(), seed))
    fast, slow = statistics.median(vectorised), statistics.median(per_pixel)
    threads = torch.get_num_threads()
    print(f"{threads:7d}  {fast:14.4f}  {1000 * fast / BATCH:8.2f}  {slow:18.4f}  {slow / fast:6.1f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Perlin masks: vectorised against pixel by pixel")
    parser.add_argument("--repeats", type=int, default=15, help="runs of each (default: %(default)s)")
    repeats = parser.parse_args().repeats
    print(f"{BATCH} masks of {SIDE}x{SIDE}, median of {repeats} runs")
    print("threads  rad, s a batch  ms/image  pnoise2, s a batch    ratio")
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        compare(repeats)
