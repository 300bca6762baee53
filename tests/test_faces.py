"""The public names of each package exist, load on first use, and are the class paths of configurations."""

import ast
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

from rad.lazy import lazy_names
from tests.cli.test_import import loaded_by

LIGHT = (
    "adaptation",
    "data",
    "diffusion",
    "evaluation",
    "images",
    "inpainting",
    "masks",
    "models",
    "networks",
    "pipelines",
    "sampling",
    "training",
)


@pytest.mark.parametrize("name", ["rad", *(f"rad.{package}" for package in LIGHT)])
def test_every_public_name_exists_and_comes_from_its_package(name: str) -> None:
    package = import_module(name)
    for public in package.__all__:
        value = getattr(package, public)
        assert str(getattr(value, "__module__", name)).startswith((name, "typing", "builtins")), public
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["rad", *(f"rad.{package}" for package in (*LIGHT, "methods"))])
def test_the_docstring_of_a_package_shows_a_use(name: str) -> None:
    """An example of one to five lines that calls a public name."""
    package = import_module(name)
    example = dedent(str(package.__doc__).split("Example:\n")[1])
    tree = ast.parse(example)
    assert 1 <= len(example.strip().splitlines()) <= 5
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert used & set(package.__dict__.get("__all__", dir(package)))


def test_importing_the_packages_does_not_load_torch() -> None:
    loaded = loaded_by("; ".join(f"import rad.{package}" for package in LIGHT))
    assert {"rad.training", "rad.diffusion"} <= loaded
    assert not loaded & {"torch", "numpy", "diffusers", "lightning", "peft", "PIL"}


def test_public_name_loads_only_its_own_module() -> None:
    get = lazy_names("tests", {"rounding": "doubled assert_same", "absent": "missing"})
    assert get("doubled") is import_module("tests.rounding").doubled
    with pytest.raises(AttributeError, match="module 'tests' has no attribute 'other'"):
        get("other")


def test_configurations_use_public_class_paths() -> None:
    """Each `class_path` is rad.PACKAGE.CLASS."""
    for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"):
        for line in path.read_text().splitlines():
            if "class_path: rad." in line:
                names = line.split("class_path: ")[1].split(",")[0].strip("} ").split(".")
                assert len(names) == 3, f"{path.name}: {line.strip()}"
                assert names[2] in import_module(f"rad.{names[1]}").__all__
