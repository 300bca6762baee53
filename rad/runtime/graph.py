"""The network of a pixel model as an ONNX graph with dynamic batch, levels and size. Uses torch; `rad.runtime` itself does not.

The graph computes the factorised embedding of `rad.networks.unet`. It takes the indicator maps 1_k (B,K,H,W) in place of an
index map, so that K is a free dimension:

    sum_k (W silu(z_k) + b) R(1_k)  =  (B,C,K) matrix  @  (B,K,hw) matrix
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad import __version__
from rad.models.lora import twin
from rad.networks import SURROUNDINGS
from rad.networks.surroundings import LEVELS
from rad.networks.unet import RegionAwareResnetBlock, RegionAwareUNet, TimeEmbedding, resize

if TYPE_CHECKING:
    from onnx import ModelProto

INPUTS, OUTPUT = ("sample", "timesteps", "levels"), "output"
OPSET = 18
"""Supported by ONNX Runtime since 1.14, on a CPU and in WebAssembly."""
TRACED = (2, 3)
"""B and K of the traced example. Values of 1 would be constants of the graph."""


class DynamicUNet(RegionAwareUNet):
    """A patched network whose `index` is the indicator maps (B,K,H,W), for any K."""

    def _embed(
        self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None, index: Tensor | None
    ) -> TimeEmbedding:
        assert isinstance(timestep, Tensor)
        assert index is not None
        vectors = self.time_embedding(self.time_proj(timestep.flatten()))
        vectors = vectors.unflatten(0, (timestep.shape[0], timestep.shape[1]))
        maps, height, width = [index], sample.shape[2], sample.shape[3]
        for depth in range(1, len(self.config["block_out_channels"])):
            maps.append(resize(index, (height // 2**depth, width // 2**depth)))
        return TimeEmbedding(vectors=F.silu(vectors), maps=tuple(maps))

    def _first_level(self, timesteps: Tensor, index: Tensor) -> Tensor:
        return (index[:, :1] > 0) & (timesteps[:, :1, None, None] == 0)

    def _spread(self, values: Tensor, index: Tensor) -> Tensor:
        return (values[:, :, None, None] * index).sum(1, keepdim=True)


class _DynamicBlock(RegionAwareResnetBlock):
    def _condition(self, hidden: Tensor, temb: TimeEmbedding) -> Tensor:
        assert self.time_emb_proj is not None
        levels = self.time_emb_proj(temb.vectors).transpose(1, 2)
        weights = temb.weights((hidden.shape[2], hidden.shape[3]))
        assert weights is not None
        mixed = (levels @ weights.flatten(2)).unflatten(2, (hidden.shape[2], hidden.shape[3]))
        if self.time_embedding_norm == "default":
            return F.silu(self.norm2(hidden + mixed))
        scale, shift = mixed.chunk(2, dim=1)
        return F.silu(self.norm2(hidden) * (1 + scale) + shift)


class Exported(nn.Module):
    """The network with the inputs and the output of the graph. It shares the weights of `network`, which stays as it is."""

    def __init__(self, network: RegionAwareUNet) -> None:
        super().__init__()
        copied = twin(network)
        copied.disable_gradient_checkpointing()
        copied.__class__ = DynamicUNet
        for module in copied.modules():
            if isinstance(module, RegionAwareResnetBlock):
                module.__class__ = _DynamicBlock
        self.unet = cast(DynamicUNet, copied)

    def forward(self, sample: Tensor, timesteps: Tensor, levels: Tensor) -> Tensor:
        """sample (B,C,H,W), timesteps (B,K), levels (B,K,H,W): see `rad.runtime`. Returns the raw output (B,C or 2C,H,W)."""
        return self.unet(sample, timesteps, index=levels, return_dict=False)[0]


def random_inputs(
    channels: int, *, batch: int, levels: int, size: tuple[int, int], steps: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs of a graph: noise (B,C,H,W), timesteps (B,K) in [0,steps), indicator maps (B,K,H,W) of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, channels, *size, generator=generator)
    timesteps = torch.rand(batch, levels, generator=generator) * (steps - 1)
    index = torch.randint(levels, (batch, *size), generator=generator)
    return sample, timesteps, F.one_hot(index, levels).movedim(-1, 1).to(sample.dtype)


def trace(network: RegionAwareUNet, *, side_multiple: int) -> ModelProto:
    """The graph of `network` in float32, with names and dimensions as in `rad.runtime`."""
    wrapper = Exported(network).eval()
    batch, levels = TRACED
    least = 2 ** (LEVELS - 1) if network.config.get(SURROUNDINGS) else 1  # more than one cell of the coarsest scale
    size = ((least // side_multiple + 2) * side_multiple, (2 * least // side_multiple + 3) * side_multiple)
    inputs = random_inputs(network.config["in_channels"], batch=batch, levels=levels, size=size, steps=1000, seed=0)
    sides = {2: side_multiple * torch.export.Dim("h"), 3: side_multiple * torch.export.Dim("w")}
    # diffusers has a path for 64 images and more, with the same result; the graph itself has no limit.
    many, count = torch.export.Dim("batch", max=63), torch.export.Dim("levels")
    shapes = ({0: many, **sides}, {0: many, 1: count}, {0: many, 1: count, **sides})
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            wrapper,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=shapes,
        )
    assert program is not None
    model = program.model_proto
    _simplify(model)
    return model


def _simplify(model: ModelProto) -> None:
    """Name the dimensions as in `rad.runtime`, and remove the exporter's notes, which describe source files."""
    graph = model.graph
    model.producer_name, model.producer_version = "rad", __version__
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        sides = value.type.tensor_type.shape.dim[2:]
        for dimension, name in zip(sides, ("height", "width"), strict=False):
            dimension.dim_param = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about dimensions that two inputs share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
