"""Filling from the boundary inwards with any other method. After Growing Images: Spatial Scheduling in
Diffusion Inpainting, ICML 2026 workshop, OpenReview 6VOu2xvsbd; inferred from its abstract.

The hole is cut into bands of equal area by distance to the known pixels. Stage b runs the wrapped method on all that is still
unknown, keeps band b of its result, and counts it as known from then on. Hook: a loop of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rad.diffusion.processes import Process, TimeOrigin
from rad.diffusion.spacings import spaced_times
from rad.masks.fill_order import fill_order
from rad.models.vae import IDENTITY
from rad.sampling.method import CustomSampler, Method, SamplingMethod, setting
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, RunContext
from rad.sampling.task import Task

DEFAULT = "replacement"
"""The method that is wrapped where none is named."""


class _Fact:
    """A class attribute that is read from the wrapped method: of an instance its own, of the class the default's."""

    def __init__(self, read: Callable[[type[Method]], object]) -> None:
        self.read = read

    def __get__(self, method: "Grow | None", kind: type) -> object:
        from rad.methods import METHODS

        return self.read(METHODS[DEFAULT if method is None else method.method])


def _of_wrapped(read: Callable[[type[Method]], object]) -> Any:
    return _Fact(read)


@dataclass(frozen=True)
class Grow(CustomSampler):
    """With the exact conditional sampler any order gives the same law, so a difference measures how biased a method is."""

    paper = "after Growing Images 2026, OpenReview 6VOu2xvsbd"
    reconstructed = True
    preset_steps = _of_wrapped(lambda kind: kind.preset_steps)
    preset_eta = _of_wrapped(
        lambda kind: kind.preset_eta if kind.preset_solver == CustomSampler.preset_solver else CustomSampler.preset_eta
    )
    needs_grad = _of_wrapped(lambda kind: kind.needs_grad)
    weights = _of_wrapped(lambda kind: kind.weights)
    uses_eta = _of_wrapped(lambda kind: kind.uses_eta)
    uses_spacing = False  # a band runs the wrapped method with DDPM's steps on even spacing

    method: str = setting(DEFAULT, "the method that fills a band, at its preset's settings")
    bands: int = setting(4, "stages, of equal area of the hole; 1: the method itself", low=1)
    budget: Literal["fixed", "full"] = setting(
        "fixed", "fixed: stages share the steps, one each at least; full: each has all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from rad.methods import METHODS

        kinds = [name for name, kind in METHODS.items() if issubclass(kind, SamplingMethod) and not kind.needs_text]
        if self.method not in kinds:
            raise ValueError(f"method is {self.method!r}; allowed are {', '.join(kinds)}")

    @property
    def inner(self) -> Method:
        from rad.methods import METHODS

        return METHODS[self.method]()

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        return self.inner.process(base_process, time_origin)

    def cost(self, times: list[float]) -> Cost:
        total, steps = round(times[0]) + 1, self._steps(len(times) - 1)
        one = self.inner.cost(self.inner.plan(spaced_times(total, steps)))
        return Cost(one.nfe * self.bands, one.vjp * self.bands)

    def run(self, run: RunContext) -> Tensor:
        inner: Any = self.inner
        steps = self._steps(len(run.times) - 1)
        x, hole, order = run.task.known, run.task.hole, fill_order(run.task.hole, self.bands)
        for band in range(1, self.bands + 1):
            sampler = Sampler(run.process, (inner,), steps=steps, eta=run.eta)
            sampler.on_step = lambda done, total, band=band: run.report((band - 1) * total + done, self.bands * total)
            task = Task.from_image(x, hole)
            if run.task.autoencoder is not IDENTITY:  # the image knows only what it knew
                task = replace(run.task, known=task.known, hole=hole, regions=task.regions)
            result = sampler(run.denoiser, task, noise=_Draws(run))
            last = order * self.bands <= band + 0.5
            x = torch.where((hole > 0) & last, result.raw, torch.where(hole > 0, x, result.image))
            hole = torch.where(last, 0.0, hole)
        return x

    def _steps(self, steps: int) -> int:
        return steps if self.budget == "full" else max(1, steps // self.bands)


class _Draws:
    """The run's draws as keyed noise."""

    def __init__(self, run: RunContext) -> None:
        self.run = run

    def draw(self, number: int, shape: Any) -> Tensor:
        return self.run.draw()
