"""Fixtures of the tests of models."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def carrying(models: Path, tmp_path: Path):
    """Copies the adapter with an object "sampling"; returns its folder."""

    def make(sampling: object) -> Path:
        folder = tmp_path / "models" / "carrying"
        shutil.copytree(models / "base", tmp_path / "models" / "base", dirs_exist_ok=True)
        shutil.copytree(models / "adapter", folder, dirs_exist_ok=True)
        content = json.loads((folder / "rad_config.json").read_text())
        (folder / "rad_config.json").write_text(json.dumps(content | {"sampling": sampling}))
        return folder

    return make
