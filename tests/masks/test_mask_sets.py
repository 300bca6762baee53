"""Sets of masks: their dependencies, hash, files and manifest, and the command line."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from rad.console import guarded
from rad.images.sources import list_images
from rad.lock import InUse, locked
from rad.masks.__main__ import ABOUT, main
from rad.masks.files import read_mask, write_mask
from rad.masks.sets import MANIFEST, hash_holes, holes, overview, read_set, write_set
from rad.masks.shapes import ALIASES, MASKS, Blobs, main_names, make
from rad.rng import generator

REPAINT = Path(__file__).resolve().parents[3] / "shared" / "data" / "repaint_keep_masks.zip"
SIZE = (16, 24)


def written(folder, name="box", size=SIZE, count=3, seed=0):
    return write_set(folder, name, size=size, count=count, seed=seed)


def change_pixel(path):
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(path)


def invert(folder, target):
    target.mkdir()
    for path in folder.glob("*.png"):
        Image.fromarray(255 - np.array(Image.open(path))).save(target / path.name)
    return target


# --- dependencies of a set ---


@pytest.mark.parametrize("name", main_names())
def test_a_larger_set_begins_with_the_smaller_one(name):
    small, large = list(holes(name, SIZE, 3, 7)), list(holes(name, SIZE, 5, 7))
    assert [mask for mask, _ in large] == ["000000", "000001", "000002", "000003", "000004"]
    for (first, hole), (second, same) in zip(small, large[:3], strict=True):
        assert first == second
        assert hole.shape == (1, *SIZE)
        assert torch.equal(hole, same)
    assert hash_holes(small) != hash_holes(large)


@pytest.mark.parametrize("name", ["box", "pixels", "wide", "blobs", "perlin", "lettering"])
def test_the_global_generator_and_the_order_do_not_matter(name):
    torch.manual_seed(1)
    first = hash_holes(holes(name, (32, 32), 3, 0))
    torch.manual_seed(2)
    assert hash_holes(reversed(list(holes(name, (32, 32), 3, 0)))) == first
    assert hash_holes(holes(name, (32, 32), 3, 1)) != first
    drawn = [hole.numpy().tobytes() for _, hole in holes(name, (32, 32), 3, 0)]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_is_the_same_set(alias, name):
    assert make(alias) == make(name)
    assert hash_holes(holes(alias, (32, 32), 2, 0)) == hash_holes(holes(name, (32, 32), 2, 0))


@pytest.mark.parametrize(
    ("name", "expected"),
    # Sets without a draw, and one of a few small integers from torch. Painted sets (wide, thin, lettering) and floating
    # point sets (perlin, blobs, pixels) may differ in a pixel between versions of Pillow and torch, and are not frozen.
    [("half", "cebc2faa1fe1c5c3"), ("superres", "cca8b973fa550a81"), ("box", "97b46b21fa092b7a")],
)
def test_sets_do_not_change(name, expected):
    assert hash_holes(holes(name, (16, 24), 4, 0)) == expected


def test_a_mask_is_drawn_from_the_generator_of_its_number():
    hole = list(holes("wide", (32, 48), 3, 5))[2][1]
    assert torch.equal(hole, make("thick")([generator("mask set", "wide", 32, 48, 5, 2)], 32, 48)[0])


@pytest.mark.parametrize(
    ("name", "share"),
    [("box", 1 / 4), ("extreme", 3 / 4), ("half", 1 / 2), ("expand", 15 / 16), ("lines", 1 / 2), ("superres", 3 / 4)],
)
def test_white_is_fill_and_shares_are_known(tmp_path, name, share):
    mask_set = written(tmp_path / "set", name, (16, 16))
    for entry in mask_set.entries:
        assert entry.share == share
        assert (np.asarray(Image.open(tmp_path / "set" / f"{entry.name}.png")) == 255).mean() == share
    assert [file["share"] for file in mask_set.manifest["files"].values()] == [share] * 3


def test_blobs_are_one_to_three_connected_shapes_of_limited_area():
    drawn = torch.stack([hole for _, hole in holes("blobs", (64, 64), 120, 0)])[:, 0]
    parts = [ndimage.label(hole)[1] for hole in drawn.numpy()]
    assert set(parts) == {1, 2, 3}
    shares = drawn.mean((1, 2))
    assert shares.min() > 0.01
    assert shares.max() <= 0.5
    drawn = Blobs(blobs=(1, 1))([generator("blob", index) for index in range(60)], 32, 80)
    assert all(ndimage.label(hole)[1] == 1 for hole in drawn[:, 0].numpy())


def test_a_blob_has_the_area_of_its_disc_and_is_one_without_irregularity():
    def draw(irregularity):
        blobs = Blobs(blobs=(1, 1), radius=(0.1, 0.1), irregularity=irregularity)
        return blobs([generator("area", index) for index in range(20)], 256, 256)[:, 0].numpy()

    areas, discs = draw(0.35).sum((1, 2)), draw(0.0)
    area = np.pi * 25.6**2
    # A centre may be 32 pixels from the border, where a large lobe can be cut: no more than a few are.
    assert np.median(areas) == pytest.approx(area, rel=0.01)
    assert areas.max() < 1.02 * area
    for disc in discs:
        rows, columns = disc.any(1).sum(), disc.any(0).sum()
        assert rows == columns == 51
    assert (draw(0.35) != discs).any((1, 2)).all()


# --- hash ---


def test_the_hash_is_the_documented_one():
    row = torch.tensor([[[0.0, 1.0, 0.4]]])
    column = torch.ones(1, 2, 1)
    pixels = [hashlib.sha256(bytes(values)).hexdigest() for values in ([255, 255], [0, 255, 102])]
    text = f"a/one\t2\t1\t{pixels[0]}\nb\t1\t3\t{pixels[1]}\n"
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert hash_holes([("b", row), ("a/one", column)]) == expected
    assert hash_holes([("b", row.mT), ("a/one", column)]) != expected
    assert hash_holes([("b", 1 - row), ("a/one", column)]) != expected
    assert hash_holes([("c", row), ("a/one", column)]) != expected


def test_sets_without_a_hash():
    with pytest.raises(ValueError, match="without masks"):
        hash_holes([])
    with pytest.raises(ValueError, match="called a"):
        hash_holes([("a", torch.ones(1, 2, 2)), ("a", torch.zeros(1, 2, 2))])


# --- files ---


def test_a_written_set_is_read_again(tmp_path):
    mask_set = written(tmp_path / "set", "thick", (32, 48), 4, 9)
    loaded = read_set(tmp_path / "set")
    expected = list(holes("wide", (32, 48), 4, 9))
    assert loaded.hash == mask_set.hash == mask_set.manifest["hash"] == hash_holes(expected)
    assert loaded.entries == mask_set.entries
    assert loaded.names == [name for name, _ in expected]
    assert all(torch.equal(loaded.hole(name), hole) for name, hole in expected)
    assert all(torch.equal(hole, other) for (_, hole), (_, other) in zip(loaded.holes(), expected, strict=True))
    manifest = json.loads((tmp_path / "set" / MANIFEST).read_text())
    assert manifest == loaded.manifest
    assert {key: manifest[key] for key in ("set", "height", "width", "count", "seed", "polarity")} == {
        "set": "wide",
        "height": 32,
        "width": 48,
        "count": 4,
        "seed": 9,
        "polarity": "white_is_fill",
    }
    assert manifest["settings"]["width"] == [5, 104]


def test_everything_that_looks_like_an_image_is_a_mask(tmp_path):
    written(tmp_path)
    assert [image.name for image in list_images(tmp_path)] == ["000000.png", "000001.png", "000002.png"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png") == [MANIFEST]


def test_files_of_the_opposite_polarity_are_the_same_set(tmp_path):
    mask_set = written(tmp_path / "set", "blobs", (32, 32))
    inverted = invert(tmp_path / "set", tmp_path / "inverted")
    assert read_set(inverted, polarity="white_is_known").hash == mask_set.hash
    assert read_set(inverted).hash != mask_set.hash
    with pytest.raises(ValueError, match=r"white_is_known.*says white_is_fill"):
        read_set(tmp_path / "set", polarity="white_is_known")


def test_soft_masks_are_the_same_in_both_polarities(tmp_path):
    (tmp_path / "soft").mkdir()
    write_mask(tmp_path / "soft" / "ramp.png", torch.arange(256).view(1, 16, 16) / 255)
    inverted = invert(tmp_path / "soft", tmp_path / "inverted")
    assert read_set(inverted, polarity="white_is_known").hash == read_set(tmp_path / "soft").hash


@pytest.mark.parametrize("top", ["", "set/"])
def test_a_zip_with_or_without_its_folder_is_the_same_set(tmp_path, top):
    mask_set = written(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in (tmp_path / "set").iterdir():
            archive.write(path, f"{top}{path.name}")
    loaded = read_set(tmp_path / "set.zip")
    assert (loaded.hash, loaded.names, loaded.manifest) == (mask_set.hash, mask_set.names, mask_set.manifest)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.write(tmp_path / "set" / MANIFEST, f"{top}{MANIFEST}")
        archive.write(tmp_path / "set" / "000000.png", f"{top}000000.png")
    with pytest.raises(ValueError, match=r"bad\.zip.*000001 is missing \(2 such"):
        read_set(tmp_path / "bad.zip")


def test_masks_of_others_have_paths_for_names(tmp_path):
    for name in ("a/one.png", "b/one.png", "b/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_mask(tmp_path / name, torch.ones(1, 4, 5))
    loaded = read_set(tmp_path)
    assert (loaded.names, loaded.manifest) == (["a/one", "b/one"], None)
    assert [(entry.height, entry.width, entry.share) for entry in loaded.entries] == [(4, 5, 1.0)] * 2
    shutil.copy(tmp_path / "a" / "one.png", tmp_path / "a" / "one.bmp")
    with pytest.raises(ValueError, match=r"two masks called a/one, a/one\.bmp and a/one\.png"):
        read_set(tmp_path)


def test_a_file_of_a_zip_that_is_no_image_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("masks/text.png", "text")
    with pytest.raises(ValueError, match=r"bad\.zip:masks/text\.png"):
        read_set(tmp_path / "bad.zip")


def edit(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: change_pixel(folder / "000001.png"), "000001 has other pixels; write"),
        (lambda folder: (folder / "000002.png").unlink(), "000002 is missing"),
        (lambda folder: shutil.copy(folder / "000000.png", folder / "x.png"), "x is not listed"),
        (lambda folder: edit(folder, hash="0" * 16), "another hash"),
        (lambda folder: edit(folder, count=4), "count is 4, but it lists 3"),
        (lambda folder: edit(folder, format="rad-masks-9"), "rad-masks-9"),
        (lambda folder: edit(folder, files=[]), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text('{"format": "rad'), "damaged"),
    ],
)
def test_a_manifest_that_does_not_agree_with_the_files_is_an_error(tmp_path, damage, message):
    written(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_set(tmp_path)
    assert MANIFEST in str(caught.value)


def test_a_file_that_only_has_the_name_of_a_manifest_is_left_alone(tmp_path):
    write_mask(tmp_path / "one.png", torch.ones(1, 4, 5))
    (tmp_path / MANIFEST).write_text('{"name": "an application"}')
    assert read_set(tmp_path).manifest is None
    (tmp_path / "one.png").unlink()
    with pytest.raises(ValueError, match="written over"):
        written(tmp_path)
    assert "application" in (tmp_path / MANIFEST).read_text()


# --- writing into a folder that is not empty ---


def test_an_interrupted_set_is_continued(tmp_path, monkeypatch):
    whole = written(tmp_path / "whole", count=5)
    calls = []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("rad.images.atomic.os.replace", replace)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "set", count=5)
    assert [image.name for image in list_images(tmp_path / "set")] == ["000000.png", "000001.png"]
    before = (tmp_path / "set" / "000001.png").stat().st_mtime_ns
    assert written(tmp_path / "set", count=5).hash == whole.hash
    assert (tmp_path / "set" / "000001.png").stat().st_mtime_ns == before
    assert not list((tmp_path / "set").glob(".*"))


def test_a_set_has_one_writer(tmp_path):
    with locked(tmp_path / "set"), pytest.raises(InUse, match="set is in use by process"):
        written(tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_a_set_grows_but_does_not_shrink(tmp_path):
    written(tmp_path, count=3)
    larger = written(tmp_path, count=5)
    assert read_set(tmp_path).hash == larger.hash == hash_holes(holes("box", SIZE, 5, 0))
    with pytest.raises(ValueError, match="holds 5 masks of this set, more than 3"):
        written(tmp_path, count=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0, not 1"),
        ({"name": "thin"}, "set is box, not thin"),
        ({"size": (16, 32)}, "width is 24, not 32"),
    ],
)
def test_sets_are_not_mixed(tmp_path, change, message):
    mask_set = written(tmp_path)
    with pytest.raises(ValueError, match=message):
        written(tmp_path, **change)
    assert read_set(tmp_path).hash == mask_set.hash


def test_images_of_others_are_not_mixed_in_nor_written_over(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photograph.png")
    with pytest.raises(ValueError, match=r"photograph\.png"):
        written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photograph.png"]
    (tmp_path / "photograph.png").rename(tmp_path / "000001.png")
    with pytest.raises(ValueError, match=r"000001\.png is not mask 000001 of the set box of 16x24 with seed 0"):
        written(tmp_path)
    assert Image.open(tmp_path / "000001.png").mode == "RGB"
    with pytest.raises(ValueError, match="is a file"):
        written(tmp_path / "000001.png")


# --- command line ---


def test_one_set_goes_into_the_folder_and_several_into_their_own(tmp_path, capsys):
    assert main(["--set", "box", "--size", "16", "24", "--count", "3", "--output", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one'}\n"
    names = ["box", "every-other-line"]
    assert (
        main(["--set", *names, "--size", "16", "--count", "2", "--seed", "4", "--output", str(tmp_path / "all")]) == 0
    )
    assert capsys.readouterr().out.split() == [str(tmp_path / "all" / name) for name in names]
    assert read_set(tmp_path / "one").hash == hash_holes(holes("box", SIZE, 3, 0))
    assert read_set(tmp_path / "all" / "box").hash == hash_holes(holes("box", (16, 16), 2, 4))
    hole = read_mask(tmp_path / "all" / "every-other-line" / "000001.png", size=(16, 16))
    assert hole[0, :, 0].tolist() == [1, 0] * 8


def test_check_describes_a_set(tmp_path, capsys):
    mask_set = written(tmp_path / "set", "center", (32, 32))
    assert main(["--check", str(tmp_path / "set")]) == 0
    report = capsys.readouterr()
    for line in (
        "masks: 3",
        "size: 32x32",
        "share of hole: 25 %",
        f"hash: {mask_set.hash}",
        "manifest: center, seed 0, agrees",
    ):
        assert f"\n{line}" in report.out
    assert report.err == ""
    inverted = invert(tmp_path / "set", tmp_path / "inverted")
    assert main(["--check", str(inverted), "--mask_polarity", "white_is_known"]) == 0
    report = capsys.readouterr()
    assert (f"hash: {mask_set.hash}" in report.out, report.err) == (True, "")
    assert main(["--check", str(inverted)]) == 0
    assert "3 of 3 masks" in capsys.readouterr().err


def test_list_names_every_set(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == main_names() == list(ABOUT)
    assert {*main_names(), *ALIASES} == set(MASKS)
    listed = {line.split()[0]: line for line in lines}
    assert listed["extreme"].endswith("hole 75 %")
    assert "also called thick" in listed["wide"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--set --list --check is required"),
        (["--list", "--set", "box"], "not allowed with"),
        (["--set", "oval", "--output", "OUT"], "'oval'.*box, extreme"),
        (["--set", "box", "oval", "--output", "OUT"], "'oval'"),
        (["--set", "box"], "--output DIR"),
        (["--set", "box", "--size", "4", "--output", "OUT"], "4x4.*at least 8"),
        (["--set", "box", "--size", "8", "8", "8", "--output", "OUT"], "--size 8 8 8"),
        (["--set", "box", "--size", "large", "--output", "OUT"], "invalid int"),
        (["--set", "box", "--count", "0", "--output", "OUT"], "count=0.*1 to 1000000"),
        (["--check", "OUT"], "no such file or folder"),
        (["--check", "OUT", "--mask_polarity", "black"], "invalid choice"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    with pytest.raises(ValueError, match=message):
        main(arguments)
    assert guarded(lambda: main(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_without_effect_are_reported(tmp_path, capsys):
    written(tmp_path)
    assert main(["--check", str(tmp_path), "--seed", "0"]) == 0
    assert capsys.readouterr().err == "warning: --seed has no effect without --set\n"
    arguments = ["--set", "box", "--size", "16", "24", "--count", "3", "--output", str(tmp_path)]
    assert main([*arguments, "--mask_polarity", "white_is_fill"]) == 0
    assert "warning: --mask_polarity has no effect without --check\n" in capsys.readouterr().err


@pytest.mark.skipif(not REPAINT.exists(), reason="the masks of RePaint are not here")
def test_the_masks_of_repaint_keep_white(tmp_path):
    with zipfile.ZipFile(REPAINT) as archive:
        names = [f"gt_keep_masks/{name}/000000.png" for name in ("ev2li", "ex64", "genhalf", "nn2")]
        archive.extractall(tmp_path, names)
    loaded = read_set(tmp_path / "gt_keep_masks", polarity="white_is_known")
    assert [entry.share for entry in loaded.entries] == [0.5, 0.9375, 0.5, 0.75]
    ours = [(f"{folder}/000000", next(holes(name, (256, 256), 1, 0))[1]) for folder, name in
            [("ev2li", "lines"), ("ex64", "expand"), ("genhalf", "half"), ("nn2", "superres")]]  # fmt: skip
    assert loaded.hash == hash_holes(ours)


def test_the_overview_lies_beside_the_masks_and_shows_their_polarity(tmp_path):
    mask_set = write_set(tmp_path / "half", "half", size=(32, 32), count=2, seed=0)
    assert {path.name for path in (tmp_path / "half").iterdir()} == {"000000.png", "000001.png", "manifest.json"}
    assert [str(image.name) for image in list_images(tmp_path / "half")] == ["000000.png", "000001.png"]
    with Image.open(tmp_path / "half-overview.png") as sheet:
        grey = np.asarray(sheet.convert("L"))
    single = overview([(mask_set.entries[0], 1 - mask_set.hole("000000"))], title="the opposite")
    assert grey.min() == 0
    assert (grey == 255).any()
    assert not np.array_equal(np.asarray(single.convert("L")), grey)
