"""benchmarks/golden.py finds each difference between recorded and new results, and its commands cover all methods."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import golden
from rad.methods import METHODS


def test_changed_missing_and_new_entries_are_listed():
    before = {"same": "1", "other": "2", "gone": "3"}
    after = {"same": "1", "other": "4", "added": "3"}
    assert golden.compare(before, after) == ["changed: other", "missing: gone", "new: added"]
    assert golden.compare(before, dict(before)) == []


def test_pixels_costs_and_tensors_are_hashed_and_seconds_are_not(tmp_path):
    pixels = np.zeros((4, 5, 3), np.uint8)
    weights = {"a": torch.zeros(2), "b": torch.arange(3.0)}

    def write(seconds: float, level: int, compression: int) -> dict[str, str]:
        pixels[0, 0, 0] = level
        Image.fromarray(pixels).save(tmp_path / "filled.png", compress_level=compression)
        (tmp_path / "costs.csv").write_text(f"image,nfe,vjp,seconds,peak_mib\nfilled,4,0,{seconds},7\n")
        save_file(weights, tmp_path / "model.safetensors")
        return golden.collect(tmp_path)

    before = write(1.0, 0, 0)
    assert len(before) == 4
    assert golden.compare(before, write(2.0, 0, 9)) == []
    assert golden.compare(before, write(2.0, 1, 9)) == [f"changed: {tmp_path.name}/filled.png: pixels"]


def test_rename_changes_only_names_and_the_table_of_renames_accepts_it(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_file({"old.weight": torch.arange(3.0), "z": torch.zeros(2)}, path)
    before = golden.collect(tmp_path)
    save_file({"z_new.weight": torch.arange(3.0), "z": torch.zeros(2)}, path)
    assert golden.compare(before, golden.collect(tmp_path)) == [f"changed: {tmp_path.name}/model.safetensors: names"]
    monkeypatch.setitem(golden.RENAMES, "z_new", "old")
    assert golden.compare(before, golden.collect(tmp_path)) == []


def test_logged_losses_are_hashed_and_durations_are_not(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for tag in ("train/loss", "inpainting/seconds", "train/images_per_second"):
            writer.add_scalar(tag, 1.0, 0)
    assert list(golden.collect(tmp_path)) == [f"{tmp_path.name}: train/loss"]


@pytest.mark.parametrize("setting", ["steps", "eta"])
def test_settings_are_hashed_by_method(tmp_path, setting):
    settings = {"ddnm": {"steps": 4, "eta": 0.85}, "dps": {"steps": 4, "eta": 1.0}}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings, "runs": ["today"]}))
    before = golden.collect(tmp_path)
    settings["dps"][setting] = 7
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings, "runs": ["tomorrow"]}))
    assert golden.compare(before, golden.collect(tmp_path)) == [f"changed: {tmp_path.name}/run.json: settings of dps"]


def test_every_method_is_run():
    words = {word.split("@")[0] for commands in golden.read_commands().values() for line in commands for word in line}
    assert words >= set(METHODS) - {"inpainting_model", "lama"}  # other models, which are not shipped
