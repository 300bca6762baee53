"""Trains a small classifier of photographs as a feature network: `python benchmarks/feature_classifier.py`.

The folder of an image is its class. Half of the training images are blurred by halving and doubling their side, for use on
images of half the size. Afterwards, distances of damaged held-out images are measured: they must grow with the damage.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import Image, ImageOps
from safetensors import torch as safetensors
from torch import Tensor
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.v2.functional import gaussian_blur

from rad.console import guarded
from rad.evaluation.features import Extractor, feature_net
from rad.evaluation.metrics import ReferenceFeatures, frechet_distance
from rad.images.sources import list_images
from rad.rng import generator

BLOCKS = [1, 1, 1, 1]  # of the four stages; 4.9 million parameters
SHIFT = 8  # of the random crop, in pixels of a 64 pixel image
DISTANCE_LAYERS = ["relu", "layer1", "layer2", "layer3", "layer4"]
FEATURE_LAYER = "flatten"  # the last stage, pooled: 512 numbers


def read_classes(
    source: str | Path, *, size: int, classes: Sequence[str] | None = None
) -> tuple[Tensor, Tensor, list[str]]:
    """All images of a folder or zip as (N,size,size,3) uint8, their class numbers (N), and the class names.

    Images of another size are cropped to a centred square and resized (Lanczos).

    Args:
        classes: names in the order of their numbers; None: the sorted folder names.

    Raises ValueError for missing or unreadable images, an image outside any folder, and a class not in `classes`.
    """
    originals = list_images(source)
    names = [Path(original.name).parent.name for original in originals]
    if "" in names:
        raise ValueError(f"{originals[names.index('')]} is in no folder: the name of its folder is its class")
    known = sorted(set(names)) if classes is None else list(classes)
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{source} has the class {unknown[0]}, which was not trained: give images of {known[:3]}...")
    images = np.empty((len(originals), size, size, 3), np.uint8)
    for index, original in enumerate(originals):
        image = original.open()
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        images[index] = np.asarray(image)
    number = {name: index for index, name in enumerate(known)}
    return torch.from_numpy(images), torch.tensor([number[name] for name in names]), known


def coarsen(images: Tensor) -> Tensor:
    """Images (B,C,H,W) reduced to half their sides and enlarged again, bilinear with antialiasing."""
    height, width = images.shape[-2:]
    half = functional.interpolate(images, (height // 2, width // 2), mode="bilinear", antialias=True)
    return functional.interpolate(half, (height, width), mode="bilinear", antialias=True)


def augment(images: Tensor, random: torch.Generator, *, shift: int) -> Tensor:
    """Each image (B,C,H,W) moved by up to `shift` pixels (reflected border); half are mirrored, half coarsened."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=random)
    mirror, coarse = torch.rand(2, count, generator=random) < 0.5
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    padded = functional.pad(images, (shift,) * 4, mode="reflect").permute(0, 2, 3, 1)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return torch.where(coarse.view(-1, 1, 1, 1), coarsen(moved), moved)


