"""Locks on folders: who holds one, parts beside each other, and the end of a killed process."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rad.images import lock
from rad.images.lock import InUse, holder, locked, one_at_a_time


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)


def _hold(folder: Path, part: str, ready: Any) -> None:
    with locked(folder, part=part, beside="*of4"):
        ready.set()
        signal.pause()


@contextmanager
def held_elsewhere(folder: Path, part: str = "") -> Iterator[int]:
    """A process that holds a folder; killed at the end."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(folder, part, ready))
    process.start()
    assert ready.wait(10)
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def test_the_second_process_learns_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with held_elsewhere(folder) as pid:
        with pytest.raises(InUse, match=rf"out is in use by process {pid} on .* since 20.*another --name"):
            locked(folder, option="--name").__enter__()
        assert f"process {pid} on " in holder(folder)
    assert (folder / lock.WHOLE).exists(), "a killed process leaves the file"
    with locked(folder):
        assert f"process {os.getpid()} " in holder(folder)
    assert holder(folder) == ""
    assert os.listdir(folder) == []


def test_the_whole_folder_and_its_parts_exclude_each_other(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, "1of4") as pid:
        with locked(tmp_path, part="2of4", beside="*of4"):
            pass
        for part, beside in (("", ""), ("1of4", "*of4"), ("2of3", "*of3")):
            with pytest.raises(InUse, match=f"process {pid}"):
                locked(tmp_path, part=part, beside=beside).__enter__()
    with held_elsewhere(tmp_path), pytest.raises(InUse):
        locked(tmp_path, part="1of4", beside="*of4").__enter__()
    with locked(tmp_path):
        pass


def test_an_empty_folder_of_its_own_does_not_stay(tmp_path: Path) -> None:
    with locked(tmp_path / "deep" / "out"):
        assert (tmp_path / "deep" / "out").is_dir()
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / "deep" / "out"):
        (tmp_path / "deep" / "a").touch()
    assert os.listdir(tmp_path / "deep") == ["a"]


def test_a_short_change_waits_for_its_turn(tmp_path: Path) -> None:
    with one_at_a_time(tmp_path / "x.lock"), pytest.raises(InUse):
        one_at_a_time(tmp_path / "x.lock", patience=0.1).__enter__()


def test_a_disk_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.FileLock, "acquire", fail)
    with locked(tmp_path):
        pass
    assert "on a disk without locks (No locks available)" in capsys.readouterr().err
