"""Strips of docs/concepts/methods.md: one run of every method on the same photograph with the same hole.

    python docs/scripts/methods.py                 # all of them
    python docs/scripts/methods.py rad repaint     # these

A strip shows the hole, the estimate of the clean image at five moments of the run, and the result.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
from pictures import IMAGES, grid, labelled, painted, photograph, save
from PIL import Image

from rad import Inpainter
from rad.inpainting import Progress
from rad.methods import METHODS
from rad.methods.registry import create
from rad.models.loaded_model import PLAIN, Condition

SIZE, SCALE, SEED = 32, 4, 0
MOMENTS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Shares of the network calls after which the estimate is shown."""

BASELINES = ("mean", "biharmonic", "telea", "navier_stokes")
WITHOUT_FIGURE = ("m2s", "inpainting_model", "lama")
"""They need a model that is not shipped: one of lower resolution, or one trained for inpainting."""


@dataclass(frozen=True)
class Run:
    """Model, settings and prompt of a strip; None: the preset's number of steps."""

    checkpoint: str = "rad-nature32"
    settings: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None
    prompt: str = ""


LATENT = "rad-latent-nature32"
RUNS: dict[str, Run] = {
    "tdpaint": Run("tdpaint-nature32"),
    "blended_latent": Run(LATENT),
    "psld": Run(LATENT, {"omega": "0.01", "gamma": "0.01"}),
    "pilot": Run(LATENT, {"rate": "0.00025", "first_rate": "0.00007"}, prompt="tabby cat"),
    "flair": Run(settings={"calibration": "constant"}),
}


@cache
def loaded(checkpoint: str) -> Inpainter:
    return Inpainter.from_pretrained(checkpoint, device="cpu")


def example() -> tuple[Image.Image, Image.Image]:
    """The photograph and its mask, 32x32."""
    image = photograph("chelsea.png", (120, 0, 420, 300)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    y, x = np.mgrid[:SIZE, :SIZE]
    hole = ((x - 22.5) / 8) ** 2 + ((y - 14.5) / 8) ** 2 <= 1
    return image, Image.fromarray((255 * hole).astype(np.uint8))


def trajectory(name: str, run: Run) -> list[Image.Image]:
    """Estimates of the clean image after `MOMENTS` of all calls of a run of the method, and the result."""
    image, mask = example()
    estimates: list[tuple[int, Image.Image]] = []

    def on_step(progress: Progress) -> None:
        estimates.append((progress.done, progress.previews()[0]))

    condition = Condition(run.prompt, guidance=2) if run.prompt else PLAIN
    result = loaded(run.checkpoint)(
        image, mask, method=create(name, run.settings), steps=run.steps, seed=SEED, on_step=on_step, condition=condition
    )
    total = estimates[-1][0]
    shown = [next(image for done, image in estimates if done >= max(1, share * total)) for share in MOMENTS]
    return [*shown, result.images[0]]


def enlarged(images: Sequence[Image.Image]) -> list[Image.Image]:
    size = (SIZE * SCALE, SIZE * SCALE)
    return [image.resize(size, Image.Resampling.BICUBIC) for image in images]


def strip(name: str, run: Run) -> Image.Image:
    """The strip of a method."""
    image, mask = example()
    labels = ["hole", "first call", *(f"{share:.0%}" for share in MOMENTS[1:]), "result"]
    return labelled(grid([enlarged([painted(image, mask), *trajectory(name, run)])], gap=6), labels)


def baselines() -> Image.Image:
    """The results of the methods without a network, in one strip."""
    image, mask = example()
    results = [loaded("rad-nature32")(image, mask, method=name).images[0] for name in BASELINES]
    return labelled(grid([enlarged([painted(image, mask), *results, image])], gap=6), ["hole", *BASELINES, "original"])


def problem() -> Image.Image:
    """The photograph, its hole, and the mask."""
    image, mask = example()
    page = grid([enlarged([image, painted(image, mask), mask.convert("RGB")])], gap=6)
    return labelled(page, ["photograph", "hole", "mask"])


def main(names: Sequence[str], folder: Path = IMAGES / "methods") -> None:
    """Write the strips of these methods; all for an empty list."""
    for name in names or ("problem", "baselines", *METHODS):
        began = perf_counter()
        if name in ("problem", "baselines"):
            save({"problem": problem, "baselines": baselines}[name](), f"{name}.webp", folder)
        elif name not in (*BASELINES, *WITHOUT_FIGURE):
            save(strip(name, RUNS.get(name, Run())), f"{name}.webp", folder)
        print(f"{name}: {perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
