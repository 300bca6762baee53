"""M2S: Minutes to Seconds: Speeded-up DDPM-based Image Inpainting with Coarse-to-Fine Sampling (Zhang et al. 2024,
arXiv 2407.05875).

A model of lower resolution fills a small image. The result is enlarged, noised to a middle level, and refined. Both stages go
down in strides of DDIM. From some levels they go several times up and down again, as RePaint does:

    down, t -> u:   x <- hole x + known (a_t y + s_t n);   x_u = DDIM step of x
    up,   u -> t:   x_t = (a_t / a_u) x_u + sqrt(s_t^2 - (a_t / a_u)^2 s_u^2) n
"""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Process
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import noised, renoise, reverse_step
from rad.models.vae import IDENTITY
from rad.sampling.method import CustomSampler, setting
from rad.sampling.state import Cost, CountedDenoiser, RunContext
from rad.sampling.task import Task


@dataclass(frozen=True)
class Coarse:
    """Model of the first stage; `size` is the height of its images, a divisor of the full height."""

    denoiser: Denoiser
    process: Process
    size: int


@dataclass(frozen=True)
class M2S(CustomSampler):
    """Calls of the coarse model count fully, though they are cheaper. Starts are counted at 270 levels, and scale with others.

    Differences from the official code: known pixels are replaced before every step, and the second stage starts at the level of
    its noise. A small pixel belongs to the hole if any part of it does.
    """

    paper = "Zhang et al. 2024, arXiv 2407.05875"
    preset_steps = 270
    preset_eta = 0.0
    uses_spacing = False  # its jumps are counted in evenly spaced levels

    coarse: Coarse | str | None = field(
        default=None, metadata={"help": "model of the first stage: a base model's path", "path": True}
    )
    coarse_start: int = setting(250, "levels, of 270, that the coarse stage goes down; run.sh", low=1, high=270)
    coarse_jump: int = setting(20, "levels of a trip up in the coarse stage; run.sh", low=1)
    coarse_interval: int = setting(15, "levels between trips in the coarse stage; run.sh", low=1)
    fine_start: int = setting(75, "levels, of 270, that the fine stage goes down, 0: none; run.sh", low=0, high=270)
    fine_jump: int = setting(10, "levels of a trip up in the fine stage; run.sh", low=1)
    fine_interval: int = setting(10, "levels between trips in the fine stage; run.sh", low=1)
    trips: int = setting(11, "trips up and down at each such level; 10 in run.sh means 11", low=0)
    stride: int = setting(5, "most levels of a DDIM step; run.sh", low=1)

    def check(self) -> Coarse:
        """The coarse model. Raises ValueError if there is none."""
        if isinstance(self.coarse, Coarse):
            return self.coarse
        raise ValueError(
            "m2s needs a second base model, of lower resolution: --set m2s.coarse=PATH, in Python M2S(coarse=PATH); "
            "without one use repaint"
        )

    def plans(self, count: int) -> tuple[list[int], list[int]]:
        """Levels that the two stages visit, of `count` levels from 0, the least noise; -1 is clean."""

        def plan(start: int, jump: int, interval: int) -> list[int]:
            first = math.ceil(start * count / 270) - 1
            turns = [first]
            for point in range(first - interval, -1, -interval):
                turns += [point, min(point + jump, count - 1)] * self.trips
            pairs = pairwise([*turns, -1] if first >= 0 else turns)
            return [first] + [level for t, u in pairs for level in (*range(t - self.stride, u, -self.stride), u)]

        fine = plan(self.fine_start, self.fine_jump, self.fine_interval)
        return plan(self.coarse_start, self.coarse_jump, self.coarse_interval), fine

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(sum(u < t for plan in self.plans(len(timesteps) - 1) for t, u in pairwise(plan)))

    def run(self, run: RunContext) -> Tensor:
        coarse, (height, width), count = self.check(), run.task.hole.shape[2:], len(run.timesteps) - 1
        if run.task.autoencoder is not IDENTITY:
            raise ValueError("m2s enlarges images of a smaller pixel model; this model works on latents: use repaint")
        factor = max(1, height // coarse.size)
        if factor * coarse.size != height or width % factor:
            raise ValueError(
                f"images are {width}x{height}; both sides must be one multiple of the coarse model's height, {coarse.size}"
            )
        timesteps = spaced_timesteps(coarse.process.sampled_steps, count), run.timesteps
        first, second = ([t[-2 - n] for n in plan] for t, plan in zip(timesteps, self.plans(count), strict=True))
        task = reduced(run.task, factor)
        denoiser = CountedDenoiser(coarse.denoiser, within=run.denoiser)
        small = replace(run, task=task, process=coarse.process, denoiser=denoiser, timesteps=first)
        small = replace(small, randn=lambda: run.randn()[..., ::factor, ::factor])  # any subset of white noise is white
        x = _stage(small, task.known)
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        x = _stage(replace(run, timesteps=second), x)
        return torch.lerp(run.task.known, x, run.task.hole)


def reduced(task: Task, factor: int) -> Task:
    """Task at 1 / factor of the size: means of known pixels, and the maximum of the hole."""
    weight = F.avg_pool2d(1 - task.hole, factor)
    mean = F.avg_pool2d((1 - task.hole) * task.known, factor) / torch.where(weight > 0, weight, 1.0)
    return Task.from_image(mean, F.max_pool2d(task.hole, factor))


def _stage(run: RunContext, image: Tensor) -> Tensor:
    now = run.level(run.timesteps[0])
    x = noised(image, now, noise=run.randn())
    for t, u in pairwise(run.timesteps):
        nxt = run.level(u)
        if u > t:
            x = renoise(x, now, nxt, noise=run.randn())
        else:
            x = torch.lerp(noised(run.task.known, now, noise=run.randn()), x, run.task.hole)
            fresh = run.randn() if run.eta > 0 and u > CLEAN else None
            x = reverse_step(x, run.denoiser.denoise(x, now), now, nxt, eta=run.eta, noise=fresh)
        now = nxt
    return x
