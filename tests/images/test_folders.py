"""Folders with links, files of other kinds and names of other systems; zips of Windows and macOS."""

import os
import tarfile
import zipfile
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest

from rad.cli.sample.options import read_options
from rad.cli.sample.plan import Label, make_plan
from rad.data.captions import read_captions
from rad.data.module import ImageDataModule
from rad.images import ImageFile, list_images
from rad.images.sources import by_stem, find_readable, match_names, stems
from tests.conftest import random_image


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        random_image(8, 8).save(folder / name, "PNG")
    return folder


def listed(source: Path) -> list[str]:
    return [image.name for image in list_images(source)]


def test_every_real_folder_is_visited_once(tmp_path: Path) -> None:
    top = write(tmp_path / "top", "a.png", "sub/b.png", "sub/deep/c.png")
    other = write(tmp_path / "other", "d.png", "more/e.png")
    for link, target in (
        ("self", top), ("up", tmp_path), ("root", "/"), ("sub/deep/parent", top / "sub"), ("again", top / "sub"),
        ("sub/other", other), ("other", other), ("zz", other / "more"), ("nowhere", tmp_path / "none"), ("round", "round"),
    ):  # fmt: skip
        (top / link).symlink_to(target)
    (other / "back").symlink_to(top)
    assert listed(top) == ["a.png", "other/d.png", "other/more/e.png", "sub/b.png", "sub/deep/c.png"]
    (tmp_path / "entry").symlink_to(top)
    assert listed(tmp_path / "entry") == listed(top)
    data = ImageDataModule(str(top), val_count=0, size=8)
    data.setup("fit")
    assert len(data.train_images) == 5


def test_links_to_files_are_files_of_their_own_and_broken_ones_are_errors_of_one_image(tmp_path: Path) -> None:
    top = write(tmp_path / "top", "a.png")
    outside = write(tmp_path / "outside", "x.png")
    for link, target in (("b.png", "a.png"), ("c.png", outside / "x.png"), ("d.png", "none.png"), ("e.png", "e.png")):
        (top / link).symlink_to(target)
    assert listed(top) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    good, bad = find_readable(list_images(top))
    assert [image.name for image in good] == ["a.png", "b.png", "c.png"]
    assert bad == [str(top / "d.png"), str(top / "e.png")]
    options = read_options(
        ["--checkpoint", "x", "--image", str(top), "--mask", "box", "--output", str(tmp_path / "out")]
    )
    (run,) = make_plan(options, [Label("rad", "rad")])
    assert len(run.jobs) == 5


def test_images_that_cannot_be_read_are_counted_in_one_line(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = write(tmp_path / "photos", "a.png", "b.jpg", "c.png")
    for name in ("x.heic", "more.HEIC", "y.psd", "a.nef", "notes.txt", "a.json", ".z.heic", "c.svg"):
        (folder / name).write_bytes(b"?")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    for source in (folder, tmp_path / "photos.zip"):
        recwarn.clear()
        assert listed(source) == ["a.png", "b.jpg", "c.png"]
        (warning,) = recwarn
        assert str(warning.message) == f"left out of {source}: 2 .heic, 1 .psd; convert them to PNG or JPEG"
    recwarn.clear()
    for name in ("x.heic", "more.HEIC", "y.psd"):
        (folder / name).unlink()
    listed(folder)
    assert not recwarn.list, "a raw file beside its JPEG is no surprise"


def test_a_folder_of_nothing_but_unread_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"?")
    with pytest.warns(UserWarning, match="1 .heic; convert"), pytest.raises(ValueError, match="no images in"):
        list_images(tmp_path)


def test_names_of_any_bytes_are_listed_and_opened(tmp_path: Path) -> None:
    names = ["line\nbreak.png", "-dash.png", "dot..png", "quote'\".png", " space .png", os.fsdecode(b"latin\xe9.png")]
    assert sorted(listed(write(tmp_path, *names))) == sorted(names)
    assert all(image.open().size == (8, 8) for image in list_images(tmp_path))


def pack(path: Path, *names: str) -> Path:
    image = write(path.parent / "packed", "a.png") / "a.png"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.write(image, name)
    return path


