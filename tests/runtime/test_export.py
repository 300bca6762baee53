"""`rad export --onnx`: graphs against PyTorch, stored precisions, the folder and the errors."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from rad.__main__ import main
from rad.diffusion.schedules import linear_betas
from rad.models.adapter import AdapterInfo
from rad.models.base import save_base
from rad.models.load import load_model
from rad.models.loaded_model import LoadedModel
from rad.models.lora import twin
from rad.models.weights import weights_hash
from rad.networks.unet import RegionAwareUNet, patch
from rad.runtime import export, graph
from rad.runtime.export import Difference, compare, export_onnx
from rad.runtime.precision import convert, quantized
from tests.conftest import SIZE
from tests.hub_server import serving
from tests.pipelines import tiny_ldm
from tests.tiny_networks import small_unet

pytestmark = pytest.mark.slow  # each network is traced, which takes seconds

OPERATORS = {
    *("Add", "AveragePool", "Cast", "Concat", "Constant", "Conv", "Cos", "Div", "Gemm", "InstanceNormalization", "MatMul"),
    *("Mul", "Reshape", "Resize", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Squeeze", "Transpose"),
    *("Unsqueeze",),
}  # fmt: skip
"""Operators of ONNX since opset 13, which every build of ONNX Runtime has."""


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Trace each network once, since that takes seconds."""
    known: dict[str, onnx.ModelProto] = {}

    def trace(network: RegionAwareUNet, *, side_multiple: int) -> onnx.ModelProto:
        logging.getLogger("torch.__trace").handlers.clear()  # pytest would collect torch's debug records
        key = weights_hash(network.state_dict()) + network.config["resnet_time_scale_shift"]
        if key not in known:
            known[key] = before(network, side_multiple=side_multiple)
        return known[key]

    before, graph.trace = graph.trace, trace
    yield
    graph.trace = before


@pytest.fixture(scope="module", params=["adapter", "default"])
def network(request: pytest.FixtureRequest, adapter: Path) -> RegionAwareUNet:
    """The merged network of `adapter`, with "scale_shift"; and a network of the kind "default"."""
    if request.param == "default":
        return patch(small_unet(norm="default", size=SIZE))
    return cast(RegionAwareUNet, load(adapter).sampled_network(adapter=True))


@pytest.fixture(scope="module")
def model(network: RegionAwareUNet) -> onnx.ModelProto:
    return graph.trace(network, side_multiple=2)


def load(adapter: Path) -> LoadedModel:
    return load_model(AdapterInfo.read(adapter).base, adapter=adapter)


def outputs(model: onnx.ModelProto, *inputs: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(graph.INPUTS, (value.numpy() for value in inputs), strict=True)))[0]


def inputs(batch: int, levels: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    return graph.random_inputs(3, batch=batch, levels=levels, size=(height, width), steps=1000, seed=batch)


@torch.no_grad()
def test_graphs_equal_pytorch_for_every_batch_number_of_levels_and_size(network, model):
    for batch, levels, height, width in (
        (1, 1, 16, 16), (1, 2, 16, 16), (2, 3, 4, 6), (3, 5, 24, 10), (5, 2, 8, 32), (4, 1, 4, 4), (65, 2, 4, 4),
    ):  # fmt: skip
        sample, timesteps, maps = inputs(batch, levels, height, width)
        expected = network(sample, timesteps, index=maps.argmax(1)).sample.numpy()
        result = outputs(model, sample, timesteps, maps)
        assert result.shape == (batch, 6, height, width)
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max(), (batch, levels, height, width)


@torch.no_grad()
def test_dense_embedding_and_one_level_agree_with_the_graph(network, model):
    sample, timesteps, maps = inputs(2, 4, 8, 8)
    dense = patch(twin(network), embedding="dense")
    image = timesteps.gather(1, maps.argmax(1).flatten(1)).unflatten(1, (8, 8))
    torch.testing.assert_close(
        torch.from_numpy(outputs(model, sample, timesteps, maps)), dense(sample, image).sample, rtol=0, atol=1e-4
    )
    same = outputs(model, sample, timesteps[:, :1].expand(2, 4).contiguous(), maps)
    alone = outputs(model, sample, timesteps[:, :1], torch.ones(2, 1, 8, 8))
    np.testing.assert_allclose(same, alone, rtol=0, atol=1e-5)


def test_graphs_have_the_agreed_face_and_plain_operators(model):
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    for precision in ("fp32", "fp16", "int8"):
        converted = convert(model, precision)
        assert {node.op_type for node in converted.graph.node} <= OPERATORS
        assert {node.domain for node in converted.graph.node} <= {"", "ai.onnx"}
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*converted.graph.input, *converted.graph.output)
        }
        assert shapes == {
            "sample": ["batch", 3, "height", "width"],
            "timesteps": ["batch", "levels"],
            "levels": ["batch", "levels", "height", "width"],
            "output": ["batch", 6, "height", "width"],
        }
        assert not re.search(rb"\.py|/home|/work|stack_trace", converted.SerializeToString())


