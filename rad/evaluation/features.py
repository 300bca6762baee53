"""Feature networks behind one interface: torchmetrics' LPIPS, torch-fidelity's Inception, and any network from a file."""

import json
import math
import os
import pickle
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from rad.evaluation.options import LPIPSNet
from rad.resources import located, pip_install

Resize = Literal["bilinear", "bicubic"]

_TRUNKS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
_SMALLEST = 64  # side of images for LPIPS, in pixels: AlexNet has no output below 31
_FORMATS = {".pt": "torchscript", ".safetensors": "safetensors"}
_REQUIRED = {"torchscript": {"name", "format", "size"}}
_REQUIRED["safetensors"] = _REQUIRED["torchscript"] | {"architecture", "features", "distance"}
_OPTIONAL = {"resize", "range", "mean", "std"}
# What reading a damaged or missing file of weights raises.
_DAMAGE = (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError)

Outputs = tuple[list[Tensor], Tensor]


class Extractor(ABC):
    """A network that judges images; images are (B,3,H,W) float in [0, 1] of any height and width.

    Without gradients and in evaluation mode: the result of an image does not depend on the others of its batch, but
    for rounding. Results lie on the device of the images.

    Attributes:
        provenance: all that its numbers depend on: "extractor", "weights" (first 16 hex digits of the SHA-256 of the
            weights), "layers", "resize", "range", "library".
        distance_name, frechet_name, kernel_name: what its metrics are called; None: it has none of this kind.
    """

    provenance: dict[str, str]
    distance_name: str | None = None
    frechet_name: str | None = None
    kernel_name: str | None = None

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B,D) float32, for Fréchet and kernel distances, precision and recall.

        Raises:
            ValueError: no images in [0, 1], or `frechet_name` is None.
        """

    @abstractmethod
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """(B) float32: the perceptual distance of each pair; 0 for equal images, symmetric.

        Raises:
            ValueError: no images in [0, 1], different shapes, or `distance_name` is None.
        """


def feature_net(path: str | Path, *, device: str | torch.device = "cpu") -> "FeatureNet":
    """A feature network from a file of weights with a JSON of the same name beside it, or from a folder with both.

    Keys of the JSON:

    - "name": its metrics are called "perceptual/NAME", "fd/NAME" and "kd/NAME"; letters, digits, ".", "_" and "-".
    - "format": "safetensors" or "torchscript".
    - "size": side of the images that the network takes, or [height, width]; images of another size are resized,
      without regard to their aspect. null: the network takes any size.
    - "resize": "bilinear" (default) or "bicubic", both with antialias; "bicubic" is clamped to [0, 1].
    - "range": [low, high], what 0 and 1 become; or "mean" and "std", three numbers each, subtracted and divided by.
      Without either, [0, 1].

    A safetensors file also needs

    - "architecture": {"class": "ResNet", "block": "BasicBlock" or "Bottleneck", "layers": four numbers, "num_classes":
      a number, and if need be "groups", "width_per_group"}: the arguments of torchvision's ResNet, whose names the
      weights have. Half-precision weights are computed with in float32.
    - "features": the layer whose output (B,D) the features are ("flatten": the last stage, pooled).
    - "distance": a list of layers with outputs (B,C,h,w) for the distance; [] for none. Names are those of
      `torchvision.models.feature_extraction`: "relu", "layer1", ..., "layer4", "layer2.0.conv1".

    A TorchScript file gets (B,3,height,width) float32, resized and in the range of the JSON, and returns either the
    features (B,D), or a tuple or list of tensors: any number of feature maps (B,C,h,w), then the features (B,D) last.
    Without maps it has no distance. A TorchScript file is a program: load only what you trust. Its hash in the
    provenance is that of the file.

    The distance is that of Zhang et al. 2018 (arXiv 1801.03924, eq. 1) with all w = 1: at each layer both outputs are
    brought to unit length over channels, their squared difference is summed over channels and averaged over positions;
    then the mean over layers is taken.

    Raises:
        ValueError: a file is missing or damaged, a key is unknown, missing or of a wrong value, the weights do not fit
            the architecture, a layer does not exist, or the outputs are not as described.
    """
    weights = _find_weights(located(path))
    return FeatureNet(weights, _read_settings(weights), torch.device(device))


def lpips(net: LPIPSNet, *, device: str | torch.device = "cpu") -> Extractor:
    """torchmetrics' LPIPS (version 0.1 of the linear weights), as "lpips/NET"; it has no features.

    The trunk comes from torchvision's cache (`torch.hub.get_dir()`/checkpoints), or is downloaded to it. Images with
    a side below 64 pixels have this side enlarged to 64.

    Raises:
        ValueError: another net, or the trunk is neither cached nor can it be downloaded.
    """
    if net not in _TRUNKS:
        raise ValueError(f"LPIPS with net={net!r}: choose one of {', '.join(_TRUNKS)}")
    return _LPIPS(net, torch.device(device))


def inception(*, device: str | torch.device = "cpu") -> Extractor:
    """The Inception of the original FID: 2048 features of torch-fidelity's port, as "fid/inception" and "kid/inception".

    Images are rounded to 8 bits and resized as TensorFlow 1 does it, without antialias, so that numbers are those of
    torch-fidelity. (torchmetrics' own FID resizes with antialias and differs a little.)

    Raises:
        ValueError: torch-fidelity is not installed, or its weights are neither cached nor can they be downloaded.
    """
    return _Inception(torch.device(device))


class FeatureNet(Extractor):
    """Made by `feature_net`."""

    def __init__(self, weights: Path, settings: dict[str, Any], device: torch.device) -> None:
        self._settings, self._device = settings, device
        scripted = settings["format"] == "torchscript"
        load = _load_script if scripted else _load_resnet
        self._outputs, digest = load(weights, settings, device)
        maps = self._probe(weights)
        name, size = settings["name"], settings["size"]
        layers = "outputs of forward"
        if not scripted:
            layers = f"features {settings['features']}, distance {' '.join(settings['distance']) or 'none'}"
        self.provenance = {
            "extractor": name,
            "weights": digest,
            "layers": layers,
            "resize": "none" if size is None else f"{settings['resize']} (antialias) to {size[1]}x{size[0]}",
            "range": _describe_range(settings),
            "library": f"torch {version('torch')}" if scripted else f"torchvision {version('torchvision')}",
        }
        self.distance_name = f"perceptual/{name}" if maps else None
        self.frechet_name, self.kernel_name = f"fd/{name}", f"kd/{name}"

    def features(self, images: Tensor) -> Tensor:
        return self._run(images)[1].to(images.device)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        if self.distance_name is None:
            raise ValueError(f"the feature network {self.provenance['extractor']} has no layers for a distance")
        _check_pair(first, second)
        pairs = zip(self._run(first)[0], self._run(second)[0], strict=True)
        return torch.stack([_layer_distance(*pair) for pair in pairs]).mean(0).to(first.device)

    def compared(self, first: Tensor, second: Tensor) -> Tensor:
        """`distance` for training, (B): differentiable, of images on the device of the network that may leave [0, 1]."""
        if self.distance_name is None:
            raise ValueError(f"the feature network {self.provenance['extractor']} has no layers for a distance")
        pairs = zip(self._forward(first)[0], self._forward(second)[0], strict=True)
        return torch.stack([_layer_distance(*pair, eps=1e-3) for pair in pairs]).mean(0)

    def _run(self, images: Tensor) -> Outputs:
        with torch.no_grad():
            return self._forward(_check(images).to(self._device))

    def _forward(self, images: Tensor) -> Outputs:
        images = _resize(images, self._settings["size"], self._settings["resize"])
        mean, std = (torch.tensor(self._settings[key], device=self._device).view(-1, 1, 1) for key in ("mean", "std"))
        return self._outputs((images - mean) / std)

    def _probe(self, weights: Path) -> int:
        """The number of feature maps, having checked that outputs are as `feature_net` says."""
        grey = torch.full((2, 3, *(self._settings["size"] or (64, 64))), 0.5)
        try:
            maps, features = self._run(grey)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{weights} fails on images of shape {tuple(grey.shape)}: {_last_line(error)}") from error
        shapes = [tuple(output.shape) for output in (*maps, features)]
        good = all(output.ndim == 4 and output.shape[0] == 2 for output in maps)
        if not (good and features.ndim == 2 and features.shape[0] == 2):
            raise ValueError(
                f"{weights} gives outputs of shapes {', '.join(map(str, shapes))} for two images: give feature maps "
                "(2,C,h,w), any number of them, and then features (2,D)"
            )
        if not all(bool(output.isfinite().all()) for output in (*maps, features)):
            raise ValueError(f"{weights} gives outputs that are not finite for a grey image: its weights are damaged")
        return len(maps)


class _LPIPS(Extractor):
    def __init__(self, net: LPIPSNet, device: torch.device) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import get_model_weights

        trunk = _TRUNKS[net]
        url = next(iter(get_model_weights(trunk))).url
        with _cached(f"LPIPS ({net})", url), torch.random.fork_rng(devices=[]):
            # The metric gives means over a batch; the network inside it gives a value for each image.
            network = LearnedPerceptualImagePatchSimilarity(net_type=net).net
        self._net, self._device = network.to(device), device
        self.provenance = {
            "extractor": f"torchvision {trunk} + LPIPS 0.1 linear weights",
            "weights": tensors_hash(self._net.state_dict()),
            "layers": "those of LPIPS",
            "resize": f"sides below {_SMALLEST} enlarged to {_SMALLEST} (bilinear), else none",
            "range": "[-1,1]",
            "library": f"torchmetrics {version('torchmetrics')}, torchvision {version('torchvision')}",
        }
        self.distance_name = f"lpips/{net}"

    def features(self, images: Tensor) -> Tensor:
        raise ValueError(f"{self.distance_name} gives distances only: for features take inception or a feature network")

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        _check_pair(first, second)
        with torch.no_grad():
            return self._net(self._prepare(first), self._prepare(second)).flatten().to(first.device)

    def _prepare(self, images: Tensor) -> Tensor:
        images = _check(images).to(self._device)
        height, width = images.shape[-2:]
        return _resize(images, (max(height, _SMALLEST), max(width, _SMALLEST)), "bilinear") * 2 - 1


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
        pixels = _check(images).mul(255).round().to(self._device, torch.uint8)
        with torch.no_grad():
            return self._net(pixels)[0].to(images.device)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        raise ValueError("inception gives features only: for distances take LPIPS or a feature network")


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} and {images.dtype}: give (B,3,H,W), floats in [0, 1]")
    low, high = images.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # blurring or blending may round beyond; also true for NaN
        raise ValueError(f"images with values from {low:.4g} to {high:.4g}: give them in [0, 1]")
    return images.detach().float().clamp(0, 1)


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"images of shapes {tuple(first.shape)} and {tuple(second.shape)}: give pairs of equal size")


def _resize(images: Tensor, size: tuple[int, int] | None, method: Resize) -> Tensor:
    if size is None or tuple(images.shape[-2:]) == tuple(size):
        return images
    resized = functional.interpolate(images, size, mode=method, align_corners=False, antialias=True)
    return resized.clamp(0, 1)


def _layer_distance(first: Tensor, second: Tensor, *, eps: float = 1e-10) -> Tensor:
    """(B) from two outputs (B,C,h,w) of one layer; a position whose channels are all zero counts as zero.

    Gradients are at most 1 / eps.
    """
    difference = functional.normalize(first, dim=1, eps=eps) - functional.normalize(second, dim=1, eps=eps)
    return difference.square().sum(1).mean((1, 2))


def _last_line(error: Exception) -> str:
    """What a library says in many lines, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _cached(purpose: str, url: str) -> Iterator[None]:
    """Say which file is missing when a library cannot load its weights; and let it run no pickled code."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    there = file.is_file()
    try:
        with _weights_only():
            yield
    except _DAMAGE as error:
        state = "is damaged or of another network" if there else "is not there and cannot be downloaded"
        raise ValueError(
            f"{purpose} needs {file.name} in {file.parent}, which {state} ({_last_line(error)}): put the file there "
            f"(from {url}), or give --feature_net FOLDER, which works offline"
        ) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """torchvision and torch-fidelity unpickle whatever lies in the cache; torch has this switch against it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _find_weights(path: Path) -> Path:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in _FORMATS)
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"{path} must hold one file of weights ({' or '.join(_FORMATS)}); it holds {names}")
        return found[0]
    if path.suffix not in _FORMATS:
        raise ValueError(f"{path} is no feature network: give a folder, or a file ending in {' or '.join(_FORMATS)}")
    if not path.is_file():
        raise ValueError(f"no such file or folder: {path}; give a feature network, for example a folder with its files")
    return path


