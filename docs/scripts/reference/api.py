"""Pages of the Python packages, for mkdocstrings: the names in `__all__` of each."""

import pkgutil
from importlib import import_module
from inspect import getdoc

import rad

from .tables import prose

FOLDER = "reference/api"
OUTSIDE = {"rad.cli", "rad.studio"}
"""Packages of commands, which have pages of their own."""


def packages() -> list[str]:
    """Packages with public names."""
    found = [f"rad.{module.name}" for module in pkgutil.iter_modules(rad.__path__) if module.ispkg]
    return ["rad", *(name for name in found if name not in OUTSIDE and hasattr(import_module(name), "__all__"))]


def names(package: str) -> list[str]:
    """Public names: those of `__all__`, and the classes of all methods."""
    from rad.methods import METHODS

    module = import_module(package)
    public = [f"{package}.{name}" for name in module.__all__ if name != "__version__"]
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in METHODS.values()] if package == "rad.methods" else []
    return public + kinds


def page(package: str) -> str:
    """The page of a package."""
    options = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n      members: false\n"
    parts = [f"# {package}", f"::: {package}\n{options}"]
    if package == "rad.methods":
        parts.append("[Methods and settings](../methods.md) explains the settings of each class below.")
    for name in names(package):
        parts.append(f"::: {name}{_options(name)}")
    return "\n\n".join(parts) + "\n"


def _options(name: str) -> str:
    """Options of mkdocstrings that keep an entry short: a method's settings have a page of their own."""
    if name == "rad.methods.METHODS":
        return "\n    options:\n      show_attribute_values: false\n"
    return "\n    options:\n      members: false\n" if name.startswith("rad.methods.") and name.count(".") > 2 else ""


def overview() -> str:
    """The page that lists all packages."""
    rows = [f"| [`{name}`]({file(name)}) | {prose(summary(name))} |" for name in packages()]
    listed = "\n".join(["| Package | Contents |", "|---|---|", *rows])
    return f"""# Python API

`import rad` is light: a package loads when you use a name of it.
[Inpainting in Python](../../guides/python.md) is the guide to these packages.

{listed}
"""


def summary(package: str) -> str:
    """First line of the docstring of a package."""
    return (getdoc(import_module(package)) or "").partition("\n")[0]


def file(package: str) -> str:
    """File of the page of a package, in `FOLDER`."""
    return f"{package.removeprefix('rad.')}.md"


def pages() -> dict[str, str]:
    """All pages of the Python packages."""
    return {
        f"{FOLDER}/index.md": overview(),
        **{f"{FOLDER}/{file(package)}": page(package) for package in packages()},
    }
