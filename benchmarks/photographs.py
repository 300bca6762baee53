"""Compares RAD with classical fills and other libraries on damaged photographs at native scale.

    python benchmarks/photographs.py --data PHOTOGRAPHS --output runs/photographs
    python benchmarks/photographs.py --data PHOTOGRAPHS --output runs/photographs --limit 8 --only objects rad patchmatch

Each photograph gives one window, at a place keyed by its name and the seed. Each window gets a mask of every item.
`rad sample` runs the methods of this project, and benchmarks/others the systems of other libraries, each in a process of one
thread. Writes table.md (means, 95 % intervals, paired tests), ITEM.png (contact sheets), and the report of `rad evaluate`.

Rerun to resume. A larger --limit adds photographs: run slow systems first with a small one, then --only the fast ones.
PatchMatch and deepinv need an environment of their own, see docs/results/photographs.md: give its Python as --others_python.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.photograph_tables import compare
from rad.console import report
from rad.images.atomic import replacing, write_text
from rad.images.sources import ImageFile, by_stem, list_images
from rad.masks import Blobs, MaskGenerator, Polylines, Text, write_mask
from rad.resources import located
from rad.rng import generator, key

ITEMS: dict[str, MaskGenerator] = {
    "scratches": Polylines(strokes=(2, 5), width=(1.0, 3.0), segments=(1, 4), length=(0.2, 0.6), turn=40.0),
    "lettering": Text(size=(14, 28), lines=(2, 4), margin=(0, 1)),
    "strokes": Polylines(strokes=(1, 2), width=(9.0, 16.0), segments=(2, 4), length=(0.15, 0.4), turn=60.0),
    "objects": Blobs(blobs=(1, 1), radius=(0.141, 0.141)),
}
"""Damage, in pixels of the photograph. A blob has the area of a square of a quarter of the side."""

OURS = {
    "rad": "",
    **{f"rad@{steps}": f"--method rad@{steps}" for steps in (1, 2, 4, 10, 20)},
    "rad-average": "--average 8",
    **{f"{name}@20": f"--method {name}@20" for name in ("replacement", "ddrm", "ddnm", "diffpir")},
    "repaint@20": "--method repaint@20 --set repaint.jump_length=5 repaint.resamplings=5",
}
"""Options of `rad sample` by label."""

OTHERS = (
    *("biharmonic", "opencv-telea", "opencv-navier-stokes", "patchmatch"),
    *("diffusers-repaint@20", "deepinv-ddrm", "deepinv-diffpir"),
)
"""Systems of benchmarks/others/run.py."""

ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
}


def parser() -> argparse.ArgumentParser:
    """The options; those of `rad sample` go into --variant."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", required=True, help="photographs: a folder of any depth, or a zip")
    result.add_argument("--output", type=Path, required=True)
    result.add_argument("--checkpoint", default=str(ROOT / "checkpoints/photos"))
    result.add_argument("--size", type=int, default=192, help="side of a window in pixels (default: 192)")
    result.add_argument("--limit", type=int, help="number of photographs (default: all that are large enough)")
    result.add_argument("--only", nargs="+", default=[], metavar="NAME", help="items and systems, any label of --list")
    result.add_argument("--list", action="store_true", help="print all items and systems, and stop")
    result.add_argument(
        "--variant",
        nargs="+",
        default=[],
        metavar="LABEL=OPTIONS",
        help="more systems, by options of rad sample: 'rad-crop=--size_policy crop'",
    )
    result.add_argument("--options", default="", help="of rad sample, for all (default: the checkpoint's settings)")
    result.add_argument("--others_python", default=sys.executable, help="Python of PatchMatch and deepinv")
    result.add_argument("--feature_net", default=str(ROOT / "checkpoints/features-nature64"))
    result.add_argument("--sheet", nargs="+", default=[], metavar="SYSTEM", help="columns of the sheets (default: all)")
    result.add_argument("--seed", type=int, default=0, help="of windows, masks and noise")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    systems = {**OURS, **variants(options.variant), **dict.fromkeys(OTHERS)}
    if options.list:
        print(f"items: {' '.join(ITEMS)}\nsystems: {' '.join(systems)}")
        return 0
    items, chosen = choose(options.only, systems)
    for words in (options.options, *(systems[label] or "" for label in chosen)):
        if unusable := {"--num_samples", "--raw"} & {word.partition("=")[0] for word in shlex.split(words)}:
            raise ValueError(f"{unusable.pop()}: each photograph has one result here; leave it out")
    settings = {
        "data": str(Path(options.data).resolve()),
        "checkpoint": folder_hash(options.checkpoint),
        **{name: getattr(options, name) for name in ("size", "seed", "options")},
    }
    check_settings(options.output / "settings.json", settings)
    prepare(options.output, options.data, options.size, options.limit, options.seed)
    failed = [label for label in chosen if not run_system(options, label, systems[label], items)]
    order = [*systems, *options.only]
    compare(options.output, list(ITEMS), order, feature_net=options.feature_net, seed=options.seed, shown=options.sheet)
    if failed:
        report(f"without results, or with fewer: {', '.join(failed)}")
    return 1 if failed else 0


