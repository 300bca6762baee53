"""Measures whether images show the class that their prompt names: top-5 accuracy of a classifier.

    python benchmarks/class_agreement.py --results runs/compare --mask half --prompts runs/prompts.json \
        --reference runs/images32 --truth runs/images32.json --data nature64_train.zip --names configs/nature64_names.json

The classifier is a linear discriminant on a network's features of training images, reduced to the size of the results.
Prints the accuracy on the originals with their own names, which is the upper limit, chance, and the accuracy of each method,
all with 95 % intervals.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image, ImageOps
from torch import Tensor

from rad.data.captions import read_captions
from rad.evaluation.features import feature_net
from rad.images.sources import list_images
from rad.images.tensors import to_tensor

FIRST, EACH = 5, 100
"""Number of guesses that count; training images per class."""


def discriminant(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights (D,C) and biases (C,) of a linear discriminant, its covariance shrunk by a tenth towards its mean variance."""
    means = torch.stack([features[labels == number].mean(0) for number in range(classes)])
    inside = (features - means[labels]).T @ (features - means[labels]) / len(features)
    inside = 0.9 * inside + 0.1 * inside.diagonal().mean() * torch.eye(len(inside), dtype=inside.dtype)
    weights = torch.linalg.solve(inside, means.T)
    return weights, -0.5 * (means.T * weights).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--mask", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts of the results, as given to sample.py")
    parser.add_argument("--reference", type=Path, required=True, help="folder of the originals")
    parser.add_argument(
        "--truth", type=Path, required=True, help="classes of the originals, in the format of --prompts"
    )
    parser.add_argument("--data", required=True, help="training images, in folders of classes")
    parser.add_argument("--names", required=True, help="class names, as data.captions of the training")
    parser.add_argument("--feature_net", default="checkpoints/features-nature64")
    options = parser.parse_args()
    net, captions = feature_net(options.feature_net), read_captions(options.names)
    size = Image.open(next(iter(sorted(options.reference.glob("*.png"))))).size

    def features(images: list[Image.Image]) -> Tensor:
        parts = torch.stack([to_tensor(image.convert("RGB")) for image in images]).split(100)
        return torch.cat([net.features(part) for part in parts]).double()

    by_name: dict[str, list[Image.Image]] = {}
    for original in list_images(options.data):
        examples = by_name.setdefault(captions(original.name), [])
        if len(examples) < EACH:
            examples.append(ImageOps.fit(original.open().convert("RGB"), size, Image.Resampling.LANCZOS))
    names = sorted(by_name)
    labels = torch.cat([torch.full((len(by_name[name]),), number) for number, name in enumerate(names)])
    weights, biases = discriminant(features([image for name in names for image in by_name[name]]), labels, len(names))

    def share(folder: Path, prompts: dict[str, str]) -> str:
        files = sorted(path for path in folder.glob("*.png") if path.name in prompts)
        scores = features([Image.open(path) for path in files]) @ weights + biases
        classes = torch.tensor([names.index(prompts[path.name]) for path in files])
        hits = (scores.topk(FIRST).indices == classes[:, None]).any(1).double()
        return f"{hits.mean():.3f} +- {1.96 * float(hits.std() / len(hits) ** 0.5):.3f} of {len(hits)}"

    print(
        f"originals: {share(options.reference, json.loads(options.truth.read_text()))}; chance {FIRST / len(names):.3f}"
    )
    prompts = json.loads(options.prompts.read_text())
    root = options.results / options.mask
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "masks"):
        print(f"{folder.name}: {share(folder, prompts)}")


if __name__ == "__main__":
    main()
