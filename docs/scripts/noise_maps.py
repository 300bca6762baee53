"""Pictures and the animation of docs/concepts/rad.md: noise levels of each pixel over time.

python docs/scripts/noise_maps.py
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from pictures import IMAGES, grid, labelled, photograph, save
from PIL import Image
from torch import Tensor

from rad import Inpainter
from rad.diffusion import NoiseLevel, NoiseRegions, RegionAware, Uniform, linear_betas, noised
from rad.images import to_tensor, to_uint8
from rad.methods.rad import RAD
from rad.models.loaded_model import PLAIN
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import State
from rad.sampling.task import Task

SIDE, SEED = 96, 4
TILE = 160
STEPS, FRAMES = 60, 30
"""Steps of the animated run, and how many of them are shown."""


@dataclass(frozen=True)
class Recorded(RAD):
    """RAD, which keeps the image and the noise levels before each step in `states`."""

    states: list[tuple[Tensor, NoiseLevel]] = field(default_factory=list)

    def before_denoise(self, state: State) -> Tensor:
        self.states.append((state.x, state.now))
        return state.x


def scene() -> tuple[Tensor, Tensor]:
    """A photograph (1,3,S,S) in [-1,1], and a hole (1,1,S,S): an arc and a disk."""
    image = photograph("coffee.png", (110, 0, 510, 400)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ring = (((x - 46) ** 2 + (y - 44) ** 2).sqrt() - 30).abs() < 7
    hole = ring & (y > 50)
    dot = (x - 78) ** 2 + (y - 20) ** 2 < 100
    return to_tensor(image)[None] * 2 - 1, (hole | dot)[None, None].float()


def soft_hole() -> Tensor:
    """A hole (1,1,S,S) that grows from 0 at the left to 1 at the right, in eighths."""
    return ((torch.arange(SIDE) * 9 // SIDE) / 8).expand(1, 1, SIDE, SIDE).contiguous()


def tile(image: Tensor) -> Image.Image:
    """(1,3,S,S) in [-1,1] as a tile."""
    return to_uint8(image[0].clamp(-1, 1).float() / 2 + 0.5).resize((TILE, TILE), Image.Resampling.BICUBIC)


def heat(level: NoiseLevel) -> Image.Image:
    """The deviation s of each pixel's noise as a tile: dark 0, bright 1."""
    sigma = level.sigma_map()[0, 0].expand(SIDE, SIDE)
    colours = (255 * colormaps["inferno"](sigma.numpy())[..., :3]).astype(np.uint8)
    return Image.fromarray(colours).resize((TILE, TILE), Image.Resampling.NEAREST)


def noise_image() -> Tensor:
    with KeyedNoise(SEED, ["noise maps"]) as noise:
        return noise.randn(0, (3, SIDE, SIDE))


def levels(process: Uniform | RegionAware, hole: Tensor, times: list[int]) -> list[list[Image.Image]]:
    """A row of noised images at these t, and a row of their noise maps."""
    image, eps = scene()[0], noise_image()
    rows: list[list[Image.Image]] = [[], []]
    for t in times:
        level = process.noise(torch.tensor([t]), NoiseRegions.from_mask(hole))
        rows[0].append(tile(noised(image, level, noise=eps)))
        rows[1].append(heat(level))
    return rows


def one_or_many() -> Image.Image:
    """DDPM's one level for the image above, RAD's map below."""
    times, hole = [999, 600, 400, 200, 50], scene()[1]
    rows = levels(Uniform(linear_betas()), hole, times) + levels(RegionAware(linear_betas()), hole, times)
    return labelled(grid(rows, gap=6), [f"t = {t}" for t in times])


def phases() -> Image.Image:
    """RAD's forward process through both phases."""
    times = [0, 400, 999, 1400, 1999]
    labels = [f"t = {t}" for t in times]
    return labelled(grid(levels(RegionAware(linear_betas()), scene()[1], times), gap=6), labels)


def run(hole: Tensor, *, steps: int) -> tuple[Recorded, list[Tensor], Tensor]:
    """A reverse process of RAD with DDPM's steps: the recorded states, the estimates of x0, and the result."""
    model = Inpainter.from_pretrained("checkpoints/photos", device="cpu").model
    method, estimates = Recorded(), list[Tensor]()
    process = RAD().process(model.base_process, "adm")
    sampler = Sampler(process, method, steps=steps, solver="ddpm")
    with model.in_evaluation(), KeyedNoise(SEED, ["noise maps"]) as noise:
        task = Task.from_image(scene()[0], hole)
        sample = sampler(
            model.denoiser([PLAIN], adapter=True), task, noise=noise, on_call=lambda _, x0: estimates.append(x0)
        )
    return method, estimates, sample.image


def frames() -> list[Image.Image]:
    """Frames of the animation: image, noise map and estimate, side by side."""
    hole = scene()[1]
    method, estimates, result = run(hole, steps=STEPS)
    labels = ["image", "noise map", "estimate"]
    shown = sorted({round(number) for number in np.linspace(0, STEPS - 1, FRAMES)})
    rows = [
        [tile(x), heat(level), tile(torch.where(hole == 0, x, x0))]
        for number in shown
        for (x, level), x0 in [(method.states[number], estimates[number])]
    ]
    clean = RegionAware(linear_betas()).noise(torch.tensor([-1]), NoiseRegions.from_mask(hole))
    rows.append([tile(result), heat(clean), tile(result)])
    return [labelled(grid([row], gap=6), labels) for row in rows]


def animate(folder: Path = IMAGES) -> None:
    """The animation, with a pause at both ends."""
    images = frames()
    durations = [1000, *[90] * (len(images) - 2), 2500]
    path = folder / "reverse.webp"
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, quality=70, method=6)
    print(f"{path}: {len(images)} frames, {path.stat().st_size / 1024:.0f} KB")


def soft() -> Image.Image:
    """A soft mask: noise maps at four t, and RAD's result."""
    hole = soft_hole()
    rows = levels(RegionAware(linear_betas()), hole, [999, 400, 100])
    mask = Image.fromarray((255 * hole[0, 0]).byte().numpy()).convert("RGB").resize((TILE, TILE))
    result = tile(run(hole, steps=STEPS)[2])
    rows[0], rows[1] = [mask, *rows[0], result], [tile(scene()[0]), *rows[1], heat_of_clean(hole)]
    return labelled(grid(rows, gap=6), ["mask and photograph", "t = 999", "t = 400", "t = 100", "result"])


def heat_of_clean(hole: Tensor) -> Image.Image:
    return heat(RegionAware(linear_betas()).noise(torch.tensor([-1]), NoiseRegions.from_mask(hole)))


def main() -> None:
    save(one_or_many(), "noise-levels.webp")
    save(phases(), "noise-phases.webp")
    animate()
    save(soft(), "noise-soft.webp")


if __name__ == "__main__":
    main()
