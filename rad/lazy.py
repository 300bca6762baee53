"""Public names of a package, imported on first use (PEP 562): the import of the package loads nothing heavy."""

from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of `package`.

    Args:
        homes: for each module of the package, its public names, separated by spaces.
    """
    modules = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
