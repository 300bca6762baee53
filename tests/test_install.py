"""A wheel built from this checkout works in an empty folder, without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rad.cli.environment import tested_versions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built offline in a copy, since a build writes files beside the sources."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels"))
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("rad", "configs", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, ignore=leave_out)
    constraints = ("constraints.txt", "constraints-lowest.txt")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", *constraints):
        shutil.copy(ROOT / name, source / name)
    build = [*PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(target), str(source)]
    subprocess.run(build, check=True)
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the content of the wheel, without dependencies."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def rad(installed: Path, folder: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m rad` in `folder` with the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rad", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def test_the_wheel_is_small_and_contains_configurations_checkpoints_and_tested_versions(wheel):
    assert wheel.name.startswith("rad_inpainting-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        size = sum(entry.file_size for entry in archive.infolist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert size < 36e6
    assert "rad = rad.__main__:main" in entry_points
    configs = {path.name for path in (ROOT / "configs").iterdir()}
    assert configs == {Path(name).name for name in names if name.startswith("rad/_data/configs/")}
    assert {"rad/_data/constraints.txt", "rad/_data/constraints-lowest.txt"} <= set(names)
    assert "rad/evaluation/report/templates/report.html" in names
    assert "rad/methods/methods.txt" in names
    assert not [name for name in names if name.startswith(("tests", "configs", "checkpoints", "benchmarks"))]


def test_help_and_errors_come_from_the_installed_package(installed, tmp_path):
    assert "rad COMMAND" in rad(installed, tmp_path, "--help").stdout
    assert "did you mean sample?" in rad(installed, tmp_path, "smaple", code=2).stderr
    hint = "import rad.resources as r; print(r.__file__, r.pip_install('text'))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", hint], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split(" ", 1) == [
        str(installed / "rad" / "resources.py"), "pip install 'rad-inpainting[text]'\n"
    ]  # fmt: skip


def test_the_installed_package_knows_the_tested_versions(installed, tmp_path):
    program = "import rad.cli.environment as e; print(e.tested_versions() == eval(input()), e.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)},
        input=repr(tested_versions()), check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", str(installed / "rad" / "cli" / "environment.py")]


def test_sampling_and_training_work_from_an_empty_folder(installed, tmp_path):
    from tests.conftest import random_image

    random_image(32, 32).save(tmp_path / "in.png")
    (tmp_path / "elsewhere").mkdir()
    common = ("--image", tmp_path / "in.png", "--mask", "box", "--steps", 2, "--device", "cpu", "--output")
    rad(installed, tmp_path, "sample", "--checkpoint", "rad-nature32", *common, "filled.png")
    assert (tmp_path / "filled.png").is_file()
    short = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 1, "--data.batch_size", 2)
    rad(installed, tmp_path, "train", "--config", "rad_demo.yaml", *short, "--trainer.enable_progress_bar", "false")
    trained = tmp_path / "runs" / "rad_demo" / "checkpoints" / "step=1-ema"
    assert '"base": "checkpoints/photos"' in (trained / "rad_config.json").read_text(), "no local path"
    rad(installed, tmp_path / "elsewhere", "sample", "--checkpoint", trained, *common, "filled.png")
    assert (tmp_path / "elsewhere" / "filled.png").is_file()