def test_backslashes_separate_folders_where_no_name_has_a_slash(tmp_path: Path) -> None:
    names = [r"photos\a.png", r"photos\more\b.png", r"__MACOSX\photos\._a.png", r"photos\.hidden.png"]
    zipped = list_images(pack(tmp_path / "windows.zip", *names))
    assert [image.name for image in zipped] == ["photos/a.png", "photos/more/b.png"]
    assert stems(zipped) == ["a", "more/b"]
    for image in zipped:
        image.check()
        assert image.open().size == (8, 8)
    assert listed(pack(tmp_path / "plain.zip", r"one\name.png", "folder/b.png")) == ["folder/b.png", r"one\name.png"]


def test_what_macos_adds_is_no_image(tmp_path: Path) -> None:
    names = ["photos/a.png", "__MACOSX/photos/._a.png", "photos/.DS_Store", "photos/._a.png", "._b.png"]
    assert listed(pack(tmp_path / "mac.zip", *names)) == ["photos/a.png"]
    assert listed(write(tmp_path / "mac", *(name for name in names if "DS" not in name))) == ["photos/a.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    for number in (0, 1):
        random_image(8, 8, seed=number).save(tmp_path / f"{number}.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "0.png", "a.png")
        archive.write(tmp_path / "1.png", "a.png")
    (image,) = list_images(tmp_path / "a.zip")
    assert np.array_equal(image.open(), random_image(8, 8, seed=1))


def matched(masks: list[str], names: list[str]) -> list[str | None]:
    named = {name: ImageFile(f"{name}.png", Path(f"{name}.png")) for name in masks}
    return [image and image.name.removesuffix(".png") for image in match_names(named, names)]


def test_names_match_in_another_unicode_form_or_case_only_where_it_is_certain() -> None:
    nfc, nfd = "caf\u00e9", normalize("NFD", "caf\u00e9")
    assert matched([nfd], [nfc]) == [nfd]
    assert matched([nfc, nfd], [nfd, nfc]) == [nfd, nfc]
    assert matched(["img_1", "B"], ["IMG_1", "b", "c"]) == ["img_1", "B", None]
    assert matched(["a"], ["A", "a"]) == [None, "a"], "the mask of another image"
    assert matched(["a", "A"], ["\u00e0"]) == [None]
    assert matched(["ab", "aB"], ["AB"]) == [None], "either"
    assert matched(["ab"], ["AB", "Ab"]) == [None, None], "for either"


def test_masks_and_texts_of_a_mac_belong_to_the_same_images(tmp_path: Path) -> None:
    nfc, nfd = "caf\u00e9", normalize("NFD", "caf\u00e9")
    images, masks = write(tmp_path / "images", f"{nfc}.png", "A.PNG"), write(tmp_path / "masks", f"{nfd}.png", "a.png")
    (tmp_path / "prompts.json").write_text(f'{{"{nfd}.png": "a cup", "A.PNG": "a tree"}}', encoding="utf-8")
    arguments = [
        "--image",
        images,
        "--mask",
        masks,
        "--output",
        tmp_path / "out",
        "--prompts",
        tmp_path / "prompts.json",
    ]
    (run,) = make_plan(read_options(["--checkpoint", "x", *map(str, arguments)]), [Label("rad", "rad")])
    assert [job.prompt for job in run.jobs] == ["a tree", "a cup"]
    assert [job.mask.name for job in run.jobs if isinstance(job.mask, ImageFile)] == ["a.png", f"{nfd}.png"]
    captions = read_captions(str(tmp_path / "prompts.json"))
    assert captions(f"folder/{nfc}.png") == captions(f"{nfd}.png") == "a cup"
    assert list(by_stem(list_images(masks), where="masks")) == ["a", nfd]


def test_names_of_archives_may_start_with_a_dot_and_a_slash(tmp_path: Path) -> None:
    random_image(4, 4, seed=0).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("./a.png", "x/./b.png", "./.c.png", "../d.png"):
            archive.write(tmp_path / "a.png", name)
    assert sorted(stems(list_images(tmp_path / "a.zip"))) == ["a", "x/b"]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "./a.png")
    assert stems(list_images(tmp_path / "a.tar")) == ["a"]
