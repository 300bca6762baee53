"""`import rad` is light: heavy packages load on first use."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(program: str) -> set[str]:
    """Names of the loaded modules after `program` ran in a fresh process."""
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


def test_help_and_wrong_options_load_no_heavy_package() -> None:
    for words in (["--help"], ["sample", "--help"], ["sample", "--checkpont", "x"], ["smaple"]):
        program = f"from rad.__main__ import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
        loaded = loaded_by(program)
        assert "rad.console" in loaded
        assert not loaded & {"torch", "numpy", "diffusers", "lightning", "peft", "PIL", "yaml"}, words