def normalise(pixels: Tensor) -> Tensor:
    """(B,H,W,3) uint8 as (B,3,H,W) in [-1,1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


class Classifier(LightningModule):
    """torchvision's ResNet with basic blocks, trained by SGD with one cycle of the learning rate.

    Batches are (images (B,H,W,3) uint8, class numbers (B)); the loss is cross-entropy with labels smoothed by 0.1.
    """

    def __init__(self, classes: int, *, learning_rate: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        self.network = ResNet(BasicBlock, BLOCKS, num_classes=classes)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.learning_rate, self.seed = learning_rate, seed
        self.sharp, self.coarse = (MulticlassAccuracy(classes, average="micro") for _ in range(2))
        self.accuracy = (0.0, 0.0)
        """Share of correct validation images, as they are and coarsened."""

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        pixels, labels = batch
        random = generator(self.seed, "augment", self.global_step)
        images = augment(normalise(pixels.cpu()), random, shift=max(1, SHIFT * pixels.shape[1] // 64))
        return functional.cross_entropy(self.network(images.to(labels.device)), labels, label_smoothing=0.1)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        pixels, labels = batch
        images = normalise(pixels)
        self.sharp.update(self.network(images), labels)
        self.coarse.update(self.network(coarsen(images)), labels)

    def on_validation_epoch_end(self) -> None:
        self.accuracy = (float(self.sharp.compute()), float(self.coarse.compute()))
        self.sharp.reset()
        self.coarse.reset()
        self.print(f"epoch {self.current_epoch + 1}: accuracy {self.accuracy[0]:.3f}, coarsened {self.accuracy[1]:.3f}")

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(
    images: Tensor, labels: Tensor, *, batch_size: int, random: torch.Generator | None = None
) -> Iterable[list[Tensor]]:
    """Batches of (images, labels): with `random` shuffled in each epoch and whole only, otherwise all in order."""
    data = TensorDataset(images, labels)
    order = SequentialSampler(data) if random is None else RandomSampler(data, generator=random)
    batches = BatchSampler(order, min(batch_size, len(data)), drop_last=random is not None)
    return DataLoader(data, sampler=batches, batch_size=None)


def fit(
    data: str | Path, val_data: str | Path, *, epochs: int, batch_size: int, learning_rate: float, size: int, seed: int
) -> tuple[Classifier, int, list[str]]:
    """Train on `data`. Returns the classifier, the number of training images, and the class names.

    Raises ValueError for settings out of range, and as `read_classes`.
    """
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2), ("size", size, 32)):
        if value < least:
            raise ValueError(f"{name}={value}: it must be at least {least}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}: it must be above 0")
    images, labels, classes = read_classes(data, size=size)
    held_images, held_labels, _ = read_classes(val_data, size=size, classes=classes)
    if len(held_images) < 4:
        raise ValueError(f"{val_data} holds {len(held_images)} images: give at least 4, two for each half")
    module = Classifier(len(classes), learning_rate=learning_rate, seed=seed)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=epochs,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        module,
        loader(images, labels, batch_size=batch_size, random=generator(seed, "order")),
        loader(held_images, held_labels, batch_size=batch_size),
    )
    return module, len(images), classes


def save(module: Classifier, folder: Path, *, name: str, classes: int, size: int) -> None:
    """Write model.safetensors in half precision and model.json for `rad.evaluation.features.feature_net`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.cpu() for key, value in module.network.state_dict().items() if value.is_floating_point()}
    half = safetensors.save({key: value.half().contiguous() for key, value in state.items()})
    (folder / "model.safetensors").write_bytes(half)  # `save_file` creates files only the owner can read
    settings = {
        "name": name,
        "format": "safetensors",
        "architecture": {"class": "ResNet", "block": "BasicBlock", "layers": BLOCKS, "num_classes": classes},
        "size": size,
        "resize": "bilinear",
        "range": [-1, 1],
        "features": FEATURE_LAYER,
        "distance": DISTANCE_LAYERS,
    }
    (folder / "model.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def spoil(images: Tensor, kind: str, strength: float, random: torch.Generator) -> Tensor:
    """Damaged images (B,3,H,W), in [0,1] like the input.

    Args:
        kind: "blur": Gaussian of that standard deviation in pixels; "noise": Gaussian of that standard deviation;
            "blocks": that share of the 8x8 squares comes from the next image; "colour": added to red, taken from blue.
        strength: 0 is no change.
    """
    count, _, height, width = images.shape
    if kind == "blur":
        return gaussian_blur(images, [2 * math.ceil(3 * strength) + 1] * 2, [strength] * 2).clamp(0, 1)
    if kind == "noise":
        return (images + strength * torch.randn(images.shape, generator=random)).clamp(0, 1)
    if kind == "blocks":
        chosen = (torch.rand(count, 1, 8, 8, generator=random) < strength).float()
        return torch.lerp(images, images.roll(1, 0), functional.interpolate(chosen, (height, width)))
    assert kind == "colour"
    return (images + strength * torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)).clamp(0, 1)


SPOILT = {
    "blur": (0.5, 1.0, 2.0, 4.0),
    "noise": (0.02, 0.05, 0.1, 0.2),
    "blocks": (1 / 16, 1 / 8, 1 / 4, 1 / 2),
    "colour": (0.02, 0.05, 0.1, 0.2),
}


