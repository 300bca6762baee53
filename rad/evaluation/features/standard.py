"""Standard networks: LPIPS of torchmetrics, and torch-fidelity's Inception for FID and KID."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from rad.evaluation.features.extractor import (
    DAMAGE,
    Extractor,
    check_images,
    check_pair,
    last_line,
    resize,
    tensors_hash,
)
from rad.evaluation.options import LPIPSNet
from rad.resources import pip_install

_TRUNKS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
_SMALLEST = 64  # side of images for LPIPS, in pixels: AlexNet has no output below 31


def lpips(net: LPIPSNet, *, device: str | torch.device = "cpu") -> Extractor:
    """torchmetrics' LPIPS (linear weights of version 0.1), "lpips/NET"; without features.

    The trunk is cached in `torch.hub.get_dir()`/checkpoints, or downloaded. Sides below 64 pixels are enlarged to 64.
    Raises ValueError for an unknown net, and if the trunk is neither cached nor downloadable.
    """
    if net not in _TRUNKS:
        raise ValueError(f"LPIPS with net={net!r}: choose one of {', '.join(_TRUNKS)}")
    return _LPIPS(net, torch.device(device))


def has_lpips(net: LPIPSNet) -> bool:
    """Whether `lpips(net)` needs no download."""
    return _cached_file(_trunk_url(net)).is_file()


def inception(*, device: str | torch.device = "cpu") -> Extractor:
    """The Inception of the original FID in torch-fidelity's port: 2048 features, "fid/inception" and "kid/inception".

    Images are rounded to 8 bits and resized like TensorFlow 1, without antialiasing, so values match torch-fidelity;
    torchmetrics' own FID resizes with antialiasing.
    Raises ValueError if torch-fidelity is not installed, and if its weights are neither cached nor downloadable.
    """
    return _Inception(torch.device(device))


class _LPIPS(Extractor):
    def __init__(self, net: LPIPSNet, device: torch.device) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with _cached(f"LPIPS ({net})", _trunk_url(net)), torch.random.fork_rng(devices=[]):
            # The metric averages over the batch; its network returns a value per image.
            network = LearnedPerceptualImagePatchSimilarity(net_type=net).net
        self._net, self._device = network.to(device), device
        self.provenance = {
            "extractor": f"torchvision {_TRUNKS[net]} + LPIPS 0.1 linear weights",
            "weights": tensors_hash(self._net.state_dict()),
            "layers": "those of LPIPS",
            "resize": f"sides below {_SMALLEST} enlarged to {_SMALLEST} (bilinear), else none",
            "range": "[-1,1]",
            "library": f"torchmetrics {version('torchmetrics')}, torchvision {version('torchvision')}",
        }
        self.distance_name = f"lpips/{net}"

    def features(self, images: Tensor) -> Tensor:
        raise ValueError(f"{self.distance_name} has distances only: for features use Inception or a feature network")

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        check_pair(first, second)
        with torch.no_grad():
            return self._net(self._prepare(first), self._prepare(second)).flatten().to(first.device)

    def _prepare(self, images: Tensor) -> Tensor:
        images = check_images(images).to(self._device)
        height, width = images.shape[-2:]
        return resize(images, (max(height, _SMALLEST), max(width, _SMALLEST)), "bilinear") * 2 - 1


class _Inception(Extractor):
    def __init__(self, device: torch.device) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(
                f"FID and KID need torch-fidelity, which is not installed: {pip_install('fid')}; or give --feature_net FOLDER, "
                "which works offline"
            ) from error
        with _cached("FID and KID", URL_INCEPTION_V3), torch.random.fork_rng(devices=[]):
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        self._net, self._device = network.to(device), device
        self.provenance = {
            "extractor": "torch-fidelity inception-v3-compat 2048",
            "weights": tensors_hash(self._net.state_dict()),
            "layers": "2048",
            "resize": "bilinear of TensorFlow 1 (no antialias) to 299x299",
            "range": "8 bits, (v - 128) / 128",
            "library": f"torch-fidelity {version('torch-fidelity')}",
        }
        self.frechet_name, self.kernel_name = "fid/inception", "kid/inception"

    def features(self, images: Tensor) -> Tensor:
        pixels = check_images(images).mul(255).round().to(self._device, torch.uint8)
        with torch.no_grad():
            return self._net(pixels)[0].to(images.device)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        raise ValueError("Inception has features only: for distances use LPIPS or a feature network")


def _trunk_url(net: LPIPSNet) -> str:
    from torchvision.models import get_model_weights

    return next(iter(get_model_weights(_TRUNKS[net]))).url


def _cached_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


@contextmanager
def _cached(purpose: str, url: str) -> Iterator[None]:
    """Name the missing file if a library cannot load its weights, and forbid pickled code in it."""
    file = _cached_file(url)
    state = "is damaged or of another network" if file.is_file() else "is missing and cannot be downloaded"
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"{purpose} needs {file.name} in {file.parent}, which {state} ({last_line(error)}): put the file there "
            f"(from {url}), or give --feature_net FOLDER, which works offline"
        ) from error
    finally:
        del os.environ[switch]
        if before is not None:
            os.environ[switch] = before
