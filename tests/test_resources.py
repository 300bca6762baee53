"""Our configurations and checkpoints are found by name from any folder; nothing else is, and nothing of ours is a hub id."""

from pathlib import Path

import pytest

from rad import resources
from rad.cli import names
from rad.cli.main import find_config
from rad.console import program
from rad.models.weights import is_hub_id
from rad.resources import CHECKOUT, find_data, located, pip_install

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("rad_demo.yaml", "configs/rad_demo.yaml"),
        ("configs/nature64_names.json", "configs/nature64_names.json"),
        ("rad-nature32", "checkpoints/rad-nature32"),
        ("checkpoints/base-nature32", "checkpoints/base-nature32"),
    ],
)
def test_names_are_found_in_the_working_folder_then_the_checkout_then_the_package(name, place, elsewhere, monkeypatch):
    assert ROOT == CHECKOUT
    assert find_data(name) == ROOT / place
    package = elsewhere / "site-packages" / "rad"
    there = package / "_data" / place
    there.parent.mkdir(parents=True)
    there.write_text("")
    monkeypatch.setattr(resources, "PACKAGE", package)
    assert find_data(name) == ROOT / place
    monkeypatch.setattr(resources, "CHECKOUT", None)
    assert find_data(name) == there
    own = elsewhere / place
    own.parent.mkdir()
    own.write_text("")
    found = find_data(name)
    assert found is not None
    assert found.resolve() == own
    Path(Path(name).name).write_text("")
    if name == Path(name).name:
        assert find_data(name) == Path(name), "a path as given goes before all"


@pytest.mark.parametrize("name", ["", "rad", "nowhere", "rad/cli", "organisation/rad-nature32", "configs/../README.md"])
def test_no_other_file_is_found(name):
    assert find_data(name) is None
    assert located(name) == Path(name)


def test_our_folders_are_no_hub_ids():
    assert is_hub_id("organisation/name")
    assert not is_hub_id("checkpoints/photos")


def test_a_checkpoint_is_no_configuration():
    with pytest.raises(FileNotFoundError, match=r"rad_demo\.yaml"):
        find_config("rad-nature32")


def test_an_extra_is_installed_from_where_the_user_stands(monkeypatch):
    assert pip_install("text") == f"pip install -e '.[text]' in {ROOT}"
    monkeypatch.setattr(resources, "CHECKOUT", None)
    assert pip_install("text") == "pip install 'rad-inpainting[text]'"


@pytest.mark.parametrize(
    ("called", "shown"),
    [
        ("/usr/bin/rad", "rad sample"),
        (str(ROOT / "sample.py"), "python sample.py"),
        (str(ROOT / "rad" / "__main__.py"), "python -m rad sample"),
        (str(ROOT / "rad" / "masks" / "__main__.py"), "python -m rad.masks"),
        (str(ROOT / "rad" / "cli" / "doctor.py"), "python -m rad.cli.doctor"),
        ("elsewhere/sample.py", "rad sample"),
    ],
)
def test_messages_name_the_command_as_it_was_called(called, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", [called])
    assert program("sample") == shown


def test_the_names_in_help_texts_are_those_of_the_program():
    from typing import get_args

    from rad.diffusion.solvers import Solver
    from rad.diffusion.spacings import Spacing
    from rad.inpainting.inpainter import Polarity, Precision, SizePolicy
    from rad.masks.shapes import main_names
    from rad.methods import METHODS
    from rad.models.latent_mask import GridRule

    assert tuple(METHODS) == names.METHODS
    assert tuple(main_names()) == names.MASKS
    for mine, theirs in (
        (names.Solver, Solver),
        (names.Spacing, Spacing),
        (names.Polarity, Polarity),
        (names.SizePolicy, SizePolicy),
        (names.Precision, Precision),
        (names.GridRule, GridRule),
    ):
        assert get_args(mine) == get_args(theirs)


def test_the_stored_table_of_methods_is_the_generated_one():
    """After a change: python -c "from rad.methods.registry import table; print(table())" > rad/methods/methods.txt"""
    from rad.cli.sample.options import METHODS_TABLE
    from rad.methods.registry import table

    assert METHODS_TABLE.read_text(encoding="utf-8") == table() + "\n"
