"""`import rad` and help texts load no heavy package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(program: str) -> set[str]:
    """Names of the modules loaded by `program` in a new process."""
    program += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_rad_loads_no_heavy_package() -> None:
    loaded = loaded_by("import rad")
    assert "rad" in loaded
    assert not loaded & {"torch", "numpy", "diffusers", "lightning", "peft", "PIL"}


def test_first_use_of_the_inpainter_imports_torch() -> None:
    """Without torch, which takes seconds to import, `import rad` works and `rad.Inpainter` raises the ImportError."""
    use = "try:\n    rad.Inpainter\nexcept ImportError as error:\n    print(error.name)"
    program = f"import sys, rad\nsys.modules['torch'] = None\n{use}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "torch\n"


def test_help_and_errors_in_options_load_no_heavy_package() -> None:
    sample = [["sample", word] for word in ("--help", "--checkpont", "--list_methods")]
    for words in (
        ["--help"],
        ["train", "--help"],
        ["masks", "--help"],
        ["smaple"],
        ["export", "--help"],
        ["push", "--help"],
        *sample,
    ):
        program = f"from rad.__main__ import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
        loaded = loaded_by(program)
        assert "rad.console" in loaded
        assert not loaded & {"torch", "numpy", "diffusers", "lightning", "peft", "PIL"}, words


def test_images_and_masks_are_read_without_torch(tmp_path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    program = (
        "import numpy, rad.images.sources\n"
        "from rad.masks.reading.hole import load_hole\n"
        f"(file,) = rad.images.sources.list_images({str(tmp_path / 'mask.png')!r})\n"
        "assert (load_hole(file.file(), image=file.open()).hole == numpy.ones((8, 8))).all()"
    )
    assert not loaded_by(program) & {"torch", "diffusers", "lightning", "peft"}


def test_the_summary_of_train_names_settings_of_the_full_help(capsys) -> None:
    from rad.cli import main

    assert main.train(["--help"]) == 0
    summary = capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main.train(["--config", "rad_demo.yaml", "--help"])
    assert stopped.value.code == 0
    full = capsys.readouterr().out
    settings = set(re.findall(r"--[a-z][\w.]+", summary))
    assert len(settings) >= 9
    assert not {setting for setting in settings if setting not in full}
    assert "rad_demo.yaml" in summary
