"""Times a new process that fills a 32x32 image, with PyTorch and with ONNX Runtime: wall time, peak memory, time per call.

    python benchmarks/cold_start.py --repeats 5

Exports the model to a temporary folder. The processes run in turn (A B A B ...), after one of each that is not counted.
Prints a Markdown table with medians, and the smallest and largest values. Linux only, for the peak memory.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import skimage.data
from PIL import Image

from rad.cli.hub.export import main as export

FILL = """
import re
from {module} import {name}
result = {name}.from_pretrained({model!r})("image.png", "mask.png", steps={steps})
result.images[0].save("filled.png")
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], result.seconds)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time new processes that fill an image.")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints" / "rad-nature32"), help="pixel model with RAD")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        assert export([options.checkpoint, "--onnx", f"{folder}/onnx"]) == 0
        runs = {
            "torch": FILL.format(module="rad", name="Inpainter", model=options.checkpoint, steps=options.steps),
            "onnx": FILL.format(
                module="rad.runtime", name="OnnxInpainter", model=f"{folder}/onnx", steps=options.steps
            ),
        }
        figures = {name: [] for name in runs}
        for number in range(options.repeats + 1):
            for name, code in runs.items():
                values = measure(code, folder, steps=options.steps)
                figures[name] += [values] if number else []
    print(f"{Path(options.checkpoint).name}, 32x32, {options.steps} steps, {options.repeats} processes each; CPU.\n")
    print("| runtime | process s | peak MB | ms per call |\n| --- | ---: | ---: | ---: |")
    for name, rows in figures.items():
        cells = (
            f"{statistics.median(column):.{digits}f} ({min(column):.{digits}f} to {max(column):.{digits}f})"
            for column, digits in zip(zip(*rows, strict=True), (2, 0, 1), strict=True)
        )
        print(f"| {name} | {' | '.join(cells)} |")


def write_inputs(folder: Path) -> None:
    """A photograph and a square hole of a quarter of its area."""
    Image.fromarray(skimage.data.astronaut()).resize((32, 32)).save(folder / "image.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def measure(code: str, folder: str, *, steps: int) -> tuple[float, float, float]:
    """Wall seconds of a process, its peak memory in MB, and milliseconds of its sampling loop per step."""
    began = time.perf_counter()
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    memory, loop = done.stdout.split()[-2:]
    return seconds, int(memory) / 1024, 1000 * float(loop) / steps


if __name__ == "__main__":
    main()
