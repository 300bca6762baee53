"""Fills a folder of images with a system outside the project; restores the known pixels and records the cost of each image.

    python benchmarks/others/run.py deepinv-ddrm@20 --checkpoint checkpoints/photos --images DIR --masks DIR --output DIR
    python benchmarks/others/run.py deepinv-ddrm@20 --check     on Gaussian data, where the right fill is known

A number after "@" sets the number of steps. Finished images are kept.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.others.gaussian import Pairs, examine
from benchmarks.others.network import Estimator, Network
from rad.evaluation.run_log import Costs, Usage
from rad.images.atomic import replacing
from rad.images.tensors import round_to_uint8, to_tensor
from rad.inpainting.memory import peak_memory, reset_peak_memory
from rad.masks.files import read_written_mask
from rad.rng import generator

System = Callable[[Tensor, Tensor, torch.Generator], Tensor]

NAMES = {
    "biharmonic": "scikit-image",
    "opencv-telea": "opencv-python-headless",
    "opencv-navier-stokes": "opencv-python-headless",
    "patchmatch": "pypatchmatch",
    "diffusers-repaint": "diffusers",
    "deepinv-ddrm": "deepinv",
    "deepinv-diffpir": "deepinv",
}
"""The systems, and the package of each on PyPI."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", help=f"one of {', '.join(NAMES)}, or with steps, as deepinv-ddrm@20")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/photos"))
    parser.add_argument("--images", type=Path, help="folder of PNG files")
    parser.add_argument("--masks", type=Path, help="folder of PNG files of the same names, white = fill")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="print how the system fills Gaussian data, and stop")
    options = parser.parse_args()
    if options.check:
        print(examine(build(options.system, Pairs())))
        return 0
    if None in (options.images, options.masks, options.output):
        parser.error("give --images, --masks and --output, or --check")
    system = build(options.system, Network(options.checkpoint) if needs_network(options.system) else Pairs())
    fill_folder(system, options.images, options.masks, options.output, seed=options.seed)
    return 0


def needs_network(name: str) -> bool:
    return name.startswith(("diffusers", "deepinv"))


def build(name: str, estimator: Estimator) -> System:
    """The system `name` on an estimator. Raises ValueError for an unknown one, ImportError for a missing package."""
    kind, _, number = name.partition("@")
    steps = {"steps": int(number)} if number else {}
    if kind == "patchmatch":
        from benchmarks.others.from_patchmatch import PatchMatch

        return PatchMatch()
    if kind in NAMES and not needs_network(kind):
        from benchmarks.others.classical import Classical

        return Classical(kind)
    if kind == "diffusers-repaint":
        from benchmarks.others.repaint import RePaint

        short = {"jump_length": 5, "resamplings": 5} if number and int(number) < 50 else {}
        return RePaint(estimator, **steps, **short)
    if kind in ("deepinv-ddrm", "deepinv-diffpir"):
        from benchmarks.others.from_deepinv import DDRM, DiffPIR

        return (DDRM if kind == "deepinv-ddrm" else DiffPIR)(estimator, **steps)
    raise ValueError(f"no system is called {kind}: give one of {', '.join(NAMES)}")


def fill_folder(system: System, images: Path, masks: Path, output: Path, *, seed: int) -> None:
    """Fill each image that has a mask and no result. The system sees mid-grey in the hole; known pixels stay bit for bit."""
    output.mkdir(parents=True, exist_ok=True)
    costs = Costs(output)
    for path in sorted(masks.glob("*.png")):
        result = output / path.name
        if result.exists():
            continue
        image = to_tensor(Image.open(images / path.name).convert("RGB"))[None]
        hole = (read_written_mask(path) > 0).float()[None]
        reset_peak_memory()
        start = time.perf_counter()
        filled = system(torch.where(hole > 0, 0.5, image), hole, generator(seed, "others", path.stem))
        seconds = time.perf_counter() - start
        pixels = round_to_uint8(torch.where(hole > 0, filled.clamp(0, 1), image)[0]).permute(1, 2, 0).numpy()
        with replacing(result) as temporary:
            Image.fromarray(np.ascontiguousarray(pixels)).save(temporary)
        calls = getattr(system, "calls", 0)
        costs.add([path.stem], Usage(calls, 0, seconds, peak_memory()), [1])
        print(result, flush=True)


if __name__ == "__main__":
    sys.exit(main())
