"""Detects changed results while code is moved or renamed: hashes the results of train.py, sample.py and rad.masks.

    python benchmarks/golden.py --record before.json      before the change; about four minutes on one core
    python benchmarks/golden.py --check before.json       after it; lists each result that differs, exit code 1 if any does

golden.txt lists the commands: each method at few steps on pixels and on latents, 20 training steps of each kind, and images and
masks of many sizes. The script hashes decoded pixels, all UNet outputs in the main process, trained tensors, losses, NFE, VJP,
settings and metrics. It ignores seconds and paths. It uses command lines only, so it works after moves inside the package.

Bits differ between processors and versions of torch: record on your own machine and do not commit the file. One thread is used.
For a model, `tensors` hashes the values in any order, and `names` the values with their names. A rename changes `names` only;
list it in RENAMES to accept it. `--keep DIR` keeps the results for inspection.

Not covered, because no weights ship: Stable Diffusion XL, SD3, Flux, EDM, ControlNet, T2I-Adapter and IP-Adapter. Not covered
either: GPUs, training in several processes, and resumed training.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import runpy
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before numpy and torch are imported
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RENAMES: dict[str, str] = {}
"""Renamed parts of tensor names: new name to old name."""
TRAINING = """--data.path ../photos --data.val_path null --data.val_count 4 --data.size 32 --data.batch_size 8
    --trainer.max_steps 20 --trainer.val_check_interval 10 --trainer.limit_val_batches 1 --trainer.log_every_n_steps 1
    --trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto --trainer.enable_progress_bar false"""


def read_commands() -> dict[str, list[list[str]]]:
    """The words of each command in golden.txt, by part."""
    parts: dict[str, list[list[str]]] = {}
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("["):
            parts[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            parts[list(parts)[-1]].append(line.split())
    return parts


def write_inputs() -> None:
    """photos/CLASS/: 64x64 crops; images/: 32x32; odd/: other sizes; holes/ and inverted/: their masks, two partly grey."""
    from skimage import data

    draw = np.random.default_rng(0)
    shown = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    for number in range(16):
        name, pixels = list(shown.items())[number % 4]
        top, left = (int(draw.integers(0, side - 128)) for side in pixels.shape[:2])
        crop = Image.fromarray(pixels[top : top + 128 : 2, left : left + 128 : 2])
        save(crop, Path("photos", name, f"{number}.png"))
        if number < 2:
            save(crop.crop((16, 16, 48, 48)), Path("images", f"{name}.png"))
    sizes = {"wide": (57, 34), "tall": (37, 70), "grey": (48, 48), "small": (20, 26)}
    for number, (name, (width, height)) in enumerate(sizes.items()):
        image = Image.fromarray(shown["coffee"][40 * number :, 60 * number :][:height, :width])
        save(image.convert("L") if name == "grey" else image, Path("odd", f"{name}.png"))
        hole = np.zeros((height, width), np.uint8)
        hole[height // 4 : height // 2 + 4, width // 5 : width // 2 + 5] = 255
        hole[-8:-3, 3:-3] = np.linspace(0, 255, width - 6) if name in ("wide", "grey") else 255
        save(Image.fromarray(hole), Path("holes", f"{name}.png"))
        save(Image.fromarray(255 - hole), Path("inverted", f"{name}.png"))
    Path("prompts.json").write_text('{"astronaut.png": "barn", "chelsea.png": "tabby cat"}', encoding="utf-8")
    Path("checkpoints").symlink_to(ROOT / "checkpoints")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def run(number: int, program: str, *words: str) -> None:
    """Run a command line in this process, to import torch once. Raises RuntimeError with its output if it fails."""
    if program == "train.py":
        words = (*_short_configuration(words[words.index("--config") + 1]), *TRAINING.split(), *words[2:])
    output, before = io.StringIO(), sys.argv
    sys.argv = [program, *words]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), _network_hash(number):
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            text = output.getvalue()[-2000:]
            raise RuntimeError(f"{program} {' '.join(words)} ended with {end.code}:\n{text}") from None
    finally:
        sys.argv = before


def _short_configuration(name: str) -> tuple[str, str]:
    """The option for a copy of a configuration that writes checkpoint and panel at step 20, without torch.compile."""
    content = yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))
    for callback in content["trainer"]["callbacks"]:
        for key in {"every_n_steps", "every_n_train_steps"} & callback.get("init_args", {}).keys():
            callback["init_args"][key] = 20
    content["model"].get("execution", {}).pop("compile", None)
    Path(name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return "--config", name


@contextlib.contextmanager
def _network_hash(number: int) -> Iterator[None]:
    """Write network-NUMBER.hash, a hash of all UNet outputs. It finds differences that vanish in 8-bit pixels."""
    from diffusers import UNet2DConditionModel, UNet2DModel
    from torch.nn.modules.module import register_module_forward_hook

    total = hashlib.sha256()

    def add(module: Any, _: Any, output: Any) -> None:
        if isinstance(module, UNet2DModel | UNet2DConditionModel) and not output[0].is_meta:
            total.update(_bits(output[0]))

    handle = register_module_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
        Path(f"network-{number}.hash").write_text(total.hexdigest(), encoding="utf-8")


def _bits(tensor: Any) -> bytes:
    import torch

    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return head + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(content: Any) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else json.dumps(content).encode()).hexdigest()[:32]


def hashes(path: Path) -> Iterator[tuple[str, str]]:
    """(Content, hash) pairs of a result file; none for files of seconds, paths or prose."""
    if path.suffix == ".png":
        image = Image.open(path)
        yield "pixels", digest(f"{image.mode} {image.size} ".encode() + image.tobytes())
    elif path.suffix == ".hash":
        yield "outputs", digest(path.read_bytes())
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        yield "numbers", digest([{k: v for k, v in row.items() if k not in ("seconds", "peak_mib")} for row in rows])
    elif path.name == "run.json":
        for label, own in json.loads(path.read_text(encoding="utf-8"))["settings"].items():
            yield f"settings of {label}", digest(sorted((key, str(value)) for key, value in own.items()))
    elif path.suffix in (".safetensors", ".ckpt"):
        tensors = dict(read_tensors(path))
        yield "tensors", digest(sorted(tensors.values()))
        if path.suffix == ".safetensors":  # names in a checkpoint contain class names
            yield "names", digest(sorted(tensors.items()))
    elif path.name.startswith("events."):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.endswith(("per_second", "per_sec", "/time", "/seconds")):
                yield tag, digest([(event.step, event.value) for event in events.Scalars(tag)])


def read_tensors(path: Path) -> Iterator[tuple[str, str]]:
    """(Name, hash) of each tensor of a .safetensors or .ckpt file: weights, averages, and the optimiser's state."""
    import torch
    from safetensors.torch import load_file

    def walk(name: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, torch.Tensor):
            for new, old in RENAMES.items():
                name = name.replace(new, old)
            yield name, digest(_bits(value))
        elif isinstance(value, dict | list | tuple):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(f"{name}/{key}", one)

    yield from walk("", torch.load(path, weights_only=True) if path.suffix == ".ckpt" else load_file(path))


