"""Feature networks from files: TorchScript, or safetensors of torchvision's ResNet, with a JSON description."""

import warnings
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from rad.evaluation.features.description import Description, find_weights, read_description
from rad.evaluation.features.extractor import (
    DAMAGE,
    Extractor,
    check_images,
    check_pair,
    last_line,
    resize,
    tensors_hash,
)
from rad.resources import located

Outputs = tuple[list[Tensor], Tensor]
"""Feature maps (B,C,h,w) for the distance, and features (B,D)."""

Network = tuple[Callable[[Tensor], Outputs], str, str]
"""The network, the hash of its weights, and its layers in words."""


def feature_net(path: str | Path, *, device: str | torch.device = "cpu") -> "FeatureNet":
    """A feature network from a file of weights with a JSON of the same name, or from a folder with both.

    Keys of the JSON:

    - "name": names its metrics "perceptual/NAME", "fd/NAME" and "kd/NAME"; letters, digits, ".", "_" and "-".
    - "format": "safetensors" or "torchscript".
    - "size": side of the input images, or [height, width], resized without keeping the aspect ratio. null: any size.
    - "resize": "bilinear" (default) or "bicubic", both with antialiasing; "bicubic" is clamped to [0,1].
    - "range": [low, high], the values of black and white; or "mean" and "std", three numbers each. Default: [0,1].

    A safetensors file also needs:

    - "architecture": {"class": "ResNet", "block": "BasicBlock" or "Bottleneck", "layers": four numbers, "num_classes":
      a number, optionally "groups", "width_per_group"}: arguments of torchvision's ResNet, which also names the weights.
      Half-precision weights are converted to float32.
    - "features": the layer with output (B,D) for the features ("flatten": the last stage, pooled).
    - "distance": layers with outputs (B,C,h,w) for the distance; [] for none. Layer names are those of
      `torchvision.models.feature_extraction`: "relu", "layer1", ..., "layer4", "layer2.0.conv1".

    A TorchScript file gets (B,3,height,width) float32. It returns the features (B,D), or a tuple or list of feature maps
    (B,C,h,w) followed by the features. It is a program: load only files you trust.

    The distance is that of Zhang et al. 2018 (arXiv:1801.03924, eq. 1) with w = 1: squared differences of channel vectors
    of unit length, averaged over layers and positions.

    Raises ValueError if a file is missing or damaged, the JSON is wrong, or weights or outputs do not fit it.
    """
    weights = find_weights(located(path))
    return FeatureNet(weights, read_description(weights), torch.device(device))


class FeatureNet(Extractor):
    """A network loaded by `feature_net`."""

    def __init__(self, weights: Path, description: Description, device: torch.device) -> None:
        self._description, self._device = description, device
        scripted = not description.architecture
        self._outputs, digest, layers = (_load_script if scripted else _load_resnet)(weights, description, device)
        name, size = description.name, description.size
        self.provenance = {
            "extractor": name,
            "weights": digest,
            "layers": layers,
            "resize": "none" if size is None else f"{description.resize} (antialias) to {size[1]}x{size[0]}",
            "range": description.input_range,
            "library": f"torch {version('torch')}" if scripted else f"torchvision {version('torchvision')}",
        }
        self.distance_name = f"perceptual/{name}" if self._count_maps(weights) else None
        self.frechet_name, self.kernel_name = f"fd/{name}", f"kd/{name}"

    def features(self, images: Tensor) -> Tensor:
        return self._run(images)[1].to(images.device)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        self._need_distance()
        check_pair(first, second)
        pairs = zip(self._run(first)[0], self._run(second)[0], strict=True)
        return torch.stack([_layer_distance(*pair) for pair in pairs]).mean(0).to(first.device)

    def compared(self, first: Tensor, second: Tensor) -> Tensor:
        """Differentiable `distance` for training, (B); images on the network's device, values may exceed [0,1]."""
        self._need_distance()
        pairs = zip(self._forward(first)[0], self._forward(second)[0], strict=True)
        return torch.stack([_layer_distance(*pair, eps=1e-3) for pair in pairs]).mean(0)

    def _need_distance(self) -> None:
        if self.distance_name is None:
            raise ValueError(f"the feature network {self.provenance['extractor']} has no layers for a distance")

    def _run(self, images: Tensor) -> Outputs:
        with torch.no_grad():
            return self._forward(check_images(images).to(self._device))

    def _forward(self, images: Tensor) -> Outputs:
        images = resize(images, self._description.size, self._description.resize)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self._device).view(-1, 1, 1)
            for values in (self._description.mean, self._description.std)
        )
        return self._outputs((images - mean) / std)

    def _count_maps(self, weights: Path) -> int:
        """Number of feature maps; checks all outputs on a grey image."""
        grey = torch.full((2, 3, *(self._description.size or (64, 64))), 0.5, dtype=torch.float32, device="cpu")
        try:
            maps, features = self._run(grey)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{weights} fails on images of shape {tuple(grey.shape)}: {last_line(error)}") from error
        shapes = [tuple(output.shape) for output in (*maps, features)]
        if [len(shape) for shape in shapes] != [4] * len(maps) + [2] or any(shape[0] != 2 for shape in shapes):
            raise ValueError(
                f"{weights} returns outputs of shapes {', '.join(map(str, shapes))} for two images: expected any number of "
                "feature maps (2,C,h,w), then features (2,D)"
            )
        if not all(bool(output.isfinite().all()) for output in (*maps, features)):
            raise ValueError(f"{weights} returns values that are not finite for a grey image: its weights are damaged")
        return len(maps)


