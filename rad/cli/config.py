"""Checks a configuration file before a parser reads it, whose errors do not name the file."""

from pathlib import Path

import yaml

from rad.console import one_line


def check_config(path: str | Path) -> None:
    """Raise ValueError unless a file holds settings in YAML and UTF-8. The parser reports a missing file."""
    path = Path(path)
    if not path.is_file():
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"--config {path} is not UTF-8 text: save it in this encoding") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"parsing config {path} failed ({_place(error)}): correct it") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} holds no settings: write lines of NAME: VALUE")


def _place(error: Exception) -> str:
    return one_line(error).replace(' in "<unicode string>",', "")
