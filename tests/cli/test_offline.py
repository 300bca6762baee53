"""Local paths need no connection: base, adapter, training and sampling work while every connection fails."""

import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml

from rad.cli import main as cli
from rad.cli.train.run import fit
from rad.inpainting.inpainter import Inpainter
from rad.models.base import load_base
from tests.conftest import SIZE, box_hole, random_image


@pytest.fixture
def attempts(monkeypatch, tmp_path):
    """The connections that were tried; every one of them fails."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("no network in this test")

    for place, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket.socket, "sendto"),
        (socket, "getaddrinfo"),
        (socket, "gethostbyname"),
    ):
        monkeypatch.setattr(place, name, refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    return tried


def test_local_models_train_and_sample_without_a_connection(attempts, base, adapter):
    assert load_base(base).source == str(base)
    Path("in").mkdir()
    for number in range(2):
        random_image(SIZE, SIZE, seed=number).save(f"in/{number}.png")
    content = {
        "model": {"base": str(base), "lora": {"rank": 2}},
        "data": {"path": "in", "val_count": 0, "size": SIZE, "batch_size": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "rad.training.Checkpoint"}],
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(content))
    assert fit(["--config", "c.yaml", "--name", "run"]) == 0
    image, hole = random_image(SIZE, SIZE, seed=5), box_hole(SIZE, SIZE, 4, 4, 12, 12)
    for folder in (adapter, "runs/run/checkpoints/step=1"):  # both name their base by its path
        result = np.asarray(Inpainter.from_pretrained(folder)(image, hole, steps=1).images[0])
        assert (result != np.asarray(image)).any()
    assert attempts == []


def test_a_hub_id_opens_a_connection_and_a_failure_gives_one_line(attempts, capsys):
    assert (
        cli.sample(["--checkpoint", "someone/base", "--image", str(image()), "--mask", "box", "--output", "out"]) == 2
    )
    err = capsys.readouterr().err
    assert attempts, "the fixture sees connections"
    assert [line for line in err.splitlines() if "error:" in line] == [err.splitlines()[-1]]
    assert "someone/base" in err
    assert "could not be fetched" in err
    assert "Traceback" not in err


def test_the_offline_error_names_the_switch(attempts, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert (
        cli.sample(["--checkpoint", "someone/base", "--image", str(image()), "--mask", "box", "--output", "out"]) == 2
    )
    err = capsys.readouterr().err
    assert attempts == []
    assert len(err.splitlines()) == 1
    for part in ("error: 'someone/base'", "HF_HUB_OFFLINE is set", str(tmp_path / "cache"), "local folder"):
        assert part in err


def image() -> Path:
    random_image(SIZE, SIZE).save("image.png")
    return Path("image.png")
