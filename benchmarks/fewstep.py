"""Compares solvers and timestep spacings of RAD at few network calls.

    python benchmarks/fewstep.py --data nature64_val.zip

Images are the middle squares of photographs, evenly spread over a folder or zip, at the model's size. All runs share their
masks and their noise. Prints a table for each mask set with these columns:

- FD: Frechet distance between crops to the bounding box of the hole and the same crops of the originals. Lower is better.
- texture: gradient energy in the hole, divided by that of the originals. 1 is right; less is too smooth.
- distance: perceptual distance of the crops from the originals. It prefers smooth fills, so do not choose a solver by it.
- PSNR: in the hole, in dB. It prefers smooth fills too.
- s: seconds for all images.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from benchmarks.image_set import spread, square
from rad.evaluation.features import Extractor, feature_net
from rad.evaluation.metrics import ReferenceFeatures, crop, crop_box, frechet_distance, gradient_energy, psnr
from rad.images.sources import list_images
from rad.images.tensors import to_tensor
from rad.inpainting.inpainter import Inpainter
from rad.masks.shapes import make
from rad.rng import generator
from rad.sampling.method import Schedule

RUNS = [
    Schedule(0, "ddpm", "even", 1.0),
    Schedule(0, "ddpm", "trailing", 1.0),
    Schedule(0, "ddim", "quad", 0.0),
    Schedule(0, "dpm++2m", "quad", 0.0),
    Schedule(0, "dpm++2m", "logsnr", 0.0),
    Schedule(0, "dpm++2m", "logsnr", 1.0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="photographs that the model has not seen: a folder or zip")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/rad-nature32"))
    parser.add_argument("--features", default=str(ROOT / "checkpoints/features-nature64"), help="the feature network")
    parser.add_argument("--masks", nargs="+", default=["half", "thin"])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument(
        "--runs", type=int, nargs="+", default=list(range(len(RUNS))), help="numbers of solvers, from 0"
    )
    parser.add_argument("--count", type=int, default=200, help="images")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    inpainter, extractor = Inpainter.from_pretrained(options.checkpoint), feature_net(options.features)
    sources = spread(list_images(options.data), options.count)
    images, names = [square(source, inpainter.size) for source in sources], [source.name for source in sources]
    for mask in options.masks:
        holes = [make(mask)([generator(options.seed, "mask", name)], *inpainter.size)[0] for name in names]
        truth = [to_tensor(image) for image in images]
        print(
            f"\n{mask}, {len(images)} images\n\n| NFE | solver | spacing | eta | FD | texture | distance | PSNR | s |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for steps in options.steps:
            for run in (RUNS[number] for number in options.runs):
                began = time.perf_counter()
                result = inpainter(
                    images, holes, method="rad", names=names, seed=options.seed, batch_size=options.batch_size,
                    steps=steps, solver=run.solver, spacing=run.spacing, eta=run.eta,
                )  # fmt: skip
                assert result.nfe == steps * len(images)
                scores = score([to_tensor(image) for image in result.images], truth, holes, extractor)
                cells = [f"{scores[0]:.2f}", f"{scores[1]:.3f}", f"{scores[2]:.3f}", f"{scores[3]:.2f}"]
                row = [
                    str(steps),
                    run.solver,
                    run.spacing,
                    f"{run.eta:g}",
                    *cells,
                    f"{time.perf_counter() - began:.0f}",
                ]
                print(f"| {' | '.join(row)} |", flush=True)


@torch.inference_mode()
def score(results: list[Tensor], truth: list[Tensor], holes: list[Tensor], extractor: Extractor) -> tuple[float, ...]:
    """Frechet distance, texture, perceptual distance and PSNR of images (3,H,W) in [0,1]; holes are (1,H,W)."""
    features: list[list[Tensor]] = [[], []]
    distances = []
    for pair in zip(results, truth, holes, strict=True):
        crops = [crop(image, crop_box(pair[2]))[None] for image in pair[:2]]
        for into, image in zip(features, crops, strict=True):
            into.append(extractor.features(image))
        distances.append(extractor.distance(*crops))
    ours, originals = (torch.cat(part) for part in features)
    hole = torch.stack(holes)
    texture = gradient_energy(torch.stack(results), hole).sum() / gradient_energy(torch.stack(truth), hole).sum()
    values = psnr(torch.stack(results), torch.stack(truth), hole)
    return (
        frechet_distance(ours, ReferenceFeatures(originals)),
        float(texture),
        float(torch.cat(distances).mean()),
        float(values.mean()),
    )


if __name__ == "__main__":
    main()
