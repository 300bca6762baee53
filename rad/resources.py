"""The configurations and small checkpoints that come with rad, found in any installation; the command that installs an extra."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
"""The folder of the project, if rad runs from one; None for an installed package."""

EXPORTED = "runtime.json"
"""The settings in a folder of `rad export --onnx`, which make a folder one."""

FOLDERS = ("configs", "checkpoints")


def find_data(name: str | Path) -> Path | None:
    """A configuration or checkpoint by name: `rad_demo.yaml`, `rad-nature32` or `checkpoints/base-nature32`.

    The search order is: an existing path, then `configs/` and `checkpoints/` of the working folder, the checkout, the package.
    None for an unknown name.
    """
    path = Path(name).expanduser()
    if not path.parts or path.exists():
        return path if path.parts else None
    named = path.parts[0] in FOLDERS and ".." not in path.parts
    if not named and len(path.parts) > 1:
        return None
    candidates = [path] if named else [Path(folder) / path for folder in FOLDERS]
    return next((root / path for root in _roots() for path in candidates if (root / path).exists()), None)


def located(source: str | Path) -> Path:
    """The path from `find_data`, else `source` unchanged."""
    return find_data(source) or Path(source).expanduser()


def is_data_name(source: str | Path) -> bool:
    """Whether `source` begins with one of `FOLDERS` or runs/, as "checkpoints/mine", and is no hub id."""
    return Path(source).parts[:1] in {(folder,) for folder in (*FOLDERS, "runs")}


def config_names() -> list[str]:
    """The configurations of the working folder, the checkout and the package, sorted."""
    return sorted({path.name for root in _roots() for path in (root / "configs").glob("*.yaml")})


def checkpoint_names() -> list[str]:
    """The folders in checkpoints/ of the working folder, the checkout and the package, sorted."""
    return sorted({path.name for root in _roots() for path in (root / "checkpoints").glob("*/")})


def pip_install(extra: str) -> str:
    """The command that installs an extra of rad, such as "text": in a checkout, or beside the installed package."""
    if CHECKOUT is not None:
        return f"pip install -e '.[{extra}]' in {CHECKOUT}"
    return f"pip install 'rad-inpainting[{extra}]'"


def _roots() -> list[Path]:
    return [Path(), *([CHECKOUT] if CHECKOUT else []), PACKAGE / "_data"]
