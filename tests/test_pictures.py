"""The pictures of docs/concepts and docs/gallery.md: complete, used, small, and equal to what their scripts write."""

import importlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from rad.methods import METHODS
from rad.methods.registry import cost
from tests.pages import DOCS, commands

IMAGES = DOCS / "images"
PAGE = (DOCS / "concepts" / "methods.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0].strip(): part for part in re.split(r"^###? ", PAGE, flags=re.MULTILINE)[1:]}
LARGEST = 1_500_000


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "scripts")
    before = set(sys.modules)
    yield importlib.import_module
    for name in ("pictures", "methods", "gallery", "hero", "race", "noise_maps"):
        if name not in before:
            sys.modules.pop(name, None)


def built_in() -> list[str]:
    return [name for name, kind in METHODS.items() if kind.__module__.startswith("rad.methods.")]


def test_every_method_has_a_section_and_no_other_name_has_one():
    sections = set(re.findall(r"^### (.+)$", PAGE, re.MULTILINE))
    assert sections == set(built_in())


def test_the_table_of_methods_has_the_costs_of_their_presets():
    rows = {
        name: (steps, calls)
        for name, steps, calls in re.findall(r"^\| \[`(\w+)`\].*\|\s*(\d*)\s*\| ([^|]*) \|$", PAGE, re.M)
    }
    assert list(sorted(rows)) == sorted(built_in())
    for name, (steps, calls) in rows.items():
        method = METHODS[name]()
        work = cost(method, method.preset_steps)
        assert calls == (f"{work.nfe} + {work.vjp} VJP" if work.vjp else str(work.nfe)), name
        assert steps == (str(method.preset_steps) if work.nfe else ""), name


def test_the_page_on_conformance_has_the_methods_of_its_script(monkeypatch):
    monkeypatch.syspath_prepend(DOCS.parent / "benchmarks")
    page = (DOCS / "results" / "conformance.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert shown == set(importlib.import_module("conformance").BLIND) & set(built_in())


def test_every_method_has_its_strip(script):
    methods = script("methods")
    for name in built_in():
        shown = re.findall(r"\(\.\./images/methods/(\w+)\.webp\)", SECTIONS[name])
        assert shown == ([] if name in (*methods.BASELINES, *methods.WITHOUT_FIGURE) else [name])


@pytest.mark.parametrize("folder", ["methods", "gallery"])
def test_pictures_are_used_and_small(folder):
    files = sorted((IMAGES / folder).iterdir())
    text = PAGE + (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert [file.name for file in files if f"images/{folder}/{file.name})" not in text] == []
    assert 0 < sum(file.stat().st_size for file in files) < LARGEST


def test_the_gallery_shows_the_commands_of_its_script(script):
    cases = script("gallery").CASES
    assert commands("gallery.md") == [case.command(name).split()[1:] for name, case in cases.items()]


def test_the_detail_of_the_hero_is_where_two_images_differ_most(script):
    hero = script("hero")
    assert set(hero.SHOWN) <= set(hero.CASES)
    first = Image.new("RGB", (hero.WIDTH, hero.HEIGHT), "grey")
    second = first.copy()
    second.paste("white", (301, 120, 301 + hero.DETAIL, 120 + hero.DETAIL))
    second.paste("white", (20, 30, 40, 50))
    box = hero.detail_box(first, second)
    assert box == (301, 120, 301 + hero.DETAIL, 120 + hero.DETAIL)
    shown = np.asarray(hero.with_detail(second, box, (False, True)))
    side = hero.DETAIL * hero.ZOOM
    assert (shown[-side + 5 : -5, 5 : side - 5] == 255).all(), "the corner at the lower left"


def test_the_race_counts_the_calls_of_one_window(script):
    calls = script("race").calls
    assert calls("rad@4", 58) == 4
    assert calls("ddnm", 1400) == cost(METHODS["ddnm"](), METHODS["ddnm"].preset_steps).nfe
    assert calls("repaint@100nfe", 1400) == 100
    assert calls("repaint@20", 80, one_window=True) == 80, "with settings of its own"
    assert calls("deepinv-ddrm", 20) == 20, "other systems fill the whole image at once"
    assert calls("telea", 0) == calls("biharmonic", 0) == 0


@pytest.mark.slow
def test_the_race_shows_the_rows_of_its_results(script, tmp_path):
    race = script("race")
    lines = ["mask,method,images,nfe,psnr-hole,psnr-hole_low,psnr-hole_high", "box,rad@1,3,7,20,19,21"]
    lines += [
        "box,rad@4,3,28,22,21,23",
        "box,deepinv-ddrm,3,20,18,,",
        "box,biharmonic,3,0,21,20,22",
        "half,rad@1,3,7,9,9,9",
    ]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "sets.csv").write_text("\n".join(lines) + "\n")
    points = race.read(tmp_path / "results" / "sets.csv", "box", "psnr-hole")
    assert [(point.system, point.calls, point.value) for point in points] == [
        ("rad@1", 1, 20), ("rad@4", 4, 22), ("deepinv-ddrm", 20, 18), ("biharmonic", 0, 21)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="fd-crop of box"):
        race.read(tmp_path / "results" / "sets.csv", "box", "fd-crop")
    race.main([str(tmp_path), "--items", "box", "--metric", "psnr-hole", "--output", str(tmp_path / "race.webp")])
    assert Image.open(tmp_path / "race.webp").width == race.WIDTH


@pytest.mark.slow
def test_the_strip_of_a_run_can_be_regenerated(script, tmp_path):
    methods = script("methods")
    methods.main(["rad"], tmp_path)
    old, new = (
        np.asarray(Image.open(folder / "rad.webp").convert("RGB"), float) for folder in (IMAGES / "methods", tmp_path)
    )
    assert new.shape == old.shape
    assert np.sqrt(np.mean((new - old) ** 2)) < 4  # grey levels; rounding of the network and of WebP


@pytest.mark.slow
def test_a_picture_of_the_gallery_can_be_regenerated(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = np.asarray(script("gallery").picture("sampled").convert("RGB"), float)
    old = np.asarray(Image.open(IMAGES / "gallery" / "sampled.webp").convert("RGB"), float)
    assert new.shape == old.shape
    assert np.sqrt(np.mean((new - old) ** 2)) < 6