def variants(words: Sequence[str]) -> dict[str, str]:
    """LABEL=OPTIONS as a dictionary. Raises ValueError for another form."""
    pairs = [word.partition("=") for word in words]
    if wrong := [label for label, equals, _ in pairs if not label or not equals or "/" in label]:
        raise ValueError(f"--variant {wrong[0]}: give LABEL=OPTIONS, such as 'rad-crop=--size_policy crop'")
    if taken := [label for label, _, _ in pairs if label in ("masks", *OTHERS)]:
        raise ValueError(f"--variant {taken[0]}=...: the name has another meaning here; give another label")
    return {label: options for label, _, options in pairs}


def choose(only: Sequence[str], systems: Mapping[str, str | None]) -> tuple[list[str], list[str]]:
    """Items and systems of --only; all where it names none. Raises ValueError for an unknown name."""
    if unknown := [name for name in only if name not in ITEMS and name not in systems]:
        raise ValueError(f"--only {unknown[0]}: give items ({', '.join(ITEMS)}) or systems ({', '.join(systems)})")
    items, chosen = ([name for name in known if name in only] for known in (ITEMS, systems))
    return items or list(ITEMS), chosen or list(systems)


def folder_hash(source: str) -> str:
    """Sixteen hexadecimal digits of the weights and settings in a checkpoint folder, given by its path or name."""
    folder, digest = located(source), hashlib.sha256()
    if not folder.is_dir():
        raise ValueError(f"--checkpoint {source} is no folder: give one, or the name of a shipped checkpoint")
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def check_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Write the settings, or compare them with those of an earlier run. Raises ValueError if they differ."""
    before = json.loads(path.read_text()) if path.is_file() else settings
    if different := [name for name in settings if settings[name] != before.get(name)]:
        name = different[0]
        raise ValueError(
            f"{path.parent} holds results with {name} {before.get(name)}, this is {settings[name]}: give another --output"
        )
    write_text(path, json.dumps(settings, indent=1) + "\n")


def prepare(output: Path, data: str, size: int, limit: int | None, seed: int) -> None:
    """Write the windows into images/, and their masks into masks/ITEM and results/ITEM/masks; existing ones are kept.

    Photographs come in the order of a key of their names: a larger `limit` keeps those of a smaller one.
    """
    found = by_stem(list_images(data), where=data)
    images = {name.replace("/", "-"): image for name, image in found.items()}
    if len(images) < len(found):
        raise ValueError(f"--data {data}: two photographs have the same name with '-' in place of '/': rename one")
    large = [name for name in images if min(images[name].size()) >= size]
    if small := len(images) - len(large):
        report(f"note: {small} of {len(images)} photographs are smaller than {size}x{size} pixels and left out")
    order = sorted(large, key=lambda name: key(seed, "photographs", name))[:limit]
    if not order:
        raise ValueError(f"--data {data}: no photograph is at least {size}x{size} pixels; give a smaller --size")
    for name in order:
        path = output / "images" / f"{name}.png"
        if not path.exists():
            with replacing(path) as temporary:
                window(images[name], name, size, seed).save(temporary)
        for item, masks in ITEMS.items():
            hole = masks([generator(seed, "photographs", item, name)], size, size)[0]
            for folder in (output / "masks" / item, output / "results" / item / "masks"):
                if not (folder / f"{name}.png").exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    write_mask(folder / f"{name}.png", hole)
    if more := len(list((output / "images").glob("*.png"))) - len(order):
        report(f"note: {output} holds {more} more photographs of an earlier run, which are filled too")


def window(image: ImageFile, name: str, size: int, seed: int):
    """The window (size, size) of a photograph, unscaled, at a uniform place."""
    import torch

    opened, places = image.open().convert("RGB"), generator(seed, "photographs", "window", name)
    left, top = (int(torch.randint(side - size + 1, (), generator=places)) for side in opened.size)
    return opened.crop((left, top, left + size, top + size))


def run_system(options: argparse.Namespace, label: str, sampling: str | None, items: Sequence[str]) -> bool:
    """Fill all windows; False if the program failed, which leaves its message on stderr."""
    report(f"{label} on {', '.join(items)}")
    if sampling is None:
        return all([run_other(options, label, item) for item in items])
    folder = options.output / "runs" / label
    common = [sys.executable, "-m", "rad", "sample", "--checkpoint", options.checkpoint, *shlex.split(options.options)]
    inputs = ["--image", str(options.output / "images"), "--seed", str(options.seed), "--device", "cpu"]
    masks = ["--mask", *(str(options.output / "masks" / item) for item in items)]
    words = [*common, *inputs, *masks, "--output", str(folder), *shlex.split(sampling)]
    # A comparison, with the costs of each image, has several masks or a report.
    done = start(words if len(items) > 1 else [*words, "--report"])
    for item in items:
        for method in (path for path in (folder / item).glob("*") if path.is_dir() and path.name != "masks"):
            shutil.copytree(method, options.output / "results" / item / label, dirs_exist_ok=True)
    return done


def run_other(options: argparse.Namespace, label: str, item: str) -> bool:
    python = options.others_python if label.startswith(("deepinv", "patchmatch")) else sys.executable
    script, target = str(ROOT / "benchmarks/others/run.py"), options.output / "results" / item
    folders = [
        "--images",
        str(options.output / "images"),
        "--masks",
        str(target / "masks"),
        "--output",
        str(target / label),
    ]
    return start([python, script, label, "--checkpoint", options.checkpoint, "--seed", str(options.seed), *folders])


def start(words: Sequence[str]) -> bool:
    """Run a program with one thread, its paths on stdout hidden."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": paths}
    return subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
