"""Files that are always whole: names, permissions, several writers, leftovers of killed ones."""

import os
import stat
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rad.images.atomic import (
    TEMPORARY,
    remove_temporaries,
    replace_link,
    replacing,
    replacing_folder,
    write_text,
)


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "é" * 125 + ".png", "a." + "b" * 240, "a.tar gz"])
def test_temporary_names_are_short(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as temporary:
        assert len(os.fsencode(temporary.name)) < 40
        assert TEMPORARY.fullmatch(temporary.name)
        assert temporary.suffix == ".png" or not name.endswith(".png")
        Image.new("RGB", (2, 2)).save(temporary, format="PNG")
    assert os.listdir(tmp_path) == [name]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "deep" / "weights.safetensors") as temporary:
            save_file({"w": torch.zeros(2)}, temporary)
            temporary.chmod(0o600)
        with replacing_folder(tmp_path / "model") as place:
            (place / "vae").mkdir(0o700)
            save_file({"w": torch.zeros(2)}, place / "vae" / "w.safetensors")
            (place / "vae" / "w.safetensors").chmod(0o600)
        write_text(tmp_path / "a.json", "{}").chmod(0o600)
        write_text(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    for path in ("deep/weights.safetensors", "model/vae/w.safetensors", "a.json"):
        assert mode(tmp_path / path) == file, path
    for path in ("deep", "model", "model/vae"):
        assert mode(tmp_path / path) == folder, path


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    start, texts = threading.Barrier(4), [str(n) * 100_000 for n in range(4)]

    def write(text: str) -> None:
        start.wait()
        for _ in range(20):
            write_text(tmp_path / "a.txt", text)
            assert (tmp_path / "a.txt").read_text() in texts

    failures: list[object] = []
    threads = [threading.Thread(target=lambda text=text: failures.append(_error(write, text))) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [None] * 4
    assert os.listdir(tmp_path) == ["a.txt"]


def _error(function, *arguments: object) -> BaseException | None:
    try:
        function(*arguments)
    except BaseException as error:
        return error
    return None


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    write_text(folder / "old", "")
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target) == folder and (Path(source) / "new").exists():
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr("rad.images.atomic.os.replace", fail)
    with pytest.raises(OSError, match="no space"), replacing_folder(folder) as place:
        (place / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]


def failing_renames(monkeypatch: pytest.MonkeyPatch, folder: Path, *, times: int) -> None:
    """Let the next renames to `folder` be interrupted."""
    replace, left = os.replace, [None] * times

    def interrupted(source: Path, target: Path) -> None:
        if Path(target) == folder and left:
            left.pop()
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("rad.images.atomic.os.replace", interrupted)


def test_an_interruption_between_the_renames_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "model" / "old", "")
    failing_renames(monkeypatch, tmp_path / "model", times=1)
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "model") as place:
        (place / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]


def test_the_only_copy_of_a_folder_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    write_text(folder / "old", "")
    failing_renames(monkeypatch, folder, times=2)  # it cannot be renamed back either, as after a SIGKILL
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as place:
        (place / "new").touch()
    write_text(tmp_path / "other", "")
    remove_temporaries([tmp_path], older=0)
    kept, other = sorted(os.listdir(tmp_path))
    assert other == "other"
    assert os.listdir(tmp_path / kept) == ["old"]
    with replacing_folder(folder) as place:
        (place / "new").touch()
    remove_temporaries([tmp_path], older=0)
    assert sorted(os.listdir(tmp_path)) == ["model", "other"]
    assert os.listdir(folder) == ["new"]


def test_old_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [".0123abcd.rad-tmp.png", ".0123abcd.rad-tmp", ".fresh000.png", ".0123abce.rad-tmp.png", "a.png"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".00000000.rad-tmp").mkdir()
    write_text(tmp_path / ".00000000.rad-tmp" / "w", "")
    for name in (*names[:3], "a.png", ".00000000.rad-tmp"):
        os.utime(tmp_path / name, (0, time.time() - 3600))
    remove_temporaries([tmp_path], older=7200)
    assert len(os.listdir(tmp_path)) == 6
    remove_temporaries([tmp_path, tmp_path / "missing"])
    assert sorted(os.listdir(tmp_path)) == [".0123abce.rad-tmp.png", ".fresh000.png", "a.png"]


def test_a_link_is_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_text(tmp_path / name, name)
        replace_link(tmp_path / "last", name)
        assert (tmp_path / "last").read_text() == name
    assert sorted(os.listdir(tmp_path)) == ["last", "one", "two"]
