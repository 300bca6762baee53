"""The packages of rad/ and the arrows between them: imports go one way, down the table."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

RAD = Path(__file__).resolve().parents[1] / "rad"

BOTTOM = {"rng", "console", "device", "lazy", "resources"}
"""The files that lie directly in rad/, beside `__init__.py` and `__main__.py`; every package may import them."""

ALLOWED: dict[str, set[str]] = {
    "diffusion": set(),
    "networks": set(),
    "images": set(),
    "masks": {"images"},
    "models": {"diffusion", "networks", "images"},
    "sampling": {"diffusion", "models"},
    "methods": {"diffusion", "networks", "masks", "models", "sampling"},
    "inpainting": {"diffusion", "networks", "images", "masks", "models", "sampling", "methods"},
    "data": {"images", "masks"},
    "evaluation": {"images", "masks"},
    "training": {"diffusion", "networks", "images", "masks", "models", "sampling", "methods", "data", "evaluation"},
}
"""What each package may import. The command lines, `cli` and every `__main__.py`, may import all."""

MOST_FILES = {
    "methods": 100,  # one file a method
    "models": 11,  # the loaders of base models become one
    "cli": 14,  # the options and names of `rad sample` become one dataclass
}
"""Files of a package that has more than ten; `__init__.py` and `__main__.py` are not counted."""


def room(file: Path) -> str:
    """The package of a file, or its own name directly in rad/."""
    first = file.relative_to(RAD).parts[0]
    return "cli" if file.name == "__main__.py" else first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Rooms that a file imports, also inside functions; those under TYPE_CHECKING are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package in full"
            names = [f"{node.module}.{one.name}" for one in node.names] if node.module == "rad" else [str(node.module)]
        else:
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("rad."))
        yield from imported(node)


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in RAD.rglob("*.py"):
        targets = set(imported(ast.parse(file.read_text()))) - {room(file), "__version__"}
        found.setdefault(room(file), set()).update(targets)
    return found


def test_every_file_has_its_room() -> None:
    assert {file.stem for file in RAD.glob("*.py")} - {"__init__", "__main__"} == BOTTOM
    assert {folder.parent.name for folder in RAD.glob("*/__init__.py")} == {*ALLOWED, "cli"}


def test_imports_go_down_the_table() -> None:
    found = arrows()
    for name in BOTTOM - {"lazy"} | {"__init__"}:
        assert found[name] <= {"lazy"}, f"rad/{name}.py imports {found[name]}"
    for package, targets in ALLOWED.items():
        assert found[package] <= targets | BOTTOM, f"rad/{package}/ may not import {found[package] - targets - BOTTOM}"


def test_no_package_imports_itself_in_a_circle() -> None:
    TopologicalSorter(arrows()).prepare()  # raises CycleError
    order = list(ALLOWED)
    for package, targets in ALLOWED.items():
        assert all(order.index(target) < order.index(package) for target in targets), "the table reads downwards"


def test_a_package_is_small() -> None:
    for folder in {file.parent for file in RAD.rglob("*.py")} - {RAD}:
        files = [file for file in folder.glob("*.py") if file.name not in ("__init__.py", "__main__.py")]
        most = MOST_FILES.get(folder.name, 10)
        assert len(files) <= most, f"rad/{folder.relative_to(RAD)}/ has {len(files)} files; allowed are {most}"


def test_an_import_inside_a_function_counts() -> None:
    source = "if TYPE_CHECKING:\n    import rad.cli.main\ndef f():\n    from rad.models.base import load_base\n"
    assert list(imported(ast.parse(source))) == ["models"]