def test_half_and_int8_store_the_weights_and_round_them_as_stated(model):
    plain = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sizes, total = {"fp32": model.ByteSize()}, sum(value.size for value in plain.values())
    for precision in ("fp16", "int8"):
        converted = convert(model, precision)
        sizes[precision] = converted.ByteSize()
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
        halves = {name.removesuffix("_fp16"): v for name, v in stored.items() if v.dtype == np.float16}
        eighths = {name.removesuffix("_int8"): v for name, v in stored.items() if v.dtype == np.int8}
        assert sum(v.size for v in (*halves.values(), *eighths.values())) > 0.95 * total
        for name, value in halves.items():
            np.testing.assert_array_equal(value, plain[name].astype(np.float16))
        for name, value in eighths.items():
            scale = stored[f"{name}_scale"]
            assert np.all(np.abs(value * scale - plain[name]) <= 0.5001 * scale)
            assert scale.size == max(plain[name].shape[0], 1) or scale.shape == (1, plain[name].shape[1])
        if precision == "int8":
            assert 0 < sum(value.size for value in halves.values()) <= 0.04 * total
            assert max(value.size for value in halves.values()) <= min(value.size for value in eighths.values())
            assert {name for name in plain if re.search(r"conv_(in|out)\.weight", name)} <= set(halves)
    assert sizes["fp16"] < 0.53 * sizes["fp32"]
    assert sizes["int8"] < 0.30 * sizes["fp32"]


def test_quantisation_of_known_channels():
    weight = np.array([[1.27, -0.634, 0.0], [0.0, 0.0, 0.0], [-254.0, 2.0, 1.0]], dtype=np.float32)
    integers, scale = quantized(weight, 0)
    assert integers.tolist() == [[127, -63, 0], [0, 0, 0], [-127, 1, 0]]
    np.testing.assert_allclose(scale[:, 0], [0.01, 1.0, 2.0], rtol=1e-6)
    assert quantized(weight.T, 1)[0].tolist() == integers.T.tolist()


def test_half_refuses_weights_that_it_cannot_hold(model):
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    (tensor,) = (tensor for tensor in wide.graph.initializer if "conv_in.weight" in tensor.name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), tensor.name))
    with pytest.raises(ValueError, match="float16 cannot hold"):
        convert(wide, "fp16")


def test_a_graph_of_other_weights_is_detected(network, model):
    assert compare(network, model, "rad.onnx", size=(SIZE, SIZE), steps=1000).share < 1e-5
    other = onnx.ModelProto()
    other.CopyFrom(model)
    (tensor,) = (tensor for tensor in other.graph.initializer if "conv_out.bias" in tensor.name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.1), tensor.name))
    assert compare(network, other, "rad.onnx", size=(SIZE, SIZE), steps=1000).share > 1e-2


# ---- the folder ------------------------------------------------------------------------------------


def onnx_export(*words: object) -> int:
    return main(["export", *map(str, words)])


