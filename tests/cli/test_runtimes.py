"""`rad sample --runtime`: the same files by ONNX Runtime, without torch; what it cannot do is one error."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.request import read_request
from rad.cli.sample.runtimes.onnx import WITHOUT_EFFECT
from rad.diffusion.schedules import linear_betas
from rad.evaluation.run_log import read_run
from rad.runtime.inpainter import OnnxInpainter
from tests.conftest import SIZE, random_image

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder for ONNX Runtime, with networks that scale x by its noise levels."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    folder.mkdir()
    names = ("sample", "BCHW"), ("timesteps", "BK"), ("levels", "BKHW")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in names]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, list("BCHW"))
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    networks = {}
    for name, scale in (("rad", 9e-4), ("base", 8e-4)):
        nodes = [
            helper.make_node("Unsqueeze", ["timesteps", "axes"], ["times"]),
            helper.make_node("Mul", ["times", "levels"], ["maps"]),
            helper.make_node("ReduceSum", ["maps", "channel"], ["map"]),
            helper.make_node("Mul", ["map", "scale"], ["share"]),
            helper.make_node("Mul", ["sample", "share"], ["output"]),
        ]
        constants = [
            axes,
            helper.make_tensor("channel", TensorProto.INT64, [1], [1]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
        ]
        graph = helper.make_graph(nodes, name, inputs, [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        content = model.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(content)
        networks[name] = {"file": f"{name}.onnx", "sha256": hashlib.sha256(content).hexdigest(), "output_channels": 3}
    settings = {
        **{"format": 1, "name": "tiny", "kind": "pixel", "size": [SIZE, SIZE], "side_multiple": 4, "channels": 3},
        **{"betas": linear_betas().tolist(), "prediction": "epsilon", "clip": True, "time_origin": "adm"},
        **{"learned_variance": False, "base_learned_variance": False, "process": "region_aware", "precision": "fp32"},
        **{"source": {}, "rad_version": "0", "networks": networks},
    }
    (folder / "runtime.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def sample(tmp_path, monkeypatch, capsys):
    """`rad sample` in a folder with in/a.png, in/b.png and mask.png: (exit code, lines of stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    random_image(SIZE, SIZE, seed=1).save("in/a.png")
    random_image(2 * SIZE, SIZE, seed=2).save("in/b.png")
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[4:11, 3:12] = 255
    Image.fromarray(hole).save("mask.png")

    def call(*words: str, **options: object) -> tuple[int, list[str], str]:
        named = {"image": "in/a.png", "mask": "mask.png", "output": "out.png", **options}
        given = [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]
        code = cli.sample([*given, *words])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return call


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_an_exported_folder_is_filled_by_onnx_runtime(sample, exported):
    code, out, err = sample(
        "--steps", "3", "--num_samples", "2", "--raw", "--save_mask", checkpoint=exported, output="out"
    )
    assert code == 0, err
    assert out == ["out/a-0.png", "out/a-1.png"]
    assert "rad with 3 steps (dpm++2m, logsnr): 6 network calls of a 16x16 image on cpu" in err
    expected = OnnxInpainter.from_pretrained(exported)("in/a.png", "mask.png", steps=3, num_samples=2, names="a.png")
    known = pixels("mask.png") == 0
    for number in range(2):
        result = pixels(f"out/a-{number}.png")
        assert np.array_equal(result, pixels_of(expected.images[number]))
        assert np.array_equal(result[known], pixels("in/a.png")[known])
        assert np.array_equal(pixels(f"out/a-{number}-raw.png"), pixels_of(expected.raw[number]))
    assert (pixels("out/a-0.png") != pixels("out/a-1.png")).any()
    assert np.array_equal(pixels("out/a-mask.png"), pixels("mask.png"))
    request = read_request(Path("out/a-0.png"))
    assert request is not None
    assert (request["runtime"], request["precision"], request["method"]) == ("onnx", "fp32", "rad")


def test_results_are_finished_until_the_networks_change(sample, exported, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(exported, changed)
    assert sample("--steps", "2", checkpoint=changed)[0] == 0
    before = Path("out.png").read_bytes()
    code, out, err = sample("--steps", "2", "--runtime", "onnx", checkpoint=changed)
    assert (code, out) == (0, [])
    assert "skipped 1 of 1 image, finished before" in err
    settings = json.loads((changed / "runtime.json").read_text())
    settings["networks"]["rad"] = settings["networks"]["base"]
    (changed / "runtime.json").write_text(json.dumps(settings))
    code, _, err = sample("--steps", "2", checkpoint=changed)
    assert code == 2
    assert "out.png is a result of another request (another model)" in err
    assert Path("out.png").read_bytes() == before
    (changed / "rad.onnx").write_bytes(b"")
    shutil.copy(exported / "runtime.json", changed)
    assert "is damaged" in sample("--steps", "2", checkpoint=changed)[2]


@pytest.mark.slow  # starts processes
def test_processes_shards_and_batches_give_the_same_files(sample, exported):
    words = ["--method", "rad@2", "repaint@3", "--set", "repaint.jump_length=1", "--size_policy", "crop"]
    assert sample(*words, checkpoint=exported, image="in", mask="box", output="one")[0] == 0
    assert sample(*words, checkpoint=exported, image="in", mask="box", output="two", devices=2, batch_size=1)[0] == 0
    for part in ("1/2", "2/2"):
        assert (
            sample(*words, checkpoint=exported, image="in", mask="box", output="three", shard=part, batch_size=1)[0]
            == 0
        )
    files = sorted(path.relative_to("one") for path in Path("one").rglob("*.png"))
    assert len(files) == 5
    for file in files:
        assert Path("two", file).read_bytes() == Path("one", file).read_bytes()
        assert file.name == "methods.png" or Path("three", file).read_bytes() == Path("one", file).read_bytes()


def test_a_budget_chooses_the_steps(sample, exported):
    err = sample("--method", "rad@7nfe", "repaint@30nfe", checkpoint=exported, output="out")[2]
    assert "rad@7nfe: 7 steps for a budget of 7: 7 network calls, 0 VJP" in err
    assert "repaint@30nfe: 10 steps for a budget of 30: 10 network calls, 0 VJP; 11 steps would cost 101" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method ddnm", "method 'ddnm' is not available with --runtime onnx; {} has rad, repaint"),
        ("--method radd", "method 'radd' is not known (did you mean rad?)"),
        ("--set rad.depth=1", "method rad has no setting 'depth'; it has none"),
        ("--method repaint --set repaint.jump_length=x", "repaint.jump_length is 'x'; expected a whole number"),
        ("--method repaint --set repaint.resamplings=0", "resamplings is 0; allowed are 1 or more"),
        ("--method repaint,solver=dpm++2m", "repaint,solver=dpm++2m: solver 'dpm++2m' extrapolates"),
        ("--method repaint@1001", "repaint@1001: steps is 1001; allowed are 1 to 1000"),
        ("--device cuda", "--device cuda: --runtime onnx computes on the CPU"),
        ("--precision bf16 --prompt cat", "--precision, --prompt has no effect with --runtime onnx"),
        ("--runtime torch", "--runtime torch cannot read {}, a folder for ONNX Runtime"),
    ],
)
def test_what_onnx_runtime_cannot_do_is_one_error(sample, exported, words, message):
    code, out, err = sample(*words.split(), checkpoint=exported)
    assert (code, out) == (2, [])
    assert message.format(exported) in err
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("kept", "method", "advice"),
    [
        ("base", "rad", "has repaint: it was exported from a base model"),
        ("rad", "repaint", "has rad: export the checkpoint again with --base_weights"),
        ("rad", "ddnm", "has rad: other methods need the checkpoint"),
    ],
)
def test_advice_on_a_missing_method_depends_on_the_folder(sample, exported, tmp_path, kept, method, advice):
    folder = shutil.copytree(exported, tmp_path / "part")
    settings = json.loads((folder / "runtime.json").read_text())
    settings["networks"] = {kept: settings["networks"][kept], "of a later version": 1}
    (folder / "runtime.json").write_text(json.dumps(settings))
    code, _, err = sample("--method", method, checkpoint=folder)
    assert code == 2
    assert advice in err
    assert sample("--method", "rad" if kept == "rad" else "repaint", "--steps", "1", checkpoint=folder)[0] == 0