def measure(net: Extractor, images: Tensor, *, sides: Sequence[int], seed: int = 0) -> list[str]:
    """Lines of a Markdown table: the distances of `net` for each damage of one half of the images.

    Columns, for each side: the mean perceptual distance of a damaged image from itself, and the Fréchet distance of the
    damaged half from the other half. The first row is the baseline without damage.

    Args:
        images: (N,3,H,W) in [0,1]; odd images are damaged, even ones are the reference.
        sides: sides in pixels that images are first resized to.
    """
    columns: list[list[str]] = []
    for side in sides:
        small = functional.interpolate(images, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        half = small[1::2]
        reference = ReferenceFeatures(_by_hundreds(net.features, small[::2]))
        distances, sets = ["0"], [f"{frechet_distance(_by_hundreds(net.features, half), reference):.2f}"]
        for kind, strengths in SPOILT.items():
            for strength in strengths:
                spoilt = spoil(half, kind, strength, generator(seed, kind, side))
                distances.append(f"{_by_hundreds(net.distance, half, spoilt).mean():.4f}")
                sets.append(f"{frechet_distance(_by_hundreds(net.features, spoilt), reference):.2f}")
        columns += [distances, sets]
    heads = [f"{name}, {side}x{side}" for side in sides for name in (net.distance_name, net.frechet_name)]
    changes = ["none", *(f"{kind} {strength:g}" for kind, strengths in SPOILT.items() for strength in strengths)]
    rows = [[change, *values] for change, *values in zip(changes, *columns, strict=True)]
    return [f"| {' | '.join(row)} |" for row in [["change", *heads], ["---"] * (1 + len(heads)), *rows]]


def _by_hundreds(judge: Callable[..., Tensor], *images: Tensor) -> Tensor:
    return torch.cat([judge(*parts) for parts in zip(*(tensor.split(100) for tensor in images), strict=True)])


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("python benchmarks/feature_classifier.py", description=__doc__)
    options.add_argument(
        "--data", help="zip or folder of training images, a folder per class; without it, --output is only measured"
    )
    options.add_argument("--val_data", required=True, help="held-out images, likewise")
    options.add_argument("--output", required=True, help="folder for model.safetensors, model.json and README.md")
    options.add_argument("--name", default="nature64-resnet", help="name of its metrics")
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--batch_size", type=int, default=128)
    options.add_argument("--learning_rate", type=float, default=0.2, help="peak; decrease it for smaller batches")
    options.add_argument("--size", type=int, default=64, help="side of the images, in pixels")
    options.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    folder, size = Path(options.output), options.size
    facts = train(options, folder, words) if options.data else []
    images, _, _ = read_classes(options.val_data, size=size)
    table = measure(feature_net(folder), images.permute(0, 3, 1, 2).float() / 255, sides=(size, size // 2))
    print("\n".join(table))
    if facts:
        head = (
            f"# {folder.name}\n\nA small classifier of photographs. Its layers give the metrics `perceptual/{options.name}`, "
            f"`fd/{options.name}` and `kd/{options.name}`,\nwhich cannot be compared with LPIPS, FID and KID.\n\n"
        )
        (folder / "README.md").write_text(head + "\n".join([*facts, "", *table]) + "\n", encoding="utf-8")
    return 0


def train(options: argparse.Namespace, folder: Path, words: Sequence[str]) -> list[str]:
    """Train and write the network to `folder`. Returns lines about the training for its README."""
    seed_everything(options.seed, verbose=False)
    names = ("epochs", "batch_size", "learning_rate", "size", "seed")
    module, count, classes = fit(options.data, options.val_data, **{name: getattr(options, name) for name in names})
    save(module, folder, name=options.name, classes=len(classes), size=options.size)
    whole, coarse = module.accuracy
    return [
        f"- **Data**: {count:,} images of {len(classes)} classes, {options.size}x{options.size}.",
        f"- **Training**: `python benchmarks/feature_classifier.py {' '.join(words)}`",
        f"- **Accuracy** on held-out images: {whole:.1%}; reduced to half and enlarged: {coarse:.1%}.",
        "- **Distances** of held-out images: a damaged image from itself, and the damaged half from the other half:",
    ]


if __name__ == "__main__":
    raise SystemExit(guarded(main))
