"""Noise-prediction error in the hole at several times, of adapters, whole models and base models (with everything hole).

python benchmarks/noise_error.py --images runs/images32 --model checkpoints/rad-nature32 checkpoints/base-nature32
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import RegionAware, Uniform
from rad.diffusion.step import noised
from rad.images.codecs import to_tensor
from rad.images.sources import list_images
from rad.inpainting.inpainter import Inpainter
from rad.models.unet_model import UNetModel
from rad.rng import generator

TIMES = (10, 50, 100, 200, 400, 600, 800, 950)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="of the model's size, see benchmarks/image_set.py")
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--base", help="of adapters, where it is not found by itself")
    options = parser.parse_args()
    x0 = torch.stack([to_tensor(image.open()) for image in list_images(options.images)]) * 2 - 1
    half = torch.zeros_like(x0[:, :1])
    half[..., x0.shape[-1] // 2 :] = 1
    print(f"{len(x0)} images; mean squared error of eps at t = {' / '.join(map(str, TIMES))}")
    for name in options.model:
        adapter = (Path(name) / "adapter_config.json").exists()
        model = Inpainter.from_pretrained(name, base=options.base if adapter else None).model
        if not isinstance(model, UNetModel) or model.kind != "pixel":
            parser.error(f"{name} is no model of pixels")
        for title, hole in [("right half", half)] * (model.info is not None) + [("everything", torch.ones_like(half))]:
            print(f"{name}, {title} hole: {' / '.join(f'{error(model, x0, hole, t):.4f}' for t in TIMES)}", flush=True)


@torch.inference_mode()
def error(model: UNetModel, x0: torch.Tensor, hole: torch.Tensor, t: int) -> float:
    """Mean over the hole; the noise depends on t alone, so that it is the same for all models."""
    betas = model.base.betas
    process = Uniform(betas) if model.info is None else RegionAware(betas, time_origin=model.info.time_origin)
    noise = torch.randn(x0.shape, generator=generator(0, "noise", t))
    total = 0.0
    for x, e, h in zip(x0.split(25), noise.split(25), hole.split(25), strict=True):
        now = process.noise(torch.full((len(x),), t), NoiseRegions.from_mask(h))
        output = model.unet(noised(x, now, noise=e), now.timesteps.float(), index=now.index).sample[:, :3]
        total += float(((output - e).square() * h).sum())
    return total / float(3 * hole.sum())


if __name__ == "__main__":
    main()
