"""Mask files of `rad sample`: which mask belongs to which image, options of reading, messages, previews, and the record."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.pairing import find_masks
from rad.cli.sample.runtimes import pytorch
from rad.images.sources import ImageFile, list_images
from tests.conftest import SIZE, box_hole, random_image

HOLE = box_hole(SIZE, SIZE, 3, 4, 11, 12)[0].numpy() > 0


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)


@pytest.fixture
def sample(adapter, capsys):
    """rad sample by the method "mean": (exit code, lines of stdout, stderr)."""

    def call(*arguments, **options):
        named = {"checkpoint": adapter, "image": "in", "mask": "in", "output": "out", "method": "mean", **options}
        code = cli.sample([*(word for name, value in named.items() for word in (f"--{name}", str(value))), *arguments])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return call


def save_image(name: str) -> np.ndarray:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = random_image(SIZE, SIZE, seed=len(name))
    image.save(path)
    return np.asarray(image)


def save_mask(name: str, white: int = 255) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(HOLE, white, 0).astype(np.uint8)).save(path)


def changed(name: str, image: np.ndarray) -> np.ndarray:
    return (np.asarray(Image.open(name)) != image).any(2)


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("images", "masks", "pattern"),
    [
        (["a.png", "a_b.png"], ["a_mask.png", "a_b_mask.tif"], "{stem}_mask.*"),
        (["a.jpg", "b.jpg"], ["a.png", "b.png"], "{stem}.png"),
        (["a.png", "x/[b].png"], ["a.png.png", "x/[b].png.png"], "{name}.png"),
        (["a.png", "x/b.png"], ["mask-of-a-1.png", "x/mask-of-b-1.png"], "mask-of-{stem}-[0-9].*"),
    ],
)
def test_masks_may_lie_beside_the_images(sample, images, masks, pattern):
    for name in images:
        save_image(f"in/{name}")
    for name in masks:
        save_mask(f"in/{name}")
    code, out, err = sample(mask_pattern=pattern)
    assert (code, out) == (0, [f"out/{Path(name).with_suffix('.png')}" for name in sorted(images)]), err
    assert "warning" not in err
    for name in images:
        image = np.asarray(Image.open(f"in/{name}").convert("RGB"))
        assert np.array_equal(changed(f"out/{Path(name).with_suffix('.png')}", image), HOLE)


@pytest.mark.parametrize("mask", ["in/masks", "in/masks/a.png"])
def test_masks_below_the_folder_of_the_images_are_no_images(sample, mask):
    images = {name: save_image(f"in/{name}.png") for name in ("a", "b")}
    save_mask("in/masks/a.png")
    if mask == "in/masks":
        save_mask("in/masks/b.png")
    code, out, err = sample(mask=mask)
    assert (code, out) == (0, ["out/a.png", "out/b.png"]), err
    for name, image in images.items():
        assert np.array_equal(changed(f"out/{name}.png", image), HOLE)


def test_a_pattern_names_the_mask_that_is_missing_or_double(sample):
    for name in ("a", "b"):
        save_image(f"in/{name}.png")
    save_mask("masks/a_mask.png")
    code, out, err = sample(mask="masks", mask_pattern="{stem}_mask.*")
    assert (code, out) == (3, ["out/a.png"])
    assert "no mask for b.png: expected b_mask.* by --mask_pattern" in err
    save_mask("masks/a_mask.tif")
    code, _, err = sample(mask="masks", mask_pattern="{stem}_mask.*")
    assert code == 2
    assert "several masks for a.png: a_mask.png, a_mask.tif" in err


def test_a_wildcard_stays_in_its_folder(tmp_path):
    for name in ("images/a.png", "masks/a_mask.png", "masks/a_other/mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        random_image(4, 4).save(tmp_path / name)
    images = list_images(tmp_path / "images")
    (mask,) = find_masks(str(tmp_path / "masks"), images, ["a"], pattern="{stem}_*", in_order=False)
    assert isinstance(mask, ImageFile)
    assert mask.name == "a_mask.png"


@pytest.mark.parametrize("same", ["folder", "linked folder", "linked file", "file"])
def test_an_image_is_not_its_own_mask(sample, same):
    save_image("in/a.png")
    Path("masks").mkdir()
    Path("linked").symlink_to("in", target_is_directory=True)
    Path("masks/a.png").symlink_to(Path("in/a.png").resolve())
    mask = {"folder": "in", "linked folder": "linked", "linked file": "masks", "file": "in/a.png"}[same]
    code, out, err = sample(mask=mask)
    assert (code, out) == (2, [])
    assert "a.png would be its own mask" in err
    assert "--mask_pattern" in err
    assert "--mask_channel alpha --mask_polarity white_is_known" in err
    assert not Path("out").exists()


def test_an_image_with_an_erased_part_is_its_own_mask_by_its_alpha(sample):
    image = save_image("in/a.png")
    erased = Image.fromarray(image).convert("RGBA")
    erased.putalpha(Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8)))
    erased.save("in/a.png")
    assert sample(mask_channel="alpha", mask_polarity="white_is_known")[0] == 0
    assert np.array_equal(changed("out/a.png", image), HOLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_pattern": "masks.png"}, "put {stem} or {name}"),
        ({"mask_pattern": "{stem}.png", "mask": "box"}, "needs the folder"),
        ({"mask_pattern": "{stem}.png", "mask_by": "order"}, "both choose the masks"),
        ({"mask_threshold": 0.5, "soft_mask": None}, "exclude each other"),
        ({"mask_threshold": 2}, "--mask_threshold 2.0: allowed are 0 to 1"),
    ],
)
def test_options_of_masks_that_do_not_fit_are_an_error(sample, options, message):
    save_image("in/a.png")
    flags = [f"--{name}" for name, value in options.items() if value is None]
    code, _, err = sample(*flags, **{name: value for name, value in options.items() if value is not None})
    assert code == 2
    assert message in err


def test_equal_messages_are_counted_in_a_line(sample):
    for number in range(5):
        save_image(f"in/{number}.png")
        save_mask(f"masks/{number}.png", white=1)
    Image.new("L", (SIZE, SIZE)).save("masks/4.png")
    code, _, err = sample(mask="masks")
    assert code == 0
    lines = [line for line in err.splitlines() if "masks/" in line]
    assert lines == [
        "note: 4 masks, such as masks/0.png: its two values, 0 and 1, are black and white",
        "warning: masks/4.png: it is empty: nothing is filled",
    ]


def test_a_photograph_as_mask_fails_with_the_choices(sample):
    save_image("in/a.png")
    save_image("masks/another.png")
    code, out, err = sample(mask="masks/another.png")
    assert (code, out) == (2, [])
    assert "failed: in/a.png: masks/another.png: it is coloured" in err
    assert "--mask_channel" in err


def test_options_without_effect_on_a_generator_are_named(sample):
    save_image("in/a.png")
    _, _, err = sample("--soft_mask", mask="box", mask_dilate=2)
    assert "warning: --soft_mask, --mask_dilate has no effect on the generator box" in err


def test_a_preview_shows_the_hole_and_loads_no_model(sample, monkeypatch):
    image = save_image("in/a.png")
    save_mask("masks/a.png")
    monkeypatch.delattr(pytorch, "load_inpainter")
    code, out, err = sample("--preview_masks", mask="masks", mask_dilate=1)
    assert (code, out, err) == (0, ["out/a-overlay.png"], "")
    shown = np.asarray(Image.open("out/a-overlay.png")).astype(int)
    grown = np.zeros_like(HOLE)
    grown[2:12, 3:13] = True
    assert np.array_equal(shown[~grown], image[~grown])
    assert np.abs(shown[grown] - (0.4 * image[grown] + 0.6 * np.array([255, 0, 0]))).max() <= 1
    assert sample("--preview_masks", "--mask", "box", mask="masks")[1] == [
        "out/masks/a-overlay.png",
        "out/box/a-overlay.png",
    ]


def test_the_record_holds_the_options_and_older_ones_match_the_defaults(sample):
    save_image("in/a.png")
    save_mask("masks/a.png")
    assert sample("--mask", "box", mask="masks")[0] == 0
    path = Path("out/run.json")
    record = json.loads(path.read_text())
    assert record["options"]["mask_channel"] == "auto"
    for name in ("mask_channel", "mask_threshold", "soft_mask", "mask_resize", "mask_dilate", "mask_pattern"):
        del record["options"][name]
    path.write_text(json.dumps(record))
    assert sample("--mask", "box", "--overwrite", mask="masks")[0] == 0
    code, _, err = sample("--mask", "box", "--overwrite", mask="masks", mask_dilate=1)
    assert code == 2
    assert "results of --mask_dilate 0, this is 1" in err
