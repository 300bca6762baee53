"""`rad sample` with a method that breaks on one image: the others are written, no black hole is."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.workers import _run
from rad.errors import NotFiniteError
from rad.methods import METHODS
from rad.methods.replacement import Replacement
from tests.conftest import SIZE


class BreaksOnDark(Replacement):
    """Guidance that is infinite for dark images."""

    def after_step(self, state, denoised, x_next):
        dark = state.task.known.mean((1, 2, 3), keepdim=True) < -0.3
        return torch.where(dark, x_next / 0, super().after_step(state, denoised, x_next))


@pytest.mark.parametrize("report", [False, True])
def test_one_image_fails_and_the_others_are_written(adapter, tmp_path, monkeypatch, capsys, report):
    monkeypatch.setitem(METHODS, "breaks", BreaksOnDark)
    (tmp_path / "in").mkdir()
    for name, grey in (("a", 200), ("b", 5), ("c", 220)):
        Image.fromarray(np.full((SIZE, SIZE, 3), grey, np.uint8)).save(tmp_path / "in" / f"{name}.png")
    words = ["--checkpoint", adapter, "--image", tmp_path / "in", "--mask", "box", *(["half"] if report else [])]
    words += ["--method", "breaks", "--steps", "2", "--batch_size", "1", "--output", tmp_path / "out"]
    assert cli.sample([str(word) for word in words]) == 3
    assert {path.name for path in (tmp_path / "out").rglob("[abc].png")} == {"a.png", "c.png"}
    assert not list((tmp_path / "out").rglob("b*.png"))
    message = capsys.readouterr().err
    assert "b.png: x is not finite at network call 2 of 2" in message
    assert "1 of 3 images failed" in message
    assert "Traceback" not in message


def test_the_error_of_a_worker_process_stays_one_of_its_images():
    def task():
        raise NotFiniteError("broken", [0], ["a.png"])

    with pytest.raises(NotFiniteError, match=r"^a\.png: broken$") as caught:
        _run(task)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), NotFiniteError)
