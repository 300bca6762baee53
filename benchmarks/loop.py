"""Measures the overhead of the sampling loop over the same number of bare network calls.

    python benchmarks/loop.py --config nature32

Prints seconds of both and their ratios. nature32 is checkpoints/base-nature32 without an adapter. The other networks have random
weights, which do not change the time.

Goal: at most 1.03 times the time of the calls.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing
from benchmarks.networks import BATCH, CONFIGS, ConfigName, build, image
from rad.diffusion.denoiser import UNetDenoiser
from rad.diffusion.processes import RegionAware
from rad.diffusion.schedules import linear_betas
from rad.models.base import load_base
from rad.networks.unet import patch
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task

BASE = Path(__file__).resolve().parents[1] / "checkpoints/base-nature32"
STEPS: dict[ConfigName, int] = {"ffhq": 3, "imagenet": 2, "nature32": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description="rad.sampling.sampler.Sampler against bare calls of the same network")
    parser.add_argument("--config", choices=list(CONFIGS), default="nature32")
    parser.add_argument("--batch", type=int, default=None, help="images (default: 1; nature32: 8)")
    parser.add_argument(
        "--steps", type=int, default=None, help="network calls (default: ffhq 3, imagenet 2, nature32 20)"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    batch, steps = given.batch or BATCH[given.config], given.steps or STEPS[given.config]

    shipped = given.config == "nature32"
    unet = patch(load_base(BASE).unet if shipped else build(given.config)).to(given.device).eval()
    inputs = image(given.config, batch=batch, device=given.device)
    task = Task.from_image(inputs["x"].clamp(-1, 1), inputs["hole"][:, None].float())
    process = RegionAware(linear_betas())
    sampler, denoiser = Sampler(process, steps=steps), UNetDenoiser(unet)
    levels = [torch.full((batch,), time, device=given.device) for time in sampler.timesteps[:-1]]
    times = [process.noise(level, task.regions).timesteps.float() for level in levels]
    assert len(times) == sampler.cost.nfe

    def loop() -> Tensor:
        with KeyedNoise(0, range(batch)) as noise:
            return sampler(denoiser, task, noise=noise).image

    @torch.inference_mode()
    def calls() -> None:
        for both in times:
            unet(inputs["x"], both, index=task.regions.index)

    size = CONFIGS[given.config]["sample_size"]
    weights = "checkpoints/base-nature32" if shipped else "random weights"
    setting = f"{given.config}, {size}x{size}, batch {batch}, {weights}, {steps} steps"
    timing.print_setting(setting, repeats=given.repeats, device=given.device)
    seconds = timing.interleaved({"calls": calls, "loop": loop}, repeats=given.repeats)
    compared = timing.compare(seconds, to="calls")
    rows = [[f"{steps} bare calls", *compared["calls"]], [f"Sampler, {steps} steps", *compared["loop"]]]
    timing.print_table(["run", *timing.COMPARED], rows)


if __name__ == "__main__":
    main()
