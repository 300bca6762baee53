"""Weights of an ONNX graph in float16 or int8. The graph computes in float32: a runtime expands the weights when it loads them.

float16: W = float32(W16).    int8, symmetric, one scale an output channel:  W = s_c q,  s_c = max |W_c| / 127.

The weights of convolutions and matrix products are stored this way. Biases and norms stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


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
    nodes: list[NodeProto] = []
    for name, axis in _weights(model):
        values = numpy_helper.to_array(stored[name])
        graph.initializer.remove(stored[name])
        if precision == "fp16":
            tensors = {f"{name}_fp16": _half(name, values)}
            nodes.append(helper.make_node("Cast", list(tensors), [name], name=f"{name}_cast", to=1))
        else:
            integers, scale = quantized(values, axis)
            tensors = {f"{name}_int8": integers, f"{name}_scale": scale}
            wide = f"{name}_wide"
            nodes.append(helper.make_node("Cast", [f"{name}_int8"], [wide], name=f"{name}_cast", to=1))
            nodes.append(helper.make_node("Mul", [wide, f"{name}_scale"], [name], name=f"{name}_scaled"))
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


def _weights(model: ModelProto) -> Iterator[tuple[str, int]]:
    """Name and output axis of each weight, once."""
    names = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in names:
            names.remove(node.input[1])
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            yield node.input[1], 0 if node.op_type == "Conv" or transposed else 1


def _half(name: str, values: np.ndarray) -> np.ndarray:
    if np.abs(values).max() > np.finfo(np.float16).max:
        raise ValueError(f"{name} has values above 65504, which float16 cannot hold: use --precision fp32")
    return values.astype(np.float16)
