"""Shipped configurations and checkpoints are found by name from any folder; other names are not, and none is a hub id."""

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
def working_folder(tmp_path, monkeypatch):
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
def test_lookup_order_is_working_folder_checkout_package(name, place, working_folder, monkeypatch):
    assert ROOT == CHECKOUT
    assert find_data(name) == ROOT / place
    package = working_folder / "site-packages" / "rad"
    packaged = package / "_data" / place
    packaged.parent.mkdir(parents=True)
    packaged.write_text("")
    monkeypatch.setattr(resources, "PACKAGE", package)
    assert find_data(name) == ROOT / place
    monkeypatch.setattr(resources, "CHECKOUT", None)
    assert find_data(name) == packaged
    local = working_folder / place
    local.parent.mkdir()
    local.write_text("")
    path = find_data(name)
    assert path is not None
    assert path.resolve() == local
    Path(Path(name).name).write_text("")
    if name == Path(name).name:
        assert find_data(name) == Path(name), "the path as given has priority"


@pytest.mark.parametrize("name", ["", "rad", "nowhere", "rad/cli", "organisation/rad-nature32", "configs/../README.md"])
def test_other_names_are_not_found(name):
    assert find_data(name) is None
    assert located(name) == Path(name)


def test_shipped_folders_are_not_hub_ids():
    assert is_hub_id("organisation/name")
    assert not is_hub_id("checkpoints/photos")


def test_checkpoint_is_not_a_configuration():
    with pytest.raises(FileNotFoundError, match=r"rad_demo\.yaml"):
        find_config("rad-nature32")


def test_hint_installs_an_extra_from_the_checkout_or_the_index(monkeypatch):
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
def test_messages_name_the_command_that_was_called(called, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", [called])
    assert program("sample") == shown


def test_names_in_help_texts_match_the_registries():
    from typing import get_args

    from rad.diffusion.solvers import Solver
    from rad.diffusion.spacings import Spacing
    from rad.inpainting.inpainter import Precision, SizePolicy
    from rad.inpainting.prepare import NoiseDevice
    from rad.masks.shapes import main_names
    from rad.methods import METHODS
    from rad.models.latent_mask import GridRule
    from rad.models.memory.choices import Offload, Quantize
    from rad.networks.compiled import CompileMode

    assert tuple(METHODS) == names.METHODS
    assert tuple(main_names()) == names.MASKS
    for mine, theirs in (
        (names.Solver, Solver),
        (names.Spacing, Spacing),
        (names.SizePolicy, SizePolicy),
        (names.Precision, Precision),
        (names.CompileMode, CompileMode),
        (names.NoiseDevice, NoiseDevice),
        (names.Offload, Offload),
        (names.Quantize, Quantize),
        (names.GridRule, GridRule),
    ):
        assert get_args(mine) == get_args(theirs)


def test_the_stored_table_of_methods_is_the_generated_one():
    """After a change run `make methods-table`."""
    from rad.cli.sample.options import METHODS_TABLE
    from rad.methods.registry import table

    assert METHODS_TABLE.read_text(encoding="utf-8") == table() + "\n"
