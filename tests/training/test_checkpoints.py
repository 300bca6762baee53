"""Checkpoints: whole or not there, the newest whole one is found, a run that was stopped goes on as if it had not been."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from rad.images import atomic as files
from rad.training import resume as checkpoints
from rad.training.checkpoint import Checkpoint
from rad.training.resume import ENTRIES, WholeCheckpointIO, find_checkpoint, find_damage, set_aside


def save(folder, *steps):
    (folder / "checkpoints").mkdir(exist_ok=True)
    paths = [folder / "checkpoints" / f"step={step}.ckpt" for step in steps]
    for path in paths:
        torch.save({**dict.fromkeys(ENTRIES, 0), "state_dict": {"w": torch.full((5000,), 1.5)}}, path)
    return [str(path) for path in paths]


def test_last_is_the_largest_step(tmp_path):
    save(tmp_path, 900, 1000, 20)
    assert find_checkpoint("last", tmp_path).endswith("step=1000.ckpt")
    assert find_checkpoint("auto", tmp_path).endswith("step=1000.ckpt")


def test_without_checkpoints_last_is_an_error_and_auto_a_new_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="auto"):
        find_checkpoint("last", tmp_path)
    assert find_checkpoint("auto", tmp_path) is None
    assert find_checkpoint(None, tmp_path) is None
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="earlier run"):
        find_checkpoint(None, tmp_path)


def test_the_rest_of_a_killed_write_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    os.rename(tmp_path / "checkpoints" / "step=1.ckpt", tmp_path / "checkpoints" / ".step=1.tmp.ckpt")
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("auto", tmp_path) is None


def test_a_copied_run_may_hold_the_last_alone(tmp_path):
    save(tmp_path, 1)
    os.rename(tmp_path / "checkpoints" / "step=1.ckpt", tmp_path / "checkpoints" / "last.ckpt")
    assert find_checkpoint("last", tmp_path).endswith("last.ckpt")


def run_folder(folder, *steps, best):
    """Checkpoints and averages of `steps`, `last.ckpt`, and the best model of step `best`."""
    save(folder, *steps)
    place = folder / "checkpoints"
    for name in ("best", *(f"step={step}-sigma0.08" for step in steps)):
        (place / name).mkdir()
    (place / "best" / "best.json").write_text(json.dumps({"step": best}))
    (place / "last.ckpt").symlink_to(f"step={steps[-1]}.ckpt")
    return place


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_going_back_sets_later_checkpoints_aside_and_loses_none(tmp_path, capsys):
    place = run_folder(tmp_path, 90, 100, 1000, best=95)
    set_aside(place, 90)
    assert names(place) == {"step=90.ckpt", "step=90-sigma0.08", "last.ckpt", "superseded"}
    saved = {f"step={step}{end}" for step in (100, 1000) for end in (".ckpt", "-sigma0.08")}
    assert names(place / "superseded" / "1") == saved | {"best"}
    assert os.readlink(place / "last.ckpt") == "step=90.ckpt"
    assert find_checkpoint("last", tmp_path) == find_checkpoint("auto", tmp_path) == str(place / "step=90.ckpt")
    assert capsys.readouterr().err == f"later checkpoints, up to step=1000, are now in {place}/superseded/1\n"
    save(tmp_path, 100)
    set_aside(place, 90)
    assert names(place / "superseded" / "2") == {"step=100.ckpt"}
    set_aside(place, 50)
    assert "last.ckpt" not in names(place)


def test_an_ordinary_resume_moves_nothing(tmp_path, capsys):
    """A run that was killed may have a model and a best model of later steps, which it writes again."""
    place = run_folder(tmp_path, 90, 100, best=105)
    (place / "step=110").mkdir()
    before = names(place)
    set_aside(place, 100)
    set_aside(tmp_path / "nothing", 100)
    assert names(place) == before
    assert not capsys.readouterr().err


def cut_short(content):
    return content[: len(content) // 2]


def one_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_short, one_bit, lambda content: b""], ids=["cut", "bit", "empty"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path, damage):
    older, newer = save(tmp_path, 1, 2)
    content = (tmp_path / "checkpoints" / "step=2.ckpt").read_bytes()
    (tmp_path / "checkpoints" / "step=2.ckpt").write_bytes(damage(content))
    with pytest.warns(UserWarning, match=r"step=2\.ckpt is damaged"):
        assert find_checkpoint("last", tmp_path) == older
    with pytest.raises(ValueError, match="damaged"):
        find_checkpoint(newer, tmp_path)
    (tmp_path / "checkpoints" / "step=1.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="all 2"):
        find_checkpoint("auto", tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("step=2.ckpt")
    set_aside(tmp_path / "checkpoints", 1)
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == "step=1.ckpt"
    assert names(tmp_path / "checkpoints" / "superseded" / "1") == {"step=2.ckpt"}


def test_a_single_changed_byte_is_found(tmp_path):
    """torch itself does not look at the checksums, and would go on with other weights."""
    (path,) = map(Path, save(tmp_path, 1))
    assert find_damage(path) is None
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((100,), 1.5).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["state_dict"]["w"].unique().numel() == 2
    assert "checksum" in str(find_damage(path))


def test_files_of_other_programs_are_no_checkpoints(tmp_path):
    (path,) = map(Path, save(tmp_path, 1))
    torch.save({name: 0 for name in ENTRIES - {"rad"}}, path)
    assert "not written by rad" in str(find_damage(path))


def test_a_named_checkpoint_is_itself_or_an_error(tmp_path):
    older, _ = save(tmp_path, 1, 2)
    assert find_checkpoint(older, tmp_path) == older
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_checkpoint("nowhere.ckpt", tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (path,) = save(tmp_path, 1)
    before = (tmp_path / "checkpoints" / "step=1.ckpt").read_bytes()

    def half(content, file):
        file.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        WholeCheckpointIO().save_checkpoint({}, path)
    assert (tmp_path / "checkpoints" / "step=1.ckpt").read_bytes() == before
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["step=1.ckpt"]


def test_a_file_gets_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files.os, "fsync", lambda number: calls.append("sync"))
    rename = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (calls.append("rename"), rename(*paths)))
    WholeCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "x.ckpt")
    assert calls == ["sync", "rename"]
    assert torch.load(tmp_path / "x.ckpt", weights_only=True) == {"a": 1}


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """The limit on a file's size stands for the disk: the write fails in the middle."""
    (path,) = save(tmp_path, 1)
    before = (tmp_path / "checkpoints" / "step=1.ckpt").read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match="make room"):
            WholeCheckpointIO().save_checkpoint({"weights": torch.arange(50000.0)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "checkpoints" / "step=1.ckpt").read_bytes() == before
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["step=1.ckpt"]


def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path):
    folder = tmp_path / "step=1"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(RuntimeError), files.replacing_folder(folder) as place:  # noqa: PT012
        (place / "half").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["step=1", "old"]
    with files.replacing_folder(folder) as place:
        (place / "new").touch()
        assert (folder / "old").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["step=1", "new"]


@pytest.mark.parametrize("settings", [{"every_n_train_steps": 0}, {"save_top_k": 0}])
def test_intervals_and_numbers_of_checkpoints_are_positive(settings):
    with pytest.raises(ValueError, match="allowed are >= 1"):
        Checkpoint(**settings)


def test_the_reason_of_a_failed_checkpoint_is_given(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(OSError, match="checkpoints") as failure:
        WholeCheckpointIO().save_checkpoint({"weights": torch.zeros(1)}, tmp_path / "checkpoints" / "step=1.ckpt")
    assert "make room" not in str(failure.value)
