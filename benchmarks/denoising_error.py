"""Measures a denoiser's squared error in the hole at several timesteps, on held-out photographs.

    python benchmarks/denoising_error.py --data HELD_OUT --model checkpoints/photos runs/photos/checkpoints/step=500-ema
    python benchmarks/denoising_error.py --data runs/images32 --noise --model checkpoints/rad-nature32 checkpoints/base-nature32

The first command prints a table with the error of the estimated image x0, range [-1, 1]; 0.004 is an error of 8 grey levels.
Crops are log-uniform in scale, from `--size` to the whole short side. The mask set is `photos`.

The second command prints a line for each model and hole with the error of the predicted noise. Images have the model's size, see
benchmarks/image_set.py. The hole is the right half (models trained with RAD) and the whole image (all models).

All models see the same images, masks and noise.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from rad.data.framing import Framing
from rad.data.stream import HeldOut
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import region_aware
from rad.diffusion.step import noised
from rad.images.sources import list_images
from rad.images.tensors import to_tensor
from rad.inpainting.inpainter import Inpainter
from rad.masks.shapes import make
from rad.models.unet_model import UNetModel
from rad.rng import generator

IMAGE_TIMES = (100, 300, 500, 700, 900)
NOISE_TIMES = (10, 50, 100, 200, 400, 600, 800, 950)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or archive of photographs that the models never saw")
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument(
        "--noise", action="store_true", help="error of the predicted noise instead of the estimated image"
    )
    parser.add_argument("--masks", default="photos", help="mask set, without --noise")
    parser.add_argument("--count", type=int, default=200, help="number of crops, without --noise")
    parser.add_argument(
        "--size", type=int, default=32, help="side of the crops after scaling, in pixels, without --noise"
    )
    options = parser.parse_args()
    models: dict[str, UNetModel] = {}
    for name in options.model:
        model = Inpainter.from_pretrained(name).model
        if not isinstance(model, UNetModel) or model.kind != "pixel":
            parser.error(f"{name} is a latent model: give models on pixels")
        if options.noise and model.base.prediction_type != "epsilon":
            parser.error(f"{name} predicts {model.base.prediction_type}, not noise: leave --noise out")
        models[name] = model
    (print_noise_errors if options.noise else print_image_errors)(models, options)


def print_image_errors(models: dict[str, UNetModel], options: argparse.Namespace) -> None:
    """Print a table of errors of x0: one row per model, and one for the mean colour of the known pixels."""
    framing = Framing(options.size, crop="random_scale", side_range=(options.size, None), scale_draw="log_uniform")
    held_out = HeldOut(list_images(options.data), framing, options.count, make(options.masks))
    samples = [held_out[number] for number in range(options.count)]
    x0, hole = (torch.stack([sample[key] for sample in samples]) for key in ("image", "hole"))
    print(f"{len(x0)} crops of {options.size}x{options.size}, masks {options.masks}, hole {float(hole.mean()):.3f}")
    print("| model | " + " | ".join(f"t={t}" for t in IMAGE_TIMES) + " |\n|---|" + "---|" * len(IMAGE_TIMES))
    means = (x0 * (1 - hole)).sum((2, 3), keepdim=True) / (1 - hole).sum((2, 3), keepdim=True).clamp(min=1)
    print(f"| mean colour | {mean_in_hole(means - x0, hole):.4f} | at every timestep |")
    for name, model in models.items():
        errors = [f"{error(model, x0, hole, t):.4f}" for t in IMAGE_TIMES]
        print(f"| {name} | {' | '.join(errors)} |", flush=True)


def print_noise_errors(models: dict[str, UNetModel], options: argparse.Namespace) -> None:
    """Print a line of errors of the noise for each model and hole."""
    x0 = torch.stack([to_tensor(image.open()) for image in list_images(options.data)]) * 2 - 1
    whole = torch.ones_like(x0[:, :1])
    half = whole.clone()
    half[..., : x0.shape[-1] // 2] = 0
    print(f"{len(x0)} images; mean squared error of the noise at t = {' / '.join(map(str, NOISE_TIMES))}")
    for name, model in models.items():
        for hole, title in [(half, "right half")] * model.has_adapter + [(whole, "whole image")]:
            errors = [f"{error(model, x0, hole, t, noise=True):.4f}" for t in NOISE_TIMES]
            print(f"{name}, hole {title}: {' / '.join(errors)}", flush=True)


@torch.inference_mode()
def error(model: UNetModel, x0: Tensor, hole: Tensor, t: int, *, noise: bool = False) -> float:
    """Mean squared error in the hole, with noise of timestep t in it; the noise depends on t alone.

    Args:
        x0: (N,3,H,W) in [-1,1]; hole: (N,1,H,W) in [0,1]; noise: compare the predicted noise instead of x0.
    """
    adapter = model.has_adapter
    process = region_aware(model.base_process, time_origin="adm" if model.info is None else model.info.time_origin)
    eps = torch.randn(x0.shape, generator=generator(0, "noise", t))
    differences = []
    denoiser, network = model.denoiser([], adapter=adapter), model.sampled_network(adapter=adapter)
    for clean, e, h in zip(x0.split(50), eps.split(50), hole.split(50), strict=True):
        now = process.noise(torch.full((len(clean),), t), NoiseRegions.from_mask(h))
        x = noised(clean, now, noise=e)
        if noise:
            differences.append(network(x, now.timesteps.float(), index=now.index).sample[:, :3] - e)
        else:
            differences.append(denoiser.denoise(x, now).x0 - clean)
    return mean_in_hole(torch.cat(differences), hole)


def mean_in_hole(difference: Tensor, hole: Tensor) -> float:
    """Mean over images of the mean square of (N,3,H,W) in the hole (N,1,H,W)."""
    squares = difference.square().mean(1, keepdim=True) * hole
    return float((squares.sum((1, 2, 3)) / hole.sum((1, 2, 3))).mean())


if __name__ == "__main__":
    main()