def collect(folder: Path) -> dict[str, str]:
    """The hashes of all results in a folder, by file and content; logged scalars under the folder of their run."""
    results = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        place = path.parent if path.name.startswith("events.") else path
        results |= {
            f"{place.relative_to(folder.parent).as_posix()}: {content}": value for content, value in hashes(path)
        }
    return results


def compare(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """A line for each entry that changed, is missing, or is new."""
    lines = [f"changed: {name}" for name in before if name in after and before[name] != after[name]]
    lines += [f"missing: {name}" for name in before if name not in after]
    return lines + [f"new: {name}" for name in after if name not in before]


def perform(parts: Sequence[str], folder: Path) -> tuple[dict[str, str], list[str]]:
    """Run parts in folders of their names. Returns all hashes, and the names of parts that failed."""
    commands, results, failed = read_commands(), {}, []
    os.chdir(folder)
    write_inputs()
    for part in parts:
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        (folder / part).mkdir()
        os.chdir(folder / part)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for number, command in enumerate(commands[part], 1):
                    run(number, *command)
        except Exception:
            failed.append(part)
            traceback.print_exc()
        new = collect(folder / part)
        results |= new
        wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
        print(f"{part}: {len(new)} results, {wall:.0f} s, {cpu:.0f} s of CPU", flush=True)
    os.chdir(ROOT)
    return results, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--record", type=Path, metavar="FILE.json", help="write the hashes of all results")
    mode.add_argument("--check", type=Path, metavar="FILE.json", help="compare with recorded hashes")
    parts = list(read_commands())
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the results in this new folder")
    options = parser.parse_args()
    file = (options.record or options.check).resolve()
    recorded = json.loads(file.read_text(encoding="utf-8")) if options.check else {}
    sys.path.insert(0, str(ROOT))
    import torch

    here = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    here["cpu"] = torch.backends.cpu.get_cpu_capability()
    with tempfile.TemporaryDirectory() as temporary:
        if options.keep:
            options.keep.mkdir(parents=True)
        results, failed = perform(options.only, (options.keep or Path(temporary)).resolve())
    if options.check:
        if recorded["environment"] != here:
            print(f"recorded with {recorded['environment']}, this is {here}: bits may differ for that reason")
        before = {name: value for name, value in recorded["results"].items() if name.split("/")[0] in options.only}
        differences = compare(before, results)
        print("\n".join([*differences, f"{len(differences)} differences in {len(before)} recorded results"]))
        return 1 if differences or failed else 0
    if failed:
        print(f"not recorded: {', '.join(failed)} failed")
        return 1
    file.write_text(json.dumps({"environment": here, "results": results}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(results)} results recorded")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
