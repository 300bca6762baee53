"""Pictures and costs of docs/start/models.md: what each shipped model makes of the same holes, and how long it takes.

    OMP_NUM_THREADS=1 python docs/scripts/models.py

Writes docs/images/models-NAME.webp and docs/images/models-native.webp, and prints a table with the CPU seconds and the peak
memory of each model. Each model is measured in a process of its own. The photographs come with scikit-image; the shipped models
were not trained on them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from rad import Inpainter
from rad.images.grid import contact_sheet
from rad.masks import Blobs, MaskGenerator, Polylines, Text
from rad.masks.shapes import make
from rad.models.loaded_model import Condition
from rad.rng import generator

ROOT = Path(__file__).resolve().parents[2]
SMALL = (("astronaut", "thin"), ("chelsea", "box"), ("coffee", "half"))
"""Photographs and masks of the models for images of 32x32."""
LARGE = ("astronaut", "chelsea", "coffee")
"""Photographs of the models for native scale."""
DAMAGE: tuple[MaskGenerator, ...] = (
    Polylines(strokes=(2, 5), width=(1.0, 3.0), segments=(1, 4), length=(0.2, 0.6), turn=40.0),
    Text(size=(14, 28), lines=(2, 4), margin=(0, 1)),
    Blobs(blobs=(1, 1), radius=(0.141, 0.141)),
)
"""Their holes: scratches, lettering and an object, as in benchmarks/photographs.py."""
NATIVE = ("input", "telea", "biharmonic", "rad-nature32", "photos", "photos, mean of 8", "original")
METHODS = {
    "rad-nature32": {},
    "photos": {},
    "photos-turbo": {},
    "rad-nature32-lora": {},
    "tdpaint-nature32": {"method": "tdpaint"},
    "base-nature32": {"method": "ddnm"},
    "rad-latent-nature32": {},
    "latent-nature32": {"method": "ding"},
}
PROMPTS = ["king penguin", "tabby cat", "thatch"]  # words that the latent model knows
TILE, NATIVE_TILE = 96, 192


def square(name: str, size: int | None = None) -> Image.Image:
    """The middle square of a photograph, or a part of `size` pixels around its centre at native scale."""
    image = Image.fromarray(getattr(data, name)()[..., :3])
    side = size or min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def hole_of(mask: str, size: int, number: int) -> Tensor:
    return make(mask)([generator(0, "models", number)], size, size)[0]


def blank(image: Image.Image, hole: Tensor) -> Image.Image:
    """The image with a white hole."""
    mask = Image.fromarray((255 * hole[0]).byte().numpy())
    return Image.composite(Image.new("RGB", image.size, "white"), image, mask)


def conditions(name: str) -> list[Condition]:
    """Words for the photographs of `SMALL`, where the model takes text."""
    return [Condition(prompt=text, guidance=2.0) if "latent" in name else Condition() for text in PROMPTS]


def fill_three(name: str) -> Image.Image:
    """A sheet of three holes: inputs above, results below.

    For `photos` and `photos-turbo` in parts of 96x96 at native scale, for the others in photographs reduced to 32x32.
    """
    if name.startswith("photos"):
        images = [square(photograph, 96) for photograph in LARGE]
        holes = [masks([generator(0, "models", number)], 96, 96)[0] for number, masks in enumerate(DAMAGE)]
    else:
        images = [square(photograph).resize((32, 32), Image.Resampling.LANCZOS) for photograph, _ in SMALL]
        holes = [hole_of(mask, 32, number) for number, (_, mask) in enumerate(SMALL)]
    inpainter = Inpainter.from_pretrained(ROOT / "checkpoints" / name)
    filled = inpainter(images, holes, condition=conditions(name), **METHODS[name]).images
    return contact_sheet([[blank(*pair) for pair in zip(images, holes, strict=True)], filled], cell_size=TILE)


def fill_native() -> Image.Image:
    """A sheet of one scratched photograph at native scale, filled by models and by baselines."""
    image, hole = square("chelsea", 96), hole_of("thin", 96, 9)
    small, photos = (Inpainter.from_pretrained(ROOT / "checkpoints" / name) for name in ("rad-nature32", "photos"))
    calls = (
        (small, {"method": "telea"}),
        (small, {"method": "biharmonic"}),
        (small, {"solver": "ddpm"}),
        (photos, {}),
        (photos, {"average": 8}),
    )
    filled = [inpainter(image, hole, size_policy="crop", **settings).images[0] for inpainter, settings in calls]
    return contact_sheet([[blank(image, hole), *filled, image]], column_labels=list(NATIVE), cell_size=NATIVE_TILE)


def measure(name: str) -> dict[str, float]:
    """CPU seconds of a 32x32 image and of a 512x512 photograph with thin scratches, and peak memory in MB.

    The photograph is skipped (0 windows) for presets of more than 20 calls.
    """
    inpainter = Inpainter.from_pretrained(ROOT / "checkpoints" / name)
    settings = METHODS[name] | {"condition": conditions(name)[0]}
    image = square("astronaut").resize((32, 32), Image.Resampling.LANCZOS)
    hole = hole_of("box", 32, 1)
    nfe = inpainter(image, hole, **settings).nfe
    seconds = []
    for _ in range(5):
        start = time.process_time()
        inpainter(image, hole, **settings)
        seconds.append(time.process_time() - start)
    whole, windows = 0.0, 0
    if nfe <= 20:
        large, scratches = square("astronaut"), hole_of("thin", 512, 2)
        windows = inpainter.count_windows(scratches, size_policy="crop")
        start = time.process_time()
        result = inpainter(large, scratches, size_policy="crop", **settings)
        whole = time.process_time() - start
        known = scratches[0].numpy() == 0
        assert np.array_equal(np.asarray(result.images[0])[known], np.asarray(large)[known])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"nfe": nfe, "small": statistics.median(seconds), "windows": windows, "large": whole, "memory": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--measure", choices=METHODS, help="print the costs of one model as JSON, and write no picture")
    parser.add_argument("--no_costs", action="store_true", help="write the pictures only")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        fill_three(name).save(options.output / f"models-{name}.webp", quality=85, method=6)
    fill_native().save(options.output / "models-native.webp", quality=85, method=6)
    if options.no_costs:
        return
    print(f"CPU seconds of {torch.get_num_threads()} thread, torch {torch.__version__}")
    print("| model | NFE | 32x32, s | 512x512, windows | s | peak memory, MB |\n|---|---|---|---|---|---|")
    for name in METHODS:
        command = [sys.executable, __file__, "--measure", name]
        costs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"| `{name}` | {costs['nfe']:.0f} | {costs['small']:.2f} | {costs['windows']:.0f} | {costs['large']:.1f} | "
            f"{costs['memory']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
