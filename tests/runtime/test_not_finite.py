"""`rad export --onnx` refuses a graph whose output is not finite."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rad.runtime import export, graph


def multiplied(value: float) -> onnx.ModelProto:
    """A graph whose output is the noisy image times `value`."""
    ranks = {"sample": 4, "timesteps": 2, "levels": 4, "output": 4}
    *inputs, output = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{n}" for n in range(rank)])
        for name, rank in ranks.items()
    )
    constant = numpy_helper.from_array(np.float32(value), "value")
    nodes = [helper.make_node("Mul", ["sample", "value"], ["output"])]
    made = helper.make_graph(nodes, "multiplied", inputs, [output], [constant])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


class Network:
    """A network whose output is its input."""

    def __init__(self) -> None:
        self.config = {"in_channels": 3}

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, *, index: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=sample)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0])
def test_a_graph_that_is_not_finite_is_refused(tmp_path, monkeypatch, value):
    model = SimpleNamespace(side_multiple=1, size=(4, 4), base_process=SimpleNamespace(steps=1000))
    monkeypatch.setattr(graph, "trace", lambda network, *, side_multiple: multiplied(1.0))
    assert export._write(model, Network(), tmp_path / "rad.onnx", "fp32").difference == 0
    monkeypatch.setattr(graph, "trace", lambda network, *, side_multiple: multiplied(value))
    with pytest.raises(ValueError, match=r"rad\.onnx differs from PyTorch by"):
        export._write(model, Network(), tmp_path / "rad.onnx", "fp32")
