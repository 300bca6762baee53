"""A small network of two convolutions, as an exported folder and as a PyTorch module with the same weights."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from rad.diffusion import linear_betas

HIDDEN = 8


class TinyNetwork(nn.Module):
    """conv(sigmoid(conv([sample, map of the timesteps / 1000])))), with the interface of `RegionAwareUNet`."""

    def __init__(self, seed: int, outputs: int = 6) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Conv2d(4, HIDDEN, 3, padding=1), nn.Conv2d(HIDDEN, outputs, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random) / 4)

    def forward(self, sample: Tensor, timesteps: Tensor, *, index: Tensor | None) -> SimpleNamespace:
        if index is None:
            times = timesteps[:, :, None, None].expand(-1, -1, *sample.shape[2:])
        else:
            times = timesteps.gather(1, index.flatten(1)).view(index.shape)[:, None]
        hidden = torch.sigmoid(self.first(torch.cat([sample, times / 1000], 1)))
        return SimpleNamespace(sample=self.second(hidden))


def graph(network: TinyNetwork) -> onnx.ModelProto:
    """The network with the inputs and the output of exported models."""
    constants = {f"{name}": value.detach().numpy() for name, value in network.named_parameters()}
    constants |= {"axes": np.array([2, 3]), "one": np.array([1]), "thousand": np.array(1000, np.float32)}
    nodes = [
        helper.make_node("Unsqueeze", ["timesteps", "axes"], ["spread"]),
        helper.make_node("Mul", ["spread", "levels"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "one"], ["map"], keepdims=1),
        helper.make_node("Div", ["map", "thousand"], ["times"]),
        helper.make_node("Concat", ["sample", "times"], ["input"], axis=1),
        helper.make_node("Conv", ["input", "first.weight", "first.bias"], ["before"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["before"], ["hidden"]),
        helper.make_node("Conv", ["hidden", "second.weight", "second.bias"], ["output"], pads=[1, 1, 1, 1]),
    ]

    def values(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    inputs = [
        values("sample", ["B", 3, "H", "W"]),
        values("timesteps", ["B", "K"]),
        values("levels", ["B", "K", "H", "W"]),
    ]
    initialisers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    output = values("output", ["B", network.second.out_channels, "H", "W"])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, [output], initialisers), opset_imports=opset, ir_version=9
    )


def write_folder(folder: Path, networks: dict[str, TinyNetwork], /, *, size: object, **changes: object) -> Path:
    """An exported folder with these networks, of "rad" and "base"; `changes`: of its settings."""
    folder.mkdir(exist_ok=True)
    entries = {}
    for role, network in networks.items():
        content = graph(network).SerializeToString()
        (folder / f"{role}.onnx").write_bytes(content)
        entries[role] = {"file": f"{role}.onnx", "sha256": hashlib.sha256(content).hexdigest(), "output_channels": 6}
    settings = {
        "format": 1,
        "name": "tiny",
        "kind": "pixel",
        "size": size,
        "side_multiple": 2,
        "channels": 3,
        "betas": linear_betas().tolist(),
        "prediction": "epsilon",
        "clip": True,
        "learned_variance": True,
        "base_learned_variance": True,
        "time_origin": "adm",
        "process": "region_aware",
        "precision": "fp32",
        "networks": entries,
        "source": {"checkpoint": "tiny"},
        "rad_version": "0",
    }
    (folder / "runtime.json").write_text(json.dumps(settings | changes))
    return folder
