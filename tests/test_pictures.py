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
    for name in ("pictures", "methods", "gallery", "hero", "noise_maps"):
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
