"""`import rad` is light: what is heavy is loaded by the first use."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(program: str) -> set[str]:
    """Names of the modules that are loaded in a fresh process after `program`."""
    program += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_rad_loads_no_heavy_package() -> None:
    loaded = loaded_by("import rad")
    assert "rad" in loaded
    assert not loaded & {"torch", "numpy", "diffusers", "lightning", "peft", "PIL"}


def test_the_first_use_of_the_inpainter_loads_what_it_needs() -> None:
    assert {"torch", "rad.inpainting.inpainter"} <= loaded_by("import rad; rad.Inpainter")


def test_help_and_mistakes_in_options_load_no_heavy_package() -> None:
    for words in (["--help"], ["sample", "--help"], ["sample", "--checkpont", "x"], ["smaple"], ["masks", "--help"]):
        program = f"from rad.__main__ import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
        loaded = loaded_by(program)
        assert "rad.console" in loaded
        assert not loaded & {"torch", "numpy", "diffusers", "lightning", "peft", "PIL", "yaml"}, words