def test_onnx_runtime_needs_an_exported_folder(sample, adapter):
    code, _, err = sample("--runtime", "onnx", checkpoint=adapter)
    assert code == 2
    assert f"export {adapter} --onnx OUT`, then give --checkpoint OUT" in err


def test_options_without_effect_are_options():
    assert set(WITHOUT_EFFECT) <= {field.name for field in dataclasses.fields(SampleOptions)}


def test_a_comparison_records_the_runtime(sample, exported, adapter):
    words = ["--mask", "box", "half", "--steps", "2"]
    assert sample(*words, checkpoint=exported, mask=None, output="out")[0] == 0
    run = read_run(Path("out"))
    assert run["options"]["runtime"] == "onnx"
    assert run["model"].keys() == {"checkpoint", "onnx_rad_hash", "onnx_base_hash"}
    assert {"onnxruntime", "threads"} <= run["runs"][0]["environment"].keys()
    code, _, err = sample(*words, "--overwrite", checkpoint=adapter, mask=None, output="out")
    assert code == 2
    assert "holds results of --runtime onnx, this is torch" in err


@pytest.mark.slow
def test_results_of_torch_from_before_the_option_match(sample, adapter):
    words = ["--mask", "box", "half", "--steps", "1"]
    assert sample(*words, checkpoint=adapter, mask=None, output="out")[0] == 0
    path = Path("out/run.json")
    run = json.loads(path.read_text())
    assert run["options"].pop("runtime") == "torch"
    path.write_text(json.dumps(run))
    assert "runtime" not in (read_request(Path("out/box/rad/a.png")) or {})
    assert sample(*words, "--overwrite", "--runtime", "torch", checkpoint=adapter, mask=None, output="out")[0] == 0


def test_no_torch_is_loaded(sample, exported):
    """With masks from files: results, contact sheet, record, preview and outpainting."""
    shutil.copy("mask.png", "other.png")
    common = ["--checkpoint", str(exported), "--image", "in/a.png", "--mask", "mask.png"]
    runs = [
        [*common, "--output", "out", "--method", "rad@2", "repaint@2", "--mask", "other.png"],
        [
            *common,
            "--output",
            "large",
            "--extend",
            "4,0,0,3",
            "--size_policy",
            "crop",
            "--steps",
            "1",
            "--feather",
            "1",
        ],
        [*common, "--output", "shown", "--preview_masks"],
    ]
    program = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'lightning', 'peft'): sys.modules[name] = None\n"
        f"from rad.cli.main import sample\nsys.exit(max(map(sample, {runs})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert {Path(line).name for line in done.stdout.splitlines()} == {"a.png", "methods.png", "a-overlay.png"}
