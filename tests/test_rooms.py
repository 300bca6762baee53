"""The packages of rad/ and the imports between them, which follow the order of a table."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

RAD = Path(__file__).resolve().parents[1] / "rad"

BOTTOM = {"arguments", "keys", "errors", "modes", "rng", "console", "device", "lazy", "lock", "resources", "streams"}
"""Files directly in rad/, besides `__init__.py` and `__main__.py`; every package may import them."""

ALLOWED: dict[str, set[str]] = {
    "diffusion": set(),
    "networks": set(),
    "images": set(),
    "masks": {"images"},
    "models": {"diffusion", "networks", "images"},
    "sampling": {"diffusion", "models"},
    "methods": {"diffusion", "networks", "masks", "models", "sampling"},
    "inpainting": {"diffusion", "networks", "images", "masks", "models", "sampling", "methods"},
    "adaptation": {"diffusion", "networks", "masks", "models", "inpainting"},
    "pipelines": {"diffusion", "networks", "images", "models", "sampling", "inpainting"},
    "data": {"images", "masks"},
    "evaluation": {"images", "masks"},
    "runtime": {"diffusion", "networks", "images", "masks", "models", "inpainting"},
    "studio": {"images", "masks", "models", "sampling", "methods", "inpainting", "runtime"},
    "training": {"diffusion", "networks", "images", "masks", "models", "sampling", "methods", "data", "evaluation"},
}
"""Allowed imports of each package. The command lines, `cli` and every `__main__.py`, may import all."""

MOST_FILES = {
    "methods": 100,  # one file a method
    "training": 20,  # a callback or a group of settings each
}
"""Maximum number of files, for packages with more than ten, without `__init__.py` and `__main__.py`."""


def room(file: Path) -> str:
    """The package of a file, or the name of a file directly in rad/."""
    first = file.relative_to(RAD).parts[0]
    return "cli" if file.name == "__main__.py" else first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Packages that a file imports, also inside functions, without imports under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package in full"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "rad" else [str(node.module)]
            )
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("rad."))
        yield from imported(node)


@cache
def arrows() -> dict[str, set[str]]:
    """The imports between the packages."""
    targets_of: dict[str, set[str]] = {}
    for file in RAD.rglob("*.py"):
        targets = set(imported(ast.parse(file.read_text()))) - {room(file), "__version__"}
        targets_of.setdefault(room(file), set()).update(targets)
    return targets_of


def test_every_file_and_package_is_in_the_table() -> None:
    assert {file.stem for file in RAD.glob("*.py")} - {"__init__", "__main__"} == BOTTOM
    assert {folder.parent.name for folder in RAD.glob("*/__init__.py")} == {*ALLOWED, "cli"}


def test_imports_follow_the_table() -> None:
    targets_of = arrows()
    lowest = {"arguments", "lazy", "streams"}
    assert not any(targets_of[name] for name in lowest)
    for name in BOTTOM - lowest | {"__init__"}:
        allowed = lowest | {"keys"} if name == "rng" else lowest
        assert targets_of[name] <= allowed, f"rad/{name}.py imports {targets_of[name]}"
    for package, allowed in ALLOWED.items():
        assert targets_of[package] <= allowed | BOTTOM, (
            f"rad/{package}/ imports {targets_of[package] - allowed - BOTTOM}"
        )


def test_imports_have_no_cycles() -> None:
    TopologicalSorter(arrows()).prepare()  # raises CycleError
    order = list(ALLOWED)
    for package, targets in ALLOWED.items():
        assert all(order.index(target) < order.index(package) for target in targets), "imports go down the table"


def test_packages_are_small() -> None:
    for folder in {file.parent for file in RAD.rglob("*.py")} - {RAD}:
        files = [file for file in folder.glob("*.py") if file.name not in ("__init__.py", "__main__.py")]
        most = MOST_FILES.get(folder.name, 10)
        assert len(files) <= most, f"rad/{folder.relative_to(RAD)}/ has {len(files)} files; allowed are {most}"


def test_imports_inside_functions_count() -> None:
    source = "if TYPE_CHECKING:\n    import rad.cli.main\ndef f():\n    from rad.models.base import load_base\n"
    assert list(imported(ast.parse(source))) == ["models"]


def names_of(module: str) -> set[str]:
    """Names that a module of rad/ defines or imports, with the modules of a package and the texts of its `__all__`."""
    path = RAD.parent.joinpath(*module.split("."))
    names = {child.stem for child in path.glob("*")}
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_scripts_import_names_that_exist(folder):
    """Most scripts are too slow to be run by a test."""
    for file in (RAD.parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rad":
                missing = {name.name for name in node.names} - names_of(node.module or "")
                assert not missing, f"{file} imports {missing} from {node.module}"