@torch.no_grad()
def check_folder(adapter: Path, folder: Path) -> dict:
    """Compare the files with PyTorch and with runtime.json, which is returned."""
    settings = json.loads((folder / "runtime.json").read_text())
    model = load(adapter)
    sample, timesteps, maps = inputs(2, 1, SIZE, 2 * SIZE)
    for role, entry in settings["networks"].items():
        content = (folder / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert 0 < entry["largest_difference"] < 1e-4
        expected = model.sampled_network(adapter=role == "rad")(sample, timesteps[:, 0]).sample
        result = outputs(onnx.load_from_string(content), sample, timesteps, maps)
        np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-4)
    files = {entry["file"] for entry in settings["networks"].values()}
    assert {path.name for path in folder.iterdir()} == {*files, "runtime.json", "README.md"}
    return settings


def test_base_weights_of_an_adapter(adapter, tmp_path, capsys):
    assert onnx_export(adapter, "--onnx", tmp_path / "out", "--base_weights") == 0
    assert [line.split(": largest")[0] for line in capsys.readouterr().err.splitlines()] == ["rad.onnx", "base.onnx"]
    assert list(check_folder(adapter, tmp_path / "out")["networks"]) == ["rad", "base"]


def test_the_folder_of_an_adapter(adapter, tmp_path, capsys):
    folder = tmp_path / "out"
    assert onnx_export(adapter, "--onnx", folder) == 0
    streams = capsys.readouterr()
    assert streams.out == f"{folder}\n"
    assert streams.err.startswith("rad.onnx: largest difference from PyTorch ")
    settings = check_folder(adapter, folder)
    assert np.array_equal(np.array(settings.pop("betas")), linear_betas().numpy()), "exact"
    assert settings.pop("steps") == 1000
    rest = {key: value for key, value in settings.items() if key not in ("networks", "source", "rad_version")}
    assert rest == {
        "format": 1,
        "name": "adapter",
        "kind": "pixel",
        "size": [SIZE, SIZE],
        "side_multiple": 2,
        "channels": 3,
        "prediction": "epsilon",
        "clip": True,
        "learned_variance": True,
        "base_learned_variance": True,
        "time_origin": "adm",
        "process": "region_aware",
        "precision": "fp32",
    }
    assert (settings["source"]["checkpoint"], settings["source"]["base_hash"]) == ("adapter", load(adapter).hash)
    text = (folder / "README.md").read_text() + (folder / "runtime.json").read_text()
    assert "# adapter in ONNX" in text
    assert str(tmp_path) not in text
    assert str(Path(adapter).parent) not in text

    size = (folder / "rad.onnx").stat().st_size
    assert onnx_export(adapter, "--onnx", folder) == 2
    assert "exists: give another folder, or --overwrite" in capsys.readouterr().err
    assert onnx_export(adapter, "--onnx", folder, "--overwrite", "--precision", "int8") == 0
    assert (folder / "rad.onnx").stat().st_size < 0.3 * size
    assert json.loads((folder / "runtime.json").read_text())["precision"] == "int8"
    (folder / "notes").touch()
    assert onnx_export(adapter, "--onnx", folder, "--overwrite") == 2
    assert f"would delete {folder / 'notes'}" in capsys.readouterr().err


