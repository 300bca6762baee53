"""Pipeline folders: files fetched for a hub id, shards, no connection, no pickled code, and bad settings."""

import json
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from rad.inpainting.inpainter import Inpainter
from rad.models.hub.download import SETTINGS
from rad.models.load import load_model
from rad.models.text_to_image.folders import find_pipeline, load_encoder, load_network, read_config
from tests.cli.test_security import KINDS, MARKER, not_executed, one_line  # noqa: F401  (a fixture for every test here)
from tests.conftest import box_hole, random_image
from tests.pipelines import tiny_ldm, tiny_sd3

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return tiny_sd3(tmp_path_factory.mktemp("sd3") / "sd3", t5=True)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    return tiny_ldm(tmp_path_factory.mktemp("ldm") / "ldm")


def copied(folder, name="copy"):
    return Path(shutil.copytree(folder, name))


def change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_the_pipeline_index_is_read(sd3, ldm, base):
    found = find_pipeline(sd3)
    assert found is not None
    assert (found.kind, found.revision) == ("StableDiffusion3Pipeline", None)
    assert found.parts["transformer"] == "SD3Transformer2DModel"
    assert found.parts["text_encoder_3"] == "T5EncoderModel"
    other = find_pipeline(ldm)
    assert other is not None
    assert set(other.parts) == {"vqvae", "unet", "scheduler"}
    plain = find_pipeline(base)
    assert plain is not None
    assert (plain.kind, plain.parts) == ("DDPMPipeline", {"scheduler": "DDPMScheduler", "unet": "UNet2DModel"})
    assert find_pipeline(base / "unet") is None
    assert find_pipeline("nowhere") is None
    with pytest.warns(UserWarning, match="revision='main' is unused"):
        assert find_pipeline(ldm, "main") == other


def test_code_in_an_index_does_not_run(ldm):
    folder = copied(ldm)
    change(folder / "model_index.json", _class_name=["evil", "EvilPipeline"], unet=["evil", "UNet2DModel"])
    assert Inpainter.from_pretrained(folder).model.kind == "latent", "names are compared, and never imported"
    change(folder / "model_index.json", **{"../x": ["diffusers", "VQModel"], "y": [1, 2], "z": 3})
    found = find_pipeline(folder)
    assert found is not None
    assert set(found.parts) == {"vqvae", "unet", "scheduler"}
    (folder / "model_index.json").write_text("{")
    assert "not valid JSON" in one_line(Inpainter.from_pretrained, folder)


