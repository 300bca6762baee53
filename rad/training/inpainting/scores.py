"""Values of inpainted images, with the definitions of `rad.evaluation`: a row for each image, and their summary."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rad.images.tensors import round_to_uint8
from rad.modes import float32_modes

if TYPE_CHECKING:
    from rad.evaluation.features import Extractor

SHIPPED = "checkpoints/features-nature64"


@dataclass(frozen=True)
class Networks:
    """The networks of the perceptual distance and of the features; they may be one."""

    distance: "Extractor"
    features: "Extractor"

    @property
    def distance_name(self) -> str:
        from rad.evaluation.metrics.columns import cropped

        assert self.distance.distance_name is not None
        return cropped(self.distance.distance_name)

    @property
    def frechet_name(self) -> str:
        assert self.features.frechet_name is not None
        return self.features.frechet_name

    @property
    def weights(self) -> list[str]:
        """Hashes of the weights."""
        return [network.provenance["weights"] for network in (self.distance, self.features)]


def load_networks(feature_net: str | None, *, lpips: bool, device: torch.device) -> Networks:
    """The network `feature_net` for both values; for None the shipped one, with LPIPS (AlexNet) as distance if `lpips`.

    Raises ValueError for a network that cannot be loaded or has no distance.
    """
    from rad.evaluation import features

    with float32_modes():
        network = features.feature_net(SHIPPED if feature_net is None else feature_net, device=device)
        if lpips and feature_net is None:
            return Networks(features.lpips("alex", device=device), network)
    if network.distance_name is None:
        raise ValueError(
            f'feature_net {feature_net} has no layers for a distance ("distance" in its JSON): give another, or null'
        )
    return Networks(network, network)


@float32_modes()
def score(image: Tensor, original: Tensor, hole: Tensor, networks: Networks) -> Tensor:
    """(B, 4 + 2D) float64 on the CPU; a value without meaning for an image, as for an empty hole, is NaN.

    Columns: perceptual distance in the box of the hole, PSNR of the hole in dB, gradient energies of result and original in
    the hole, D features of the result and of the original.

    Args:
        image, original: (B,3,H,W) in [0,1]; they are rounded to 8 bits, as files are. hole: (B,1,H,W), 1 = fill.
    """
    from rad.evaluation.metrics import gradient_energy, psnr

    image, original = (round_to_uint8(values).float().div_(255) for values in (image, original))
    columns = [
        _crop_distances(image, original, hole.cpu(), networks.distance)[:, None],
        psnr(image, original, hole)[:, None],
        *(gradient_energy(values, hole)[:, None] for values in (image, original)),
        *(networks.features.features(values) for values in (image, original)),
    ]
    return torch.cat([column.cpu().double() for column in columns], 1)


def _crop_distances(image: Tensor, original: Tensor, hole: Tensor, network: "Extractor") -> Tensor:
    """(B): one image at a time, since the boxes have different sizes."""
    from rad.evaluation.metrics import crop, crop_box

    distances = torch.full((len(image),), math.nan)
    for row, fill in enumerate(hole):
        if bool((fill > 0).any()):
            box = crop_box(fill)
            distances[row] = network.distance(crop(image[row], box)[None], crop(original[row], box)[None])[0].cpu()
    return distances


def summarise(rows: Tensor, networks: Networks) -> dict[str, float]:
    """The metrics of all images, from their rows (N, 4 + 2D); those without a finite value are left out.

    Distance and PSNR are means over images. Texture is the ratio of the energies of all results and all originals.
    """
    from rad.evaluation.metrics import ReferenceFeatures, frechet_distance

    distances, psnrs, energies, originals = rows[:, :4].T
    results, references = rows[:, 4:].chunk(2, 1)
    values = {
        networks.distance_name: float(distances.nanmean()),
        "psnr-hole": float(psnrs.nanmean()),
        "texture": float(energies.sum() / originals.sum()),
        networks.frechet_name: frechet_distance(results, ReferenceFeatures(references)),
    }
    return {name: value for name, value in values.items() if math.isfinite(value)}
