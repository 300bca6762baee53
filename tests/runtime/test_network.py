"""A network run by ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rad.runtime.network import OnnxNetwork


def test_memory_that_runs_out_raises_memory_error(tmp_path, capfd):
    """ONNX Runtime raises an error of its own; `WindowFiller` halves the batch on MemoryError."""
    sizes = {name: [1] for name in ("sample", "timesteps", "levels")} | {"output": ["count"]}
    *inputs, output = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in sizes.items()
    )
    count = numpy_helper.from_array(np.array([2**50]), "most")
    expand = helper.make_node("Expand", ["sample", "most"], ["output"])
    graph = helper.make_graph([expand], "huge", inputs, [output], [count])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "rad.onnx"))
    network, value = OnnxNetwork(tmp_path / "rad.onnx"), np.zeros(1, np.float32)
    with pytest.raises(MemoryError):
        network(value, value, value)
    assert capfd.readouterr().err == ""
