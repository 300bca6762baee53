"""Your own methods: registered from Python, or loaded from a file as `FILE.py:CLASS`. Loading runs the file's code."""

import hashlib
import inspect
import re
import sys
import threading
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from rad.sampling.method import CustomSampler, Method, SamplingMethod, name_of

Kind = TypeVar("Kind", bound=type[Method])


@dataclass(frozen=True)
class MethodFile:
    """File of a method outside this package: its absolute path, and the SHA-256 of the code that ran."""

    path: Path
    sha256: str


_loaded: dict[str, MethodFile] = {}
"""The files that `load` ran, by the name of their module."""

_loading = threading.RLock()
"""Held by `load`, so that no other thread sees a file that has not run to its end."""


def register(kind: Kind, *, name: str | None = None) -> Kind:
    """Register a method under a name, for `Inpainter`, `--method`, comparisons and reports. Returns `kind`.

        @rad.methods.register
        @dataclass(frozen=True)
        class MyMethod(SamplingMethod): ...

    Registering a class again, as in a notebook, replaces it.

    Args:
        kind: a dataclass derived from `SamplingMethod` or `CustomSampler`, whose fields all have defaults.
        name: lower-case letters, digits, "-" and "_"; None: the name of its file in lower case.

    Raises:
        ValueError: another kind of class, or a name that is invalid or taken.
    """
    from rad.methods import METHODS

    _check(kind)
    name = _file_name(kind) if name is None else name
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) is None:
        raise ValueError(
            f"method name {name!r}: allowed are lower-case letters, digits, '-' and '_': give another name"
        )
    if kind in METHODS.values() and name_of(kind) != name:
        raise ValueError(f"{kind.__name__} is registered as {name_of(kind)!r} already: use that name")
    present = METHODS.get(name)
    if present is not None and _identity(present) != _identity(kind):
        raise ValueError(
            f"the method name {name!r} is taken by {present.__module__}.{present.__qualname__}: "
            "rename the file, or call register(..., name=...) in it"
        )
    kind.registered_name = name
    METHODS[name] = kind
    return kind


def split_file(text: str) -> tuple[str, str]:
    """Split `"a/mine.py:Mine@20"` into `("a/mine.py:Mine", "@20")`; the first is empty if `text` names no file."""
    match = re.match(r".+?\.py:[A-Za-z_]\w*", text)
    return ("", text) if match is None else (match[0], text[match.end() :])


def load(text: str, *, sha256: str | None = None) -> type[Method]:
    """Load and register the method `FILE.py:CLASS`. Runs the file, unless it ran before and is unchanged.

    Raises:
        ValueError: missing file, class or method; failing code; a taken name; a hash other than `sha256`.
    """
    with _loading:
        return _load(text, sha256)


def _load(text: str, sha256: str | None) -> type[Method]:
    from rad.methods import METHODS

    file, _, class_name = text.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"method {text}: there is no file {path}: give FILE.py:CLASS")
    code = path.read_bytes()
    current = MethodFile(path, hashlib.sha256(code).hexdigest())
    if sha256 is not None and current.sha256 != sha256:
        raise ValueError(f"{path} changed while the run was starting: start it again")
    module = f"{__name__}.{path.stem.lower()}"
    before = _loaded.get(module)
    if before is not None and before.path != path:
        raise ValueError(
            f"method {text}: the name {path.stem.lower()!r} is taken by {before.path}: rename one of the files"
        )
    if before != current:
        _run(code, module, current)
    kind = vars(sys.modules[module]).get(class_name)
    if kind is None or getattr(kind, "__module__", module) != module:
        known = [
            name for name, value in vars(sys.modules[module]).items() if getattr(value, "__module__", "") == module
        ]
        raise ValueError(f"{path} defines no class {class_name!r}; it defines {', '.join(known) or 'none'}")
    return kind if any(kind is method for method in METHODS.values()) else register(kind)


def file_of(kind: type[Method]) -> MethodFile | None:
    """File of a method outside this package; None if there is none."""
    if not is_own(kind):
        return None
    if kind.__module__ in _loaded:
        return _loaded[kind.__module__]
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    return MethodFile(Path(file).resolve(), hashlib.sha256(Path(file).read_bytes()).hexdigest())


def loaded_from(kind: type[Method]) -> tuple[str, str] | None:
    """Arguments (text, sha256) of `load` for this class in another process; None if `load` did not load it."""
    file = _loaded.get(kind.__module__)
    return None if file is None else (f"{file.path}:{kind.__name__}", file.sha256)


def is_own(kind: type[Method]) -> bool:
    """Whether a method was defined outside this package."""
    return kind.__module__.rpartition(".")[0] != __package__


def _run(code: bytes, name: str, file: MethodFile) -> None:
    from rad.methods import METHODS

    for method in [method for method, kind in METHODS.items() if kind.__module__ == name]:
        del METHODS[method]  # from the file before its change
    module = ModuleType(name)
    module.__file__ = str(file.path)
    sys.modules[name] = module  # read by dataclasses and pickle
    _loaded[name] = file
    try:
        exec(compile(code, str(file.path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name], _loaded[name]
        raise ValueError(f"{file.path} cannot be loaded: {type(error).__name__}: {error}") from error


def _check(kind: type[Method]) -> None:
    if not (isinstance(kind, type) and issubclass(kind, SamplingMethod | CustomSampler)):
        name = getattr(kind, "__name__", repr(kind))
        raise ValueError(
            f"{name} is not a method: derive it from SamplingMethod or CustomSampler (rad.sampling.method)"
        )
    if "__dataclass_fields__" not in vars(kind):
        raise ValueError(f"{kind.__name__} is not a dataclass: put @dataclass(frozen=True) above the class")
    if inspect.isabstract(kind):
        raise ValueError(f"{kind.__name__} has no run(): a CustomSampler has to define it")
    missing = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    if missing:
        raise ValueError(f"{kind.__name__} has settings without a default: give {', '.join(missing)} a default")


def _file_name(kind: type[Method]) -> str:
    if kind.__module__ != "__main__":
        return kind.__module__.rpartition(".")[2].lower()
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        raise ValueError(f"{kind.__name__} has no file to name it after: call register(..., name=...)")
    return Path(file).stem.lower()


def _identity(kind: type[Method]) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__
