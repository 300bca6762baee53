"""The model of a training run: the newest step, averaged weights first; and the error if there is none."""

from pathlib import Path

import pytest

from rad.inpainting import runs
from rad.inpainting.runs import find_trained


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    for name in ("step=9", "step=10", "step=10-ema", "step=10-slow", "step=100", ".step=200.tmp"):
        path = folder / "checkpoints" / name
        path.mkdir(parents=True)
        (path / "rad_config.json").touch()
    (folder / "checkpoints" / "step=300").mkdir()  # no model
    (folder / "config.yaml").touch()
    return folder


def test_a_run_folder_stands_for_its_newest_model_by_number(run: Path):
    newest = run / "checkpoints" / "step=100"
    assert find_trained(run) == find_trained(run / "checkpoints") == find_trained(newest) == newest
    (newest / "rad_config.json").unlink()
    assert find_trained(run) == run / "checkpoints" / "step=10-ema"
    (run / "checkpoints" / "step=10-ema" / "rad_config.json").unlink()
    assert find_trained(run) == run / "checkpoints" / "step=10-slow"


def test_a_checkpoint_stands_for_the_model_of_its_step(run: Path):
    folder = run / "checkpoints"
    (folder / "step=10.ckpt").touch()
    (folder / "last.ckpt").symlink_to("step=10.ckpt")
    assert find_trained(folder / "step=10.ckpt") == find_trained(folder / "last.ckpt") == folder / "step=10-ema"
    assert find_trained(folder / "step=9.ckpt") == folder / "step=9"
    with pytest.raises(FileNotFoundError, match=r"does not exist; models beside it: step=9, step=10-ema, step=100"):
        find_trained(folder / "step=11.ckpt")
    (folder / "step=11.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"step=11\.ckpt resumes training; to sample, the folder step=11-ema"):
        find_trained(folder / "step=11.ckpt")


def test_a_run_without_a_model_is_named_and_other_paths_stay(tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match="training run without a model"):
        find_trained(tmp_path / "run")
    for name in runs.MODEL_FILES:
        (tmp_path / name / name).mkdir(parents=True)
        assert find_trained(tmp_path / name) == tmp_path / name
    for other in (tmp_path / "nothing", tmp_path, Path("google/ddpm-celebahq-256"), tmp_path / "adm.pt"):
        assert find_trained(other) == other