def _read_settings(weights: Path) -> dict[str, Any]:
    """The JSON beside the weights, checked, with all keys; "size" as (height, width) or None, "mean", "std" as triples."""
    file = weights.with_suffix(".json")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{weights} has no description beside it: write {file.name} with name, format and size"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {_last_line(error)}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: give an object with name, format and size, not {_short(settings)}")
    kind = _FORMATS[weights.suffix]
    if settings.get("format") != kind:
        raise ValueError(f'{file}: "format" is {_short(settings.get("format"))}, but {weights.name} is "{kind}"')
    _check_keys(f"{file}", settings, required=_REQUIRED[kind], optional=_OPTIONAL)
    return _Reader(file, settings).read()


def _check_keys(where: str, given: Mapping[str, Any], *, required: set[str], optional: set[str]) -> None:
    if unknown := sorted(set(given) - required - optional):
        raise ValueError(f'{where}: unknown key "{unknown[0]}"; known are {", ".join(sorted(required | optional))}')
    if missing := sorted(required - set(given)):
        raise ValueError(f'{where}: the key "{missing[0]}" is missing')


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _describe_range(settings: Mapping[str, Any]) -> str:
    if "range" in settings:
        return "[{:g},{:g}]".format(*settings["range"])
    return "; ".join(f"{key} {' '.join(f'{number:g}' for number in settings[key])}" for key in ("mean", "std"))


