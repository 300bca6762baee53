"""Measures the time of `import rad` in a fresh process, against an empty program and `import torch`.

    python benchmarks/import_time.py

Prints seconds of the three and their ratios. `import rad` must stay near the empty program, since modules load on first use.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"empty program": "pass", "import rad": "import rad", "import torch": "import torch"}


def start(program: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds of `import rad` in a fresh process")
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    timing.print_setting("Fresh processes, files already in the disk cache", repeats=repeats)
    runs = {name: start(program) for name, program in PROGRAMS.items()}
    compared = timing.compare(timing.interleaved(runs, repeats=repeats), to="empty program")
    timing.print_table(["program", *timing.COMPARED], [[name, *cells] for name, cells in compared.items()])


if __name__ == "__main__":
    main()
