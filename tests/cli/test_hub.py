"""`rad export` and `rad push`, and models by USER/NAME: against a hub on this machine, and from its cache without one."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from rad.__main__ import main
from rad.inpainting.inpainter import Inpainter
from rad.models.hub.card import Metadata, with_metadata
from rad.models.hub.convert import save_merged
from rad.models.load import load_model
from rad.models.lora import trainable
from rad.training.diffusion import Diffusion
from tests.conftest import SIZE, box_hole, random_image
from tests.hub_server import Hub, serving


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(monkeypatch, str(tmp_path / "cache")) as server:
        yield server


def filled(source, **options) -> np.ndarray:
    inpainter = Inpainter.from_pretrained(source, **options)
    return np.asarray(inpainter(random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 4, 4, 12, 12), steps=3).images[0])


def push(*words: object) -> int:
    return main(["push", *map(str, words)])


@pytest.mark.slow
def test_a_pushed_adapter_is_loaded_with_its_base_and_then_without_a_connection(
    hub: Hub, base, adapter, capsys, monkeypatch
):
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert push(base, "me/base") == 0
    assert push(adapter, "me/rad", "--base", "me/base", "--license", "mit", "--private") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("me/rad")
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before, "the folder is not changed"
    published = hub.models["me/rad"]["main"]
    assert str(base).encode() not in b"".join(content for name, content in published.items() if name != "README.md")
    config = json.loads(published["rad_config.json"])
    assert (config["base"], len(config["base_revision"])) == ("me/base", 40)
    card = published["README.md"].decode()
    assert "base_model: me/base\nlibrary_name: peft\nlicense: mit\npipeline_tag: image-to-image" in card
    assert card.endswith("# A random adapter\n")
    expected = filled(adapter)
    assert np.array_equal(filled("me/rad"), expected)
    assert np.array_equal(filled("me/rad@main", base="me/base@main"), expected)
    cached = {path.name for path in Path("cache").glob("models--me--rad/snapshots/*/*")}
    assert cached == {"adapter_config.json", "adapter_model.safetensors", "rad_config.json"}, (
        "only files that are needed"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert np.array_equal(filled("me/rad"), expected)
    assert not hub.requests
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        filled("me/other")


def test_sampling_training_and_a_local_folder_of_the_same_name(hub: Hub, base, adapter, capsys):
    push(base, "me/base")
    push(adapter, "me/rad", "--base", "me/base")
    random_image(SIZE, SIZE).save("photo.png")
    words = ["--image", "photo.png", "--mask", "box", "--steps", "1", "--seed", "3", "--device", "cpu"]
    assert main(["sample", "--checkpoint", "me/rad@main", *words, "--output", "hub.png"]) == 0
    assert main(["sample", "--checkpoint", str(adapter), *words, "--output", "local.png"]) == 0
    assert np.array_equal(*(np.asarray(Image.open(name)) for name in ("hub.png", "local.png")))
    module = Diffusion(base="me/base", adapter="me/rad", image_size=SIZE)
    module.configure_model()
    stored = load_file(adapter / "adapter_model.safetensors")
    assert sum(weight.numel() for weight in trainable(module).values()) == sum(w.numel() for w in stored.values())
    hub.requests.clear()
    shutil.copytree(adapter, "me/rad")
    assert np.array_equal(filled("me/rad"), filled(adapter))
    assert not hub.requests, "a local folder has precedence"


def test_a_whole_model_on_a_branch(hub: Hub, adapter, capsys):
    assert main(["export", str(adapter), "--output", "merged", "--merge"]) == 0
    assert push("merged", "me/whole", "--revision", "v1") == 0
    assert hub.models["me/whole"]["main"] == {}
    assert json.loads(hub.models["me/whole"]["v1"]["rad_config.json"])["base"] == "base", "no local path"
    assert np.array_equal(filled("me/whole@v1"), filled("merged"))
    with pytest.raises(ValueError, match="check name, revision"):
        filled("me/whole@v2")


def test_a_dry_run_opens_no_connection(hub: Hub, adapter, capsys):
    folder = shutil.copytree(adapter, Path("copy"))
    local = json.loads((folder / "rad_config.json").read_text())["base"]
    (folder / "README.md").write_text(f"- Base: `{local}`, hash `0`.\n")
    assert push(folder, "me/rad", "--base", "me/base", "--dry_run") == 0
    assert not hub.requests
    printed = capsys.readouterr()
    assert printed.out.startswith("---\nbase_model: me/base\n")
    assert "- Base: `me/base`, hash `0`." in printed.out
    assert "  adapter_model.safetensors, " in printed.err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["foreign/name"], "foreign/name: this token may not write there"),
        (["name"], "'name' is no USER/NAME"),
        (["me/a--b"], "'me/a--b' is no USER/NAME"),
        (["me/name", "--base", "me/base"], "is no adapter, so --base me/base has no effect"),
        (["me/name", "--base", "me/nowhere"], "--base me/nowhere is not on the hub"),
        (["me/public", "--private"], "me/public exists and is public"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: Hub, base, capsys, words, error):
    push(base, "me/public")
    push(base, "me/base")
    capsys.readouterr()
    assert push(base, *words) == 2
    printed = capsys.readouterr().err.splitlines()
    assert error in printed[-1]
    assert len(printed) <= 2


def test_errors_of_token_and_connection_are_one_line(hub: Hub, base, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert push(base, "me/base") == 2
    assert "the hub refuses the token" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert push(base, "me/base") == 2
    assert "run `hf auth login`" in capsys.readouterr().err.splitlines()[-1]
    assert not hub.models


def test_a_hub_that_does_not_answer_is_one_line(base, capsys, monkeypatch, tmp_path):
    with serving(monkeypatch, str(tmp_path)):
        pass
    assert push(base, "me/base") == 2
    assert "the hub cannot be reached" in capsys.readouterr().err.splitlines()[-1]


def pickled(folder: Path) -> None:
    torch.save({}, folder / "step=1.ckpt")


def optimised(folder: Path) -> None:
    save_file({"optimizer.state.0.exp_avg": torch.zeros(1)}, folder / "state.safetensors")


def damaged(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"no header")


def with_path(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine\n\nTrained on `/home/me/photos`.\n")


def of_another_format(folder: Path) -> None:
    (folder / "rad_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (pickled, "step=1.ckpt is a pickle"),
        (optimised, "holds optimiser states (optimizer.state.0.exp_avg)"),
        (damaged, "adapter_model.safetensors is damaged"),
        (with_path, "README.md names a path of this machine, '/home/me/photos'"),
        (of_another_format, "rad_config.json has format None"),
    ],
)
def test_what_should_not_be_published_is_refused(adapter, capsys, tmp_path, change, error):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    change(folder)
    assert push(folder, "me/rad", "--base", "me/base", "--dry_run") == 2
    assert error in capsys.readouterr().err


def test_an_adapter_with_a_local_base_and_an_empty_folder_are_refused(adapter, base, capsys, tmp_path):
    assert push(adapter, "me/rad", "--dry_run") == 2
    assert f"publish it with `rad push {base} USER/BASE`" in capsys.readouterr().err
    assert push(tmp_path, "me/rad", "--dry_run") == 2
    assert "is no model" in capsys.readouterr().err


# ---- rad export ------------------------------------------------------------------------------------


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


@pytest.mark.slow
def test_a_merged_model_gives_the_results_of_its_adapter(adapter, tmp_path, capsys):
    for name, half in (("merged", []), ("half", ["--half"])):
        assert export(adapter, "--output", tmp_path / name, "--merge", *half) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
    expected = filled(adapter).astype(int)
    assert np.abs(filled(tmp_path / "merged") - expected).max() <= 1, "a rounded pixel"
    assert np.abs(filled(tmp_path / "half") - expected).max() <= 8
    merged, model = load_model(tmp_path / "merged", info=None), Inpainter.from_pretrained(tmp_path / "merged").model
    assert (model.has_adapter, model.has_base) == (True, False)
    weights = [
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("merged", "half")
    ]
    assert {w.dtype for w in weights[0].values()} == {torch.float32}
    assert {w.dtype for w in weights[1].values()} == {torch.float16}
    assert all(torch.equal(weights[0][name].half(), w) for name, w in weights[1].items())
    with pytest.raises(ValueError, match="trained with a timestep per pixel"):
        merged.network(torch.zeros(1, 3, SIZE, SIZE), 5)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert "# A random adapter" in card


def test_merged_weights_are_those_of_base_and_adapter(adapter, tmp_path):
    model = Inpainter.from_pretrained(adapter, device="cpu").model
    save_merged(model, tmp_path / "merged", name="merged", card=None)
    merged = load_file(tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors")
    expected, plain = (model.sampled_network(adapter=which).state_dict() for which in (True, False))
    assert merged.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in merged.items())
    assert not torch.equal(merged["conv_in.weight"], plain["conv_in.weight"])


@pytest.mark.slow
def test_the_card_of_a_merged_model_names_no_adapter(adapter, tmp_path, capsys):
    copy, text = Path(shutil.copytree(adapter, tmp_path / "step=2")), "# RAD adapter on base\n\n- Base: `base`.\n"
    (copy / "README.md").write_text(
        with_metadata(text, Metadata("pixel", adapter=True, metrics={"val/loss": 0.5}).entries("RAD adapter"))
    )
    assert export(copy, "--output", tmp_path / "mine", "--merge", "--half") == 0
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "# Merged RAD model on base\n\n- Base: `base`.\n" in card
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == "mine"
    assert "RAD adapter" not in card
    (copy / "README.md").unlink()
    assert export(copy, "--output", tmp_path / "bare", "--merge") == 0
    assert "# Merged RAD model on base" in (tmp_path / "bare" / "README.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["export", "me/rad@", "--output", "x", "--half"],
        ["sample", "--checkpoint", "me/rad@", "--image", "photo.png", "--mask", "box", "--output", "out.png"],
        ["push", "ADAPTER", "me/rad", "--base", "me/rad@", "--dry_run"],
        ["push", "ADAPTER", "me/rad", "--base", "me/rad@"],
    ],
)
def test_an_empty_revision_is_refused(hub: Hub, adapter, capsys, words):
    random_image(SIZE, SIZE).save("photo.png")
    assert main([str(adapter) if word == "ADAPTER" else word for word in words]) == 2
    assert "me/rad@ has an empty revision: give a branch, tag or commit" in capsys.readouterr().err
    assert not hub.requests


def test_half_of_an_adapter_and_of_a_base(adapter, base, tmp_path, capsys):
    assert export(adapter, "--output", tmp_path / "adapter", "--half") == 0
    assert not capsys.readouterr().err
    stored, half = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "adapter"))
    assert stored.keys() == half.keys()
    assert all(torch.equal(value.half(), half[name]) for name, value in stored.items())
    assert np.abs(filled(tmp_path / "adapter").astype(int) - filled(adapter)).max() <= 8
    assert export(base, "--output", tmp_path / "base", "--half") == 0
    assert "adapters trained on it need the original" in capsys.readouterr().err
    assert load_model(tmp_path / "base").hash != load_model(base).hash


def test_an_output_is_replaced_only_on_demand_and_only_if_it_is_a_model(adapter, base, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes").touch()
    for words, error in (
        ([], "exists: give another folder, or --overwrite"),
        (["--overwrite"], "is no model folder"),
    ):
        assert export(adapter, "--output", folder, "--half", *words) == 2
        assert error in capsys.readouterr().err
    (folder / "rad_config.json").touch()
    assert export(adapter, "--output", folder, "--half", "--overwrite") == 2
    assert "is no model folder" in capsys.readouterr().err, "it has no weights"
    (folder / "adapter_model.safetensors").touch()
    for foreign in ("notes", "photos/a.png", "unet/deep/config.json"):
        (folder / foreign).parent.mkdir(parents=True, exist_ok=True)
        (folder / foreign).touch()
        assert export(adapter, "--output", folder, "--half", "--overwrite") == 2
        assert f"would delete {folder / foreign}" in capsys.readouterr().err
        (folder / foreign).unlink()
    (folder / "unet" / "config.json").touch()
    assert export(adapter, "--output", folder, "--half", "--overwrite") == 0
    assert (folder / "README.md").read_text()
    copy = Path(shutil.copytree(adapter, tmp_path / "models" / "adapter"))
    for place in (copy, copy.parent):
        assert export(copy, "--output", place, "--half", "--overwrite") == 2
        assert "holds the checkpoint itself" in capsys.readouterr().err
    assert export(copy, "--output", copy / "sub", "--half") == 2
    assert "lies in the folder of the checkpoint" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert export(copy, "--output", tmp_path / "file" / "new", "--half") == 2
    assert (
        f"--output {tmp_path / 'file' / 'new'} cannot be written: {tmp_path / 'file'} takes" in capsys.readouterr().err
    )
    assert export(base, "--output", tmp_path / "new", "--merge") == 2
    assert "has no adapter to merge" in capsys.readouterr().err
    assert export(base, "--output", tmp_path / "new") == 2
    assert "give --merge, --half, or both" in capsys.readouterr().err
    wide = load_file(copy / "adapter_model.safetensors")
    save_file({**wide, next(iter(wide)): torch.full((1,), 1e5)}, copy / "adapter_model.safetensors")
    assert export(copy, "--output", tmp_path / "new", "--half") == 2
    assert "which float16 cannot hold" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_model_of_a_run_that_is_exported_is_reported(adapter, tmp_path, capsys):
    model = shutil.copytree(adapter, tmp_path / "run" / "checkpoints" / "step=2-ema")
    assert export(tmp_path / "run", "--output", tmp_path / "half", "--half") == 0
    assert f"{tmp_path / 'run'}: using {model}" in capsys.readouterr().err