class _Reader:
    """Checks the values of one JSON, key by key."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file, self.settings = file, settings

    def read(self) -> dict[str, Any]:
        settings = self.settings
        name = settings["name"]
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9._-]+", name)):
            raise self.wrong("name", 'letters, digits, ".", "_" and "-"')
        resize = settings.setdefault("resize", "bilinear")
        if resize not in get_args(Resize):
            raise self.wrong("resize", " or ".join(get_args(Resize)))
        settings["size"] = self.size()
        self.read_range()
        if settings["format"] == "safetensors":
            self.read_layers()
            self.read_architecture()
        return settings

    def wrong(self, key: str, allowed: str) -> ValueError:
        return ValueError(f'{self.file}: "{key}" is {_short(self.settings[key])}: give {allowed}')

    def size(self) -> tuple[int, int] | None:
        size = self.settings["size"]
        if size is None:
            return None
        sides = [size, size] if isinstance(size, int) else size
        if not _are_counts(sides, 2):
            raise self.wrong("size", "a number of pixels, [height, width], or null for any size")
        return sides[0], sides[1]

    def read_range(self) -> None:
        settings = self.settings
        if "mean" in settings or "std" in settings:
            if "range" in settings:
                raise ValueError(f'{self.file}: give "range", or "mean" and "std", not both')
            for key in ("mean", "std"):
                if not _are_numbers(settings.setdefault(key, None), 3):
                    raise self.wrong(key, 'three numbers; "mean" and "std" belong together')
            if min(settings["std"]) <= 0:
                raise self.wrong("std", "three numbers above 0")
            return
        limits = settings.setdefault("range", [0, 1])
        if not _are_numbers(limits, 2) or limits[0] >= limits[1]:
            raise self.wrong("range", "[low, high], what 0 and 1 become")
        spread = limits[1] - limits[0]
        settings["mean"], settings["std"] = [-limits[0] / spread] * 3, [1 / spread] * 3

    def read_layers(self) -> None:
        if not isinstance(self.settings["features"], str):
            raise self.wrong("features", "the name of a layer")
        layers = self.settings["distance"]
        if not (isinstance(layers, list) and all(isinstance(layer, str) for layer in layers)):
            raise self.wrong("distance", "a list of names of layers, [] for none")
        if len(set(layers)) < len(layers):
            raise self.wrong("distance", "each layer once")

    def read_architecture(self) -> None:
        architecture = self.settings["architecture"]
        if not isinstance(architecture, dict):
            raise self.wrong("architecture", 'an object such as {"class": "ResNet", "block": "BasicBlock", ...}')
        where = f'{self.file}: "architecture"'
        required = {"class", "block", "layers", "num_classes"}
        _check_keys(where, architecture, required=required, optional={"groups", "width_per_group"})
        inner = _Reader(self.file, architecture)
        if architecture["class"] != "ResNet":
            raise inner.wrong("class", '"ResNet"; for other networks write a TorchScript file')
        if architecture["block"] not in ("BasicBlock", "Bottleneck"):
            raise inner.wrong("block", '"BasicBlock" or "Bottleneck"')
        if not _are_counts(architecture["layers"], 4):
            raise inner.wrong("layers", "four numbers, the blocks of each stage")
        for key in {"num_classes", "groups", "width_per_group"} & set(architecture):
            if not _are_counts([architecture[key]], 1):
                raise inner.wrong(key, "a number of at least 1")


def _are_counts(values: Any, count: int) -> bool:
    return _are_numbers(values, count) and all(isinstance(value, int) and value >= 1 for value in values)


def _are_numbers(values: Any, count: int) -> bool:
    if not (isinstance(values, list) and len(values) == count):
        return False
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def _load_script(
    weights: Path, settings: Mapping[str, Any], device: torch.device
) -> tuple[Callable[[Tensor], Outputs], str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that torch.export may replace TorchScript one day
            network = torch.jit.load(str(weights), map_location=device).eval()
            for parameter in network.parameters():
                parameter.requires_grad_(False)
    except (*_DAMAGE, ValueError) as error:
        raise ValueError(f"cannot read {weights} as TorchScript: {_last_line(error)}") from error

    def outputs(images: Tensor) -> Outputs:
        given = network(images)
        tensors = list(given) if isinstance(given, (tuple, list)) else [given]
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise ValueError(f"{weights} returns {type(given).__name__}: give a tensor, or a tuple or list of tensors")
        *maps, features = (tensor.float() for tensor in tensors)
        return maps, features

    return outputs, sha256(weights.read_bytes()).hexdigest()[:16]


def _load_resnet(
    weights: Path, settings: Mapping[str, Any], device: torch.device
) -> tuple[Callable[[Tensor], Outputs], str]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision.models import resnet
    from torchvision.models.feature_extraction import create_feature_extractor

    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {weights}: {_last_line(error)}") from error
    arguments = {key: value for key, value in settings["architecture"].items() if key not in ("class", "block")}
    try:
        with torch.device("meta"):  # no weights are drawn, so no generator is used
            network = resnet.ResNet(getattr(resnet, settings["architecture"]["block"]), **arguments)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{weights.with_suffix('.json')}: {_last_line(error)}") from error
    _check_shapes(weights, tensors, network.state_dict())
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    layers: Sequence[str] = settings["distance"]
    wanted = settings["features"]
    try:
        network.eval().requires_grad_(False)
        extractor = create_feature_extractor(network, [*layers, *({wanted} - set(layers))]).to(device).eval()
    except ValueError as error:
        raise ValueError(f"{weights.with_suffix('.json')}: {str(error).splitlines()[0]}") from error

    def outputs(images: Tensor) -> Outputs:
        by_name = extractor(images)
        return [by_name[layer] for layer in layers], by_name[wanted]

    return outputs, tensors_hash(tensors)


def _check_shapes(weights: Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # not used outside of training
    if missing := sorted(set(expected) - set(given) - counters):
        raise ValueError(f"{weights} lacks {missing[0]} ({len(missing)} tensors in all): does the architecture fit?")
    if unknown := sorted(set(given) - set(expected)):
        raise ValueError(f"{weights} holds {unknown[0]}, which its architecture lacks ({len(unknown)} tensors in all)")
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, but its architecture needs {tuple(expected[name].shape)}"
            raise ValueError(f"{weights}: {name} has shape {shapes}")