def _layer_distance(first: Tensor, second: Tensor, *, eps: float = 1e-10) -> Tensor:
    """(B) distance of two outputs (B,C,h,w) of one layer; gradients are at most 1 / eps."""
    difference = functional.normalize(first, dim=1, eps=eps) - functional.normalize(second, dim=1, eps=eps)
    return difference.square().sum(1).mean((1, 2))


def _load_script(weights: Path, description: Description, device: torch.device) -> Network:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch announces the end of TorchScript
            network = torch.jit.load(str(weights), map_location=device).eval()
            for parameter in network.parameters():
                parameter.requires_grad_(False)
    except (*DAMAGE, ValueError) as error:
        raise ValueError(f"cannot read {weights} as TorchScript: {last_line(error)}") from error

    def outputs(images: Tensor) -> Outputs:
        output = network(images)
        tensors = list(output) if isinstance(output, tuple | list) else [output]
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise ValueError(
                f"{weights} returns {type(output).__name__}: expected a tensor, or a tuple or list of tensors"
            )
        *maps, features = (tensor.float() for tensor in tensors)
        return maps, features

    return outputs, sha256(weights.read_bytes()).hexdigest()[:16], "outputs of forward"


def _load_resnet(weights: Path, description: Description, device: torch.device) -> Network:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision.models import resnet
    from torchvision.models.feature_extraction import create_feature_extractor

    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {weights}: {last_line(error)}") from error
    arguments = {key: value for key, value in description.architecture.items() if key not in ("class", "block")}
    file, maps, features = weights.with_suffix(".json"), description.distance, description.features
    try:
        with torch.device("meta"):  # draws no weights, and so uses no generator
            network = resnet.ResNet(getattr(resnet, description.architecture["block"]), **arguments)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{file}: {last_line(error)}") from error
    _check_shapes(weights, tensors, network.state_dict())
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
    try:
        extractor = create_feature_extractor(network, [*maps, *({features} - set(maps))]).to(device).eval()
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).splitlines()[0]}") from error

    def outputs(images: Tensor) -> Outputs:
        by_name = extractor(images)
        return [by_name[layer] for layer in maps], by_name[features]

    return outputs, tensors_hash(tensors), f"features {features}, distance {' '.join(maps) or 'none'}"


def _check_shapes(weights: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # used in training only
    if missing := sorted(set(expected) - set(tensors) - counters):
        raise ValueError(f"{weights} lacks {missing[0]} ({len(missing)} tensors in all): does the architecture fit?")
    if unknown := sorted(set(tensors) - set(expected)):
        raise ValueError(f"{weights} holds {unknown[0]}, which its architecture lacks ({len(unknown)} tensors in all)")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, but its architecture needs {tuple(expected[name].shape)}"
            raise ValueError(f"{weights}: {name} has shape {shapes}")
