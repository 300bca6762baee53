"""Checks that shared and interrupted sampling gives the files of a single process, with thousands of images.

    python benchmarks/sharding.py --images 2000 --kills 10

Inpaints the images in four ways: one process, two processes, three shards, and a run that is killed repeatedly. Prints for each
whether its files equal those of one process, byte for byte, and how many failures it reports. Some input files are broken: each
must be reported, and all others inpainted. The network is small and random; each process has one CPU thread.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rad.diffusion.schedules import linear_betas
from rad.models.base import save_base
from tests.conftest import make_adapter, random_image
from tests.tiny_networks import small_unet

SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--broken", type=int, default=40, help="number of files that are truncated or not images")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        save_base("base", small_unet(size=SIZE), betas=linear_betas(), half=False)
        make_adapter(Path("adapter"), Path("base"), seed=1)
        Path("in").mkdir()
        for number in range(options.images):
            random_image(SIZE, SIZE, seed=number).save(f"in/{number:05}.png")
        broken = random.sample(sorted(Path("in").iterdir()), options.broken)
        for number, path in enumerate(broken):
            path.write_bytes(path.read_bytes()[:100] if number % 2 else b"no image")
        whole = finish("one")
        print(f"one process: {len(files('one'))} of {options.images} images filled, {failures(whole)}")
        two = finish("two", "--devices", "2")
        print(f"two processes: {failures(two)}; {compare('two')}")
        for shard in ("1/3", "2/3", "3/3"):
            finish("shards", "--shard", shard)
        print(f"three shards: {compare('shards')}")
        stopped = [kill("killed") for _ in range(options.kills)]
        before = finished("killed")
        print(f"killed {options.kills} times (SIGKILL), with {stopped} images finished each time")
        last = finish("killed")
        kept = sum(name in before and stamp == before[name] for name, stamp in finished("killed").items())
        print(
            f"after the kills: {failures(last)}; {kept} of {len(before)} finished images were kept; {compare('killed')}"
        )


def start(output: str, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "sample.py"), "--checkpoint", "adapter", "--image", "in", "--mask", "box"]
    command += ["--steps", "2", "--batch_size", "16", "--output", output, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(output: str, *words: str) -> str:
    running = start(output, *words)
    err = running.communicate()[1]
    if running.returncode not in (0, 2, 3) or "Traceback" in err:  # 2: no remaining image could be read
        raise SystemExit(f"{output} ended with {running.returncode}: {err[-2000:]}")
    return err


def kill(output: str) -> int:
    """Start, wait for new results and a random moment longer, kill. Returns the number of finished images."""
    before, running = len(files(output)), start(output)
    while len(files(output)) < before + 16 and running.poll() is None:
        time.sleep(0.01)
    time.sleep(random.random())
    running.send_signal(signal.SIGKILL)
    running.communicate()
    return len(files(output))


def files(output: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(output).glob("[0-9]*.png")}


def finished(output: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(output).glob("[0-9]*.png")}


def failures(err: str) -> str:
    failed = [line for line in err.splitlines() if line.startswith("failed:")]
    return f"{len(failed)} failures reported"


def compare(output: str) -> str:
    ours, theirs = files("one"), files(output)
    differ = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    return f"{len(differ)} of {len(ours)} files differ" if differ else f"all {len(ours)} files equal, byte for byte"


if __name__ == "__main__":
    main()