def test_local_folders_need_no_connection(sd3, ldm, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for folder in (sd3, ldm):
        image, hole = random_image(16, 16), box_hole(16, 16, 3, 3, 9, 9)
        assert Inpainter.from_pretrained(folder)(image, hole, method="replacement", steps=1).nfe == 1


@pytest.mark.parametrize("kind", ["sd3", "ldm"])
def test_only_needed_files_of_a_hub_id_are_fetched(kind, sd3, ldm, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder, calls = copied({"sd3": sd3, "ldm": ldm}[kind], commit), []

    def fetch(name, *, revision, allow_patterns):
        calls.append(allow_patterns)
        assert (name, revision) == ("someone/model", None) or (name, revision) == ("someone/model", commit)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    model = Inpainter.from_pretrained("someone/model").model
    assert model.source == "someone/model"
    assert calls[:2] == [SETTINGS, ["model_index.json"]]
    wanted = [pattern for patterns in calls for pattern in patterns]
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    matched = {path for path in there if any(Path(path).match(pattern) for pattern in wanted)}
    assert matched == there
    assert not any(Path(name).match(pattern) for name in UNWANTED for pattern in wanted)


UNWANTED = (
    "README.md",
    "evil.py",
    "transformer/evil.py",
    "text_encoder/model.bin",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "sd3_medium.safetensors",
)


def test_weights_in_several_files(sd3):
    part = copied(sd3) / "transformer"
    whole = load_network(SD3Transformer2DModel, part, read_config(part, ("SD3Transformer2DModel",)))
    state = load_file(part / WEIGHTS)
    (part / WEIGHTS).unlink()
    names, shards = sorted(state), {}
    for number in range(2):
        file = f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in names[number::2]}, part / file)
        shards |= dict.fromkeys(names[number::2], file)
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))
    config = read_config(part, ("SD3Transformer2DModel",))
    cut = load_network(SD3Transformer2DModel, part, config)
    assert all(torch.equal(cut.state_dict()[name], value) for name, value in whole.state_dict().items())
    assert not any(parameter.requires_grad for parameter in cut.parameters())
    half = load_network(SD3Transformer2DModel, part, config, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    (part / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-00002\.safetensors is missing, of 2 files"):
        load_network(SD3Transformer2DModel, part, config)
    outside = {name: f"../../{file}" for name, file in shards.items()}
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": outside}))
    assert "is missing" in one_line(load_network, SD3Transformer2DModel, part, config), "no file of another folder"


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3"])
def test_half_precision_in_several_files(sd3, part):
    folder = copied(sd3)
    stem = "diffusion_pytorch_model" if part == "transformer" else "model"
    weights = folder / part / f"{stem}.safetensors"
    state, shards = load_file(weights), {}
    weights.unlink()
    for number in range(2):
        file = f"{stem}.fp16-0000{number + 1}-of-00002.safetensors"
        names = sorted(state)[number::2]
        save_file({name: state[name].half() for name in names}, folder / part / file, metadata={"format": "pt"})
        shards |= dict.fromkeys(names, file)
    (folder / part / f"{stem}.safetensors.index.fp16.json").write_text(
        json.dumps({"metadata": {}, "weight_map": shards})
    )
    model = load_model(folder)
    loaded = model.network if part == "transformer" else model.text.encoders[2]
    values = loaded.state_dict()
    assert all(torch.equal(values[name], state[name].half().float()) for name in state)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_3", "tokenizer_2", "scheduler"])
def test_a_missing_part_is_named_before_weights_are_read(sd3, part, monkeypatch):
    folder = copied(sd3)
    shutil.rmtree(folder / part)
    monkeypatch.setattr("rad.models.text_to_image.folders.read_weights", lambda path: pytest.fail(f"reads {path}"))
    with pytest.raises(FileNotFoundError, match=rf"no .*{part}.*: fetch the whole pipeline folder again"):
        load_model(folder)


def test_settings_without_effect_in_published_files_are_ignored(sd3):
    part = copied(sd3) / "transformer"
    kind = SD3Transformer2DModel
    averaged = {"decay": 0.9999, "inv_gamma": 1.0, "optimization_step": 37000, "use_ema_warmup": False}
    change(part / "config.json", **averaged)
    network = load_network(kind, part, read_config(part, (kind.__name__,)))
    assert "decay" not in network.config
    change(part / "config.json", zero_cond_t=True)
    with pytest.raises(ValueError, match=r"settings unknown to SD3Transformer2DModel \('zero_cond_t'\)"):
        load_network(kind, part, read_config(part, (kind.__name__,)))


@pytest.mark.spread(4)
@KINDS
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_3"])
def test_pickled_weights_are_not_run(sd3, content, part):
    folder = copied(sd3)
    place = folder / part
    stem = "diffusion_pytorch_model" if part in ("transformer", "vae") else "model"
    for name in (f"{stem}.bin", "pytorch_model.bin"):
        (place / name).write_bytes(content())
    Inpainter.from_pretrained(folder)
    weights = place / f"{stem}.safetensors"
    weights.write_bytes(content())
    assert part in one_line(Inpainter.from_pretrained, folder)
    weights.unlink()
    assert part in one_line(Inpainter.from_pretrained, folder)


def test_settings_that_would_fetch_or_import_something_are_dropped(sd3):
    from transformers import CLIPTextModelWithProjection

    part = copied(sd3) / "text_encoder"
    change(
        part / "config.json",
        auto_map={"AutoModel": "evil.Evil"},
        attn_implementation="someone/kernel",
        _attn_implementation="someone/kernel",
    )
    encoder = load_encoder(CLIPTextModelWithProjection, part)
    assert type(encoder) is CLIPTextModelWithProjection
    assert "someone" not in str(encoder.config._attn_implementation)
    assert not Path(MARKER).exists()


def test_code_of_a_tokenizer_does_not_run(sd3):
    folder = copied(sd3)
    change(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    (folder / "tokenizer" / "evil.py").write_text(f"import os\nos.mkdir({MARKER!r})\nclass Evil: pass\n")
    load_model(folder)
    assert not Path(MARKER).exists()
