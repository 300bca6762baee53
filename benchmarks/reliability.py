"""Checks that a training run that is stopped repeatedly ends with the weights of an uninterrupted run.

    python benchmarks/reliability.py --kills 25

Trains a small network with a checkpoint after every step and stops it by SIGKILL, SIGTERM and SIGUSR1. Half of the stops come at
a random moment, the others as soon as the temporary file of a checkpoint or adapter appears. After each stop the same command
resumes with `--ckpt_path auto`. A last run fills a small disk, which needs the right to mount a tmpfs.

Prints one line per signal: the steps of the stops, how many hit a file being written, the number of damaged checkpoints, and
whether weights, average, optimiser and position in the data equal the uninterrupted run bit for bit. One CPU thread.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rad.diffusion.schedules import linear_betas
from rad.models.base import save_base
from tests.conftest import random_image
from tests.tiny_networks import small_unet

CONFIG = {
    "seed_everything": 7,
    "model": {"base": "base", "lora": {"rank": 4}, "optimizer": {"init_args": {"lr": 1e-3}}},
    "data": {"path": "images", "val_count": 2, "size": 16, "batch_size": 4, "num_workers": 2},
    "trainer": {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "accumulate_grad_batches": 2,
        "callbacks": [
            {"class_path": "rad.training.EMA"},
            {
                "class_path": "rad.training.Checkpoint",
                "init_args": {"every_n_train_steps": 1, "save_top_k": 3},
            },
        ],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        save_base("base", small_unet(), betas=linear_betas(), half=False)
        Path("images").mkdir()
        for number in range(11):
            random_image(16, 16, seed=number).save(f"images/{number}.png")
        Path("c.yaml").write_text(yaml.safe_dump(CONFIG))
        finish("whole", options.steps)
        random.seed(options.seed)
        survive(signal.SIGKILL, options.kills, options.steps)
        survive(signal.SIGTERM, max(1, options.kills // 5), options.steps)
        survive(signal.SIGUSR1, max(1, options.kills // 5), options.steps)
        fill_disk(options.steps)


def command(name: str, steps: int) -> list[str]:
    words = ["--config", "c.yaml", "--name", name, "--ckpt_path", "auto", "--trainer.max_steps", str(steps)]
    return [sys.executable, str(ROOT / "train.py"), *words]


def start(name: str, steps: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command(name, steps), env=environment, stderr=subprocess.PIPE, text=True)


def finish(name: str, steps: int) -> str:
    running = start(name, steps)
    err = running.communicate()[1]
    if running.returncode:
        raise SystemExit(f"{name} ended with {running.returncode}: {err[-2000:]}")
    return err


def newest(name: str) -> int:
    return max(
        (int(p.stem.removeprefix("step=")) for p in Path(f"runs/{name}/checkpoints").glob("step=*.ckpt")), default=0
    )


def survive(stop: signal.Signals, times: int, steps: int) -> None:
    """Stop a run `times` times, let it finish, and print the result."""
    name, writing, fallbacks = stop.name, 0, 0
    done: list[int] = []
    for number in range(times):
        running, before = start(name, steps), newest(name)
        until = before + max(1, (steps - before) // (times - number + 1))
        while newest(name) < until and running.poll() is None:
            time.sleep(0.01)
        if number % 2:  # half at a random moment, half as soon as a file is being written
            time.sleep(random.random() * 0.2)
        while not number % 2 and not being_written(name) and running.poll() is None:
            time.sleep(0.0002)
        running.send_signal(stop)
        fallbacks += running.communicate()[1].count("is damaged")
        writing += being_written(name)
        done.append(newest(name))
    fallbacks += finish(name, steps).count("is damaged")
    print(
        f"{name}: stopped {times} times, at steps {done}; {writing} while a checkpoint or adapter was being written, "
        f"{fallbacks} damaged; the end is {compare(name, steps)}",
        flush=True,
    )


def being_written(name: str) -> bool:
    """Whether a checkpoint or adapter exists under its temporary name."""
    return any(Path(f"runs/{name}/checkpoints").glob(".*"))


def compare(name: str, steps: int) -> str:
    ours, theirs = (
        torch.load(f"runs/{run}/checkpoints/step={steps}.ckpt", weights_only=True) for run in ("whole", name)
    )
    parts = {
        "weights": "state_dict",
        "average": "callbacks",
        "optimiser": "optimizer_states",
        "place": "ImageDataModule",
    }
    differ = [part for part, key in parts.items() if not equal(_only_state(ours[key]), _only_state(theirs[key]))]
    return f"different in {', '.join(differ)}" if differ else "that of an uninterrupted run, bit for bit"


def _only_state(content: object) -> object:
    """Without the paths of checkpoints and the number of restarts."""
    if isinstance(content, dict):
        return {k: _only_state(v) for k, v in content.items() if not str(k).startswith("Checkpoint") and k != "batches"}
    return content


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def fill_disk(steps: int) -> None:
    """Keep all checkpoints on a disk of 4 MB: the run ends with one line of error, and with room it resumes to the same end."""
    place = Path("runs/disk")
    place.mkdir(parents=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mount.returncode:
        print(f"full disk: not tried, {mount.stderr.strip()}")
        return
    try:
        running = start("disk", steps)
        err = running.communicate()[1]
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        print(f"full disk: exit code {running.returncode} at step {newest('disk')}, {errors or err[-500:]}")
        subprocess.run(["mount", "-o", "remount,size=500m", str(place)], check=True)
        fallbacks = finish("disk", steps).count("is damaged")
        print(f"full disk, after making room: {fallbacks} damaged; the end is {compare('disk', steps)}")
    finally:
        subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
