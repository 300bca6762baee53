"""`rad export` and `rad push`, and models by USER/NAME: against a hub on this machine, and from its cache without one."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rad.__main__ import main
from rad.inpainting.inpainter import Inpainter
from rad.models.hub.card import with_metadata
from rad.models.load import load_model
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
    assert cached == {"adapter_config.json", "adapter_model.safetensors", "rad_config.json"}, "only files that are needed"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert np.array_equal(filled("me/rad"), expected)
    assert not hub.requests
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        filled("me/other")