def test_a_folder_that_disagrees_with_pytorch_does_not_appear(adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(export.TOLERANCE, "fp16", 1e-9)
    assert onnx_export(adapter, "--onnx", "--output", tmp_path / "out", "--precision", "fp16") == 2
    assert "rad.onnx differs from PyTorch by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_of_the_hub_and_runs(adapter, base, tmp_path, monkeypatch, capsys):
    def source(folder: str) -> tuple[str, str]:
        settings = json.loads(Path(folder, "runtime.json").read_text())
        return settings["name"], settings["source"]["checkpoint"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "_write", write_nothing)
    with serving(monkeypatch, str(tmp_path / "cache")):
        assert main(["push", str(base), "me/base"]) == 0
        assert main(["push", str(adapter), "me/rad", "--base", "me/base"]) == 0
        assert onnx_export("me/rad@main", "--onnx", "hub") == 0
    assert source("hub") == ("rad", "me/rad@main")
    model = shutil.copytree(adapter, tmp_path / "runs" / "mine" / "checkpoints" / "step=2-ema")
    capsys.readouterr()
    assert onnx_export("runs/mine", "--base", base, "--onnx", "--output", "run") == 0
    assert f"using {model.relative_to(tmp_path)}" in capsys.readouterr().err
    assert source("run") == ("mine", "mine")


def write_nothing(model: object, network: object, path: Path, precision: str) -> Difference:
    path.write_bytes(b"")
    return Difference(path.name, 0.0, 1.0)


def test_a_model_for_both_has_one_file_and_a_base_model_its_own(base, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write", write_nothing)
    whole = AdapterInfo(
        base="scratch",
        base_hash="0",
        time_origin="official",
        steps=1000,
        size=(SIZE, SIZE),
        unconditional=True,
        learned_variance=False,
    )
    facts = {}
    for name, info in (("both", whole), ("base", None)):
        (tmp_path / name).mkdir()
        (difference,) = export_onnx(load_model(base, info=info), tmp_path / name, name=name, source=name)
        settings = json.loads((tmp_path / name / "runtime.json").read_text())
        assert (tmp_path / name / difference.file).exists()
        assert ("--method repaint" in (tmp_path / name / "README.md").read_text()) == (name == "base")
        files = {role: entry["file"] for role, entry in settings["networks"].items()}
        facts[name] = (files, settings["time_origin"], settings["learned_variance"], settings["base_learned_variance"])
    assert facts == {
        "both": ({"rad": "rad.onnx", "base": "rad.onnx"}, "official", False, False),
        "base": ({"base": "base.onnx"}, "adm", False, True),
    }


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--onnx", "x", "--output", "y"], "both name the folder"),
        (["--onnx"], "the output is missing: give --output FOLDER"),
        (["--onnx", "x", "--merge"], "--onnx merges the adapter itself"),
        (["--onnx", "x", "--half"], "--precision fp16"),
        (["--output", "x", "--half", "--precision", "fp16"], "--precision is for ONNX files"),
        (["--output", "x", "--half", "--base_weights"], "--base_weights is for ONNX files"),
        (["--onnx", "x", "--precision", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_options_that_exclude_each_other(adapter, words, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert onnx_export(adapter, *words) == 2
    assert error in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported(base, tmp_path, capsys, monkeypatch):
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "runtime.json").write_text("{}")
    assert onnx_export(exported, "--onnx", tmp_path / "x") == 2
    assert "exported holds ONNX files, which PyTorch does not read" in capsys.readouterr().err
    latent = tiny_ldm(tmp_path / "latent")
    assert onnx_export(latent, "--onnx", tmp_path / "x") == 2
    assert "latent is a model of kind 'latent'; --onnx is for pixel models" in capsys.readouterr().err
    stable = tmp_path / "stable"
    stable.mkdir()
    AdapterInfo(base=str(base), base_hash="0", time_origin="adm", steps=1000, size=(SIZE, SIZE), kind="stable").write(
        stable
    )
    (stable / "adapter_config.json").write_text("{}")
    assert onnx_export(stable, "--onnx", tmp_path / "x") == 2
    assert "stable is a model of kind 'stable'; --onnx is for pixel models" in capsys.readouterr().err
    assert onnx_export(base, "--onnx", tmp_path / "x", "--base_weights") == 2
    assert "base is a base model, whose weights are exported anyway" in capsys.readouterr().err
    classes = small_unet(size=SIZE)
    classes = type(classes)(**{**classes.config, "num_class_embeds": 4})
    save_base(tmp_path / "classes", classes, betas=linear_betas(), half=False)
    assert onnx_export(tmp_path / "classes", "--onnx", tmp_path / "x") == 2
    assert "without classes" in capsys.readouterr().err
    monkeypatch.setattr(export, "LARGEST", 1000)
    assert onnx_export(base, "--onnx", tmp_path / "x") == 2
    assert "an ONNX file holds less than 2 GiB" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
