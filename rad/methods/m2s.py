"""M2S. Zhang, Du, TomyEnrique, Wang, Zheng, Jin, Minutes to Seconds: Speeded-up DDPM-based Image Inpainting with
Coarse-to-Fine Sampling, 2024, arXiv 2407.05875.

A small image is filled with a model of lower resolution, enlarged, noised to a middle level, and refined. Both stages go down
the levels in strides of DDIM, and from some of them back up and down again a number of times, as RePaint does:

    down, t -> u:   x <- hole x + known (a_t y + s_t n);   x_u = DDIM step of x
    up,   u -> t:   x_t = (a_t / a_u) x_u + sqrt(s_t^2 - (a_t / a_u)^2 s_u^2) n
A loop of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Process
from rad.diffusion.spacings import spaced_times
from rad.diffusion.step import noised, renoise, reverse_step
from rad.models.vae import IDENTITY
from rad.sampling.method import CustomSampler, setting
from rad.sampling.state import Cost, CountedDenoiser, RunContext
from rad.sampling.task import Task


@dataclass(frozen=True)
class Coarse:
    """The model of the first stage: its denoiser, its process, and the height of its images, which divides the full one."""

    denoiser: Denoiser
    process: Process
    size: int


@dataclass(frozen=True)
class M2S(CustomSampler):
    """Calls of the coarse model are counted like any other, though they are cheaper.

    Unlike the official code known pixels are overwritten before every step, and the second stage starts at the level that
    its noise has. A small pixel is hole if any part of it is. Starts are counted at 270 levels; with others they scale.
    """

    paper = "Zhang et al. 2024, arXiv 2407.05875"
    preset_steps = 270
    preset_eta = 0.0
    uses_spacing = False  # its jumps are counted in evenly spaced levels

    coarse: Coarse | str | None = field(
        default=None, metadata={"help": "model of the first stage: a base model's path"}
    )
    coarse_start: int = setting(250, "levels, of 270, that the coarse stage goes down; run.sh's", low=1, high=270)
    coarse_jump: int = setting(20, "levels of a trip up in the coarse stage; run.sh's", low=1)
    coarse_interval: int = setting(15, "levels between trips in the coarse stage; run.sh's", low=1)
    fine_start: int = setting(75, "levels, of 270, that the fine stage goes down, 0: none; run.sh's", low=0, high=270)
    fine_jump: int = setting(10, "levels of a trip up in the fine stage; run.sh's", low=1)
    fine_interval: int = setting(10, "levels between trips in the fine stage; run.sh's", low=1)
    trips: int = setting(11, "times up and down again at each such level; run.sh's 10 makes 11", low=0)
    stride: int = setting(5, "levels of a DDIM step, at most; run.sh's", low=1)

    def check(self) -> Coarse:
        """The coarse model. Raises ValueError where there is none."""
        if isinstance(self.coarse, Coarse):
            return self.coarse
        raise ValueError(
            "m2s needs a second base model, of lower resolution: --set m2s.coarse=PATH, in Python M2S(coarse=PATH); "
            "without one use repaint"
        )

    def plans(self, count: int) -> tuple[list[int], list[int]]:
        """What the two stages visit of `count` levels, which are numbered from 0, the least noise; -1 is clean."""

        def plan(start: int, jump: int, interval: int) -> list[int]:
            first = math.ceil(start * count / 270) - 1
            turns = [first]
            for point in range(first - interval, -1, -interval):
                turns += [point, min(point + jump, count - 1)] * self.trips
            pairs = pairwise([*turns, -1] if first >= 0 else turns)
            return [first] + [level for t, u in pairs for level in (*range(t - self.stride, u, -self.stride), u)]

        fine = plan(self.fine_start, self.fine_jump, self.fine_interval)
        return plan(self.coarse_start, self.coarse_jump, self.coarse_interval), fine

    def cost(self, times: list[float]) -> Cost:
        return Cost(sum(u < t for plan in self.plans(len(times) - 1) for t, u in pairwise(plan)))

    def run(self, run: RunContext) -> Tensor:
        coarse, (height, width), count = self.check(), run.task.hole.shape[2:], len(run.times) - 1
        if run.task.autoencoder is not IDENTITY:
            raise ValueError(
                "m2s enlarges images of a smaller model of pixels, and this one works on latents: use repaint"
            )
        factor = max(1, height // coarse.size)
        if factor * coarse.size != height or width % factor:
            raise ValueError(f"{width}x{height} images: the coarse model's height, {coarse.size}, does not divide them")
        times = spaced_times(coarse.process.sampled_steps, count), run.times
        first, second = ([t[-2 - n] for n in plan] for t, plan in zip(times, self.plans(count), strict=True))
        total, task = self.cost(run.times).nfe, reduced(run.task, factor)
        denoiser = CountedDenoiser(coarse.denoiser, within=run.denoiser)
        small = replace(run, task=task, process=coarse.process, denoiser=denoiser, times=first)
        small = replace(small, draw=lambda: run.draw()[..., ::factor, ::factor])  # white noise is white in every part
        x = _stage(small, task.known, lambda done: run.report(done, total))
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        x = _stage(replace(run, times=second), x, lambda done: run.report(denoiser.nfe + done, total))
        return torch.lerp(run.task.known, x, run.task.hole)


def reduced(task: Task, factor: int) -> Task:
    """The task at 1 / factor of its size: hole wherever some of it is, and means of known pixels alone."""
    weight = F.avg_pool2d(1 - task.hole, factor)
    mean = F.avg_pool2d((1 - task.hole) * task.known, factor) / torch.where(weight > 0, weight, 1.0)
    return Task.from_image(mean, F.max_pool2d(task.hole, factor))


def _stage(run: RunContext, image: Tensor, report: Callable[[int], None]) -> Tensor:
    now, done = run.level(run.times[0]), 0
    x = noised(image, now, noise=run.draw())
    for t, u in pairwise(run.times):
        nxt = run.level(u)
        if u > t:
            x = renoise(x, now, nxt, noise=run.draw())
        else:
            x = torch.lerp(noised(run.task.known, now, noise=run.draw()), x, run.task.hole)
            fresh = run.draw() if run.eta > 0 and u > CLEAN else None
            x, done = reverse_step(x, run.denoiser.denoise(x, now), now, nxt, eta=run.eta, noise=fresh), done + 1
            report(done)
        now = nxt
    return x
