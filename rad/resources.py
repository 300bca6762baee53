"""The configurations and small checkpoints that come with rad, wherever it is installed; and how to install an extra."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
"""The folder of the project, if rad runs from one; None for an installed package."""


FOLDERS = ("configs", "checkpoints")


def find_data(name: str | Path) -> Path | None:
    """A configuration or checkpoint by name: `rad_demo.yaml`, `rad-nature32` or `checkpoints/base-nature32`.

    A path that exists comes first, then `configs/` and `checkpoints/` of the working folder, of the checkout and of the installed
    package. None if there is nothing of that name.
    """
    path = Path(name).expanduser()
    if not path.parts or path.exists():
        return path if path.parts else None
    named = path.parts[0] in FOLDERS and ".." not in path.parts
    if not named and len(path.parts) > 1:
        return None
    candidates = [path] if named else [Path(folder) / path for folder in FOLDERS]
    return next((root / one for root in _roots() for one in candidates if (root / one).exists()), None)


def located(source: str | Path) -> Path:
    """`source` as a path, found as by `find_data`; unchanged where nothing is found."""
    return find_data(source) or Path(source).expanduser()


def is_data_name(source: str | Path) -> bool:
    """Whether `source` names a file of ours, such as "checkpoints/mine", so it is no hub id."""
    return Path(source).parts[:1] in {(folder,) for folder in FOLDERS}


def config_names() -> list[str]:
    """The configurations of the working folder, the checkout and the package, sorted."""
    return sorted({path.name for root in _roots() for path in (root / "configs").glob("*.yaml")})


def pip_install(extra: str) -> str:
    """The command that installs an extra of rad, such as "text": in a checkout, or beside the installed package."""
    if CHECKOUT is not None:
        return f"pip install -e '.[{extra}]' in {CHECKOUT}"
    return f"pip install 'rad-inpainting[{extra}]'"


def _roots() -> list[Path]:
    return [Path(), *([CHECKOUT] if CHECKOUT else []), PACKAGE / "_data"]
