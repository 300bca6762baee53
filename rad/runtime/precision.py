"""Weights of an ONNX graph in float16 or int8. The graph computes in float32: a runtime expands the weights when it loads them.

float16: W = float32(W16).    int8, symmetric, one scale an output channel:  W = s_c q,  s_c = max |W_c| / 127.

The weights of convolutions and matrix products are stored this way. Biases and norms stay in float32. In a graph of int8, the
smallest weights are in float16: the layers of the finest resolution, whose rounding matters most. On rad-nature32, 4 % of the
weights in float16 divide the squared error by 10 to 20, and the file grows by 3 %.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
IN_HALF = 0.04
"""Share of the weights that a graph of int8 holds in float16."""


def convert(model: ModelProto, precision: Precision) -> ModelProto:
    """A copy of `model` with its weights in `precision`. Raises ValueError for values that float16 cannot hold."""
    from onnx import ModelProto as Proto
    from onnx import helper, numpy_helper

    result = Proto()
    result.CopyFrom(model)
    if precision == "fp32":
        return result
    graph = result.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    weights = _weights(model)
    sizes = {name: math.prod(stored[name].dims) for name in weights}
    halves = _smallest(sizes, share=1.0 if precision == "fp16" else IN_HALF)
    nodes: list[NodeProto] = []
    for name, axis in weights.items():
        values = numpy_helper.to_array(stored[name])
        graph.initializer.remove(stored[name])
        if name in halves:
            tensors = {f"{name}_fp16": _half(name, values)}
            nodes.append(helper.make_node("Cast", list(tensors), [name], name=f"{name}_cast", to=1))
        else:
            tensors = dict(zip((f"{name}_int8", f"{name}_scale"), quantized(values, axis), strict=True))
            nodes.append(helper.make_node("Cast", [f"{name}_int8"], [f"{name}_wide"], name=f"{name}_cast", to=1))
            nodes.append(helper.make_node("Mul", [f"{name}_wide", f"{name}_scale"], [name], name=f"{name}_scaled"))
        graph.initializer.extend(numpy_helper.from_array(tensor, key) for key, tensor in tensors.items())
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return result


def quantized(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 values in [-127,127] and the scale of each channel along `axis`, float32, shaped for a product with them."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weight / scale).clip(-127, 127).astype(np.int8), scale


def _weights(model: ModelProto) -> dict[str, int]:
    """The output axis of each weight, by name."""
    names = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    axes: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in names:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            axes[node.input[1]] = 0 if node.op_type == "Conv" or transposed else 1
    return axes


def _smallest(sizes: dict[str, int], *, share: float) -> set[str]:
    """Names of the smallest weights, which hold at most this share of all values."""
    names = sorted(sizes, key=lambda name: sizes[name])
    totals = accumulate(sizes[name] for name in names)
    return {name for name, total in zip(names, totals, strict=True) if total <= share * sum(sizes.values())}


def _half(name: str, values: np.ndarray) -> np.ndarray:
    if np.abs(values).max() > np.finfo(np.float16).max:
        raise ValueError(f"{name} has values above 65504, which float16 cannot hold: use --precision fp32")
    return values.astype(np.float16)
