"""Squared error of the estimate of x0 in the hole, on random crops of held-out photographs, at several timesteps.

    python benchmarks/denoising_error.py --data HELD_OUT --model checkpoints/photos runs/photos/checkpoints/step=500-ema

Crops are log-uniform in scale, from the model's size to the whole short side; masks are of the set `photos`. Crops, masks and
noise are the same for every model. Values are in the range [-1, 1]: 0.004 is the error of 8 grey levels.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from rad.data.framing import Framing
from rad.data.stream import HeldOut
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import region_aware
from rad.diffusion.step import noised
from rad.images.sources import list_images
from rad.inpainting.inpainter import Inpainter
from rad.masks.shapes import make
from rad.models.unet_model import UNetModel
from rad.rng import generator

TIMES = (100, 300, 500, 700, 900)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or archive of photographs that the models never saw")
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--masks", default="photos", help="name of a mask set")
    parser.add_argument("--count", type=int, default=200, help="crops")
    parser.add_argument("--size", type=int, default=32, help="side of the crops after scaling, in pixels")
    options = parser.parse_args()
    x0, hole = crops(options.data, options.masks, size=options.size, count=options.count)
    print(f"{len(x0)} crops of {options.size}x{options.size}, masks {options.masks}, hole {float(hole.mean()):.3f}")
    print("| model | " + " | ".join(f"t={t}" for t in TIMES) + " |\n|---|" + "---|" * len(TIMES))
    means = (x0 * (1 - hole)).sum((2, 3), keepdim=True) / (1 - hole).sum((2, 3), keepdim=True).clamp(min=1)
    print(f"| mean colour | {in_hole(means, x0, hole):.4f} | at every timestep |")
    for name in options.model:
        model = Inpainter.from_pretrained(name).model
        if not isinstance(model, UNetModel) or model.kind != "pixel":
            parser.error(f"{name} is not a model on pixels")
        errors = [f"{in_hole(denoise(model, x0, hole, t), x0, hole):.4f}" for t in TIMES]
        print(f"| {name} | {' | '.join(errors)} |", flush=True)


def crops(data: str, masks: str, *, size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N,3,size,size) in [-1,1] and holes (N,1,size,size), keyed by the names of the photographs."""
    framing = Framing(size, crop="random_scale", side_range=(size, None), scale_draw="log_uniform")
    held_out = HeldOut(list_images(data), framing, count, make(masks))
    samples = [held_out[number] for number in range(count)]
    return torch.stack([one["image"] for one in samples]), torch.stack([one["hole"] for one in samples])


@torch.inference_mode()
def denoise(model: UNetModel, x0: torch.Tensor, hole: torch.Tensor, t: int) -> torch.Tensor:
    """The model's x0 (N,3,H,W) with noise of timestep t in the hole; the noise depends on t alone."""
    adapter = model.has_adapter
    process = region_aware(model.base_process, time_origin="adm" if model.info is None else model.info.time_origin)
    noise = torch.randn(x0.shape, generator=generator(0, "noise", t))
    estimates = []
    with model.weights(adapter=adapter, differentiated=False):
        denoiser = model.denoiser([], adapter=adapter)
        for clean, e, h in zip(x0.split(50), noise.split(50), hole.split(50), strict=True):
            now = process.noise(torch.full((len(clean),), t), NoiseRegions.from_mask(h))
            estimates.append(denoiser.denoise(noised(clean, now, noise=e), now).x0)
    return torch.cat(estimates)


def in_hole(found: torch.Tensor, x0: torch.Tensor, hole: torch.Tensor) -> float:
    """Mean over images of the mean squared error in the hole."""
    error = (found - x0).square().mean(1, keepdim=True) * hole
    return float((error.sum((1, 2, 3)) / hole.sum((1, 2, 3))).mean())


if __name__ == "__main__":
    main()
