"""Files from strangers: pickled code never runs, and a refusal is one line."""

import ast
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rad.cli import main as cli
from rad.evaluation.features import feature_net, inception, lpips
from rad.inpainting.inpainter import Inpainter
from rad.models.base import load_base
from tests.conftest import SIZE, random_image

PACKAGE = Path(__file__).resolve().parents[2] / "rad"
MARKER = "executed"


class Evil:
    """Unpickled, it makes the folder `executed`."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


def zipped() -> bytes:
    """As torch.save writes today."""
    stream = io.BytesIO()
    torch.save({"weight": Evil()}, stream)
    return stream.getvalue()


def legacy() -> bytes:
    """As torch.save wrote before 1.6."""
    stream = io.BytesIO()
    torch.save({"weight": Evil()}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def plain() -> bytes:
    return pickle.dumps({"weight": Evil()})


KINDS = pytest.mark.parametrize("content", [zipped, legacy, plain])


@pytest.fixture(autouse=True)
def not_executed(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    yield
    assert not Path(MARKER).exists(), "pickled code was run"


def one_line(call, *arguments, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1, str(caught.value)
    return str(caught.value)


def copied(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, name))


@KINDS
def test_the_pickles_would_run_if_they_were_let(content):
    stream = io.BytesIO(content())
    if content is plain:
        pickle.load(stream)
    else:
        torch.load(stream, weights_only=False)
    assert Path(MARKER).is_dir()
    Path(MARKER).rmdir()


@KINDS
def test_base_file(content):
    Path("evil.pt").write_bytes(content())
    assert "evil.pt" in one_line(load_base, "evil.pt")
    assert "evil.pt" in one_line(Inpainter.from_pretrained, "evil.pt")


@KINDS
def test_base_folder(content, base):
    folder = copied(base, "base")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(content())
    assert load_base(folder).hash == load_base(base).hash, "safetensors go first"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    assert ".bin" in one_line(load_base, folder)
    weights.write_bytes(content())
    assert ".safetensors" in one_line(load_base, folder)


@KINDS
def test_adapter_folder(content, adapter, base):
    folder = copied(adapter, "adapter")
    (folder / "adapter_model.bin").write_bytes(content())
    Inpainter.from_pretrained(folder, base=base)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(content())
    assert "adapter_model.safetensors is corrupt" in one_line(Inpainter.from_pretrained, folder, base=base)
    weights.unlink()
    assert "adapter_model.safetensors is missing" in one_line(Inpainter.from_pretrained, folder, base=base)


def test_foreign_adapter_settings_are_refused(adapter, base):
    """peft takes names of modules to import, and sizes of any memory, from adapter_config.json."""
    folder = copied(adapter, "adapter")
    path = folder / "adapter_config.json"
    own = json.loads(path.read_text())
    for changes in (
        {"megatron_config": {"tensor_model_parallel_size": 2}, "megatron_core": "evil"},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
        {"r": 10**9},
        {"rank_pattern": {"conv1": 10**9}},
        {"target_modules": "(.*)*x"},
        {"lora_alpha": "16"},
        {"modules_to_save": ["no such layer"]},
        {"not a setting of peft": 1},
    ):
        path.write_text(json.dumps({**own, **changes}))
        assert str(folder) in one_line(Inpainter.from_pretrained, folder, base=base)
    path.write_text(json.dumps({**own, "a setting of a later peft": False}))
    Inpainter.from_pretrained(folder, base=base)


@pytest.fixture
def config(base) -> str:
    """The name of a configuration of one step."""
    Path("in").mkdir()
    for number in range(2):
        random_image(SIZE, SIZE, seed=number).save(f"in/{number}.png")
    content = {
        "model": {"base": str(base), "lora": {"rank": 2}},
        "data": {"path": "in", "val_count": 0, "size": SIZE, "batch_size": 2},
        "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False, "logger": False},
    }
    Path("c.yaml").write_text(yaml.safe_dump(content))
    return "c.yaml"


def refused(capsys, *arguments: str) -> str:
    assert cli.train(arguments) == 2
    err = capsys.readouterr().err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in err
    return err


@KINDS
def test_checkpoint_to_resume_from(content, config, capsys):
    Path("evil.ckpt").write_bytes(content())
    told = refused(capsys, "--config", config, "--ckpt_path", "evil.ckpt")
    assert "evil.ckpt is damaged" in told
    assert "more than weights and numbers" in told
    assert "evil.ckpt" in one_line(Inpainter.from_pretrained, "evil.ckpt")


def test_checkpoints_of_other_programs_are_recognised(config, capsys, base):
    torch.save({"state_dict": {}}, "other.ckpt")
    assert "not written by rad" in refused(capsys, "--config", config, "--ckpt_path", "other.ckpt")
    torch.save(load_file(base / "unet" / "diffusion_pytorch_model.safetensors"), "weights.pt")
    assert "not written by rad" in refused(capsys, "--config", config, "--ckpt_path", "weights.pt")


def test_yaml_makes_no_objects(config, capsys):
    Path("evil.yaml").write_text(f"model: !!python/object/apply:os.mkdir [{MARKER}]\n")
    refused(capsys, "--config", "evil.yaml")
    Path("evil.yaml").write_text(f"data: {{masks: {{class_path: os.mkdir, init_args: {{path: {MARKER}}}}}}}\n")
    refused(capsys, "--config", config, "--config", "evil.yaml")


@KINDS
def test_feature_network(content):
    settings = {"name": "evil", "format": "torchscript", "size": 64}
    for name, given in (("evil.pt", settings), ("evil.safetensors", None)):
        Path(name).write_bytes(content())
        given = given or {
            **settings,
            "format": "safetensors",
            "architecture": {"class": "ResNet", "block": "BasicBlock", "layers": [1, 1, 1, 1], "num_classes": 2},
            "features": "avgpool",
            "distance": [],
        }
        Path(name).with_suffix(".json").write_text(json.dumps(given))
        assert f"cannot read {name}" in one_line(feature_net, name)


@KINDS
def test_caches_of_torchvision_and_torch_fidelity(content, monkeypatch):
    """Both libraries unpickle their caches without a thought."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(Path.cwd()))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    Path("checkpoints").mkdir()
    Path("checkpoints/squeezenet1_1-b8a52dc0.pth").write_bytes(content())
    assert "squeezenet1_1-b8a52dc0.pth" in one_line(lpips, "squeeze")
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    name = source.URL_INCEPTION_V3.rsplit("/", 1)[-1]
    Path("checkpoints", name).write_bytes(content())
    assert name in one_line(inception)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_every_call_that_could_unpickle_forbids_it():
    """Of a file: torch.load with weights_only=True, and np.load without pickles, and nothing of pickle,
    marshal, shelve or joblib."""
    seen = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = ast.unparse(node.func)
            if name == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{path}:{node.lineno}"
                seen.append(path.name)
            if name == "np.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("allow_pickle") == "False", f"{path}:{node.lineno}"
                continue
            module = name.partition(".")[0]
            loads = node.func.attr in ("load", "loads", "open", "unsafe_load", "full_load")
            assert not (loads and module in ("pickle", "marshal", "shelve", "joblib", "np", "numpy", "yaml")), name
    assert {"weights.py", "resume.py"} <= set(seen)
