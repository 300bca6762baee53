"""Fills the hole from its boundary inwards with any other method.

Inferred from the abstract of Growing Images: Spatial Scheduling in Diffusion Inpainting (ICML 2026 workshop, OpenReview
6VOu2xvsbd). Bands of equal area divide the hole by distance to the known pixels. Stage b runs the wrapped method on all unknown
pixels, keeps band b of its result, and treats it as known from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from rad.console import did_you_mean
from rad.diffusion.processes import Process, TimeOrigin
from rad.diffusion.spacings import spaced_timesteps
from rad.masks.fill_order import fill_order
from rad.models.vae import IDENTITY, Autoencoder
from rad.sampling.method import CustomSampler, Method, SamplingMethod, setting
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, RunContext
from rad.sampling.task import Task

DEFAULT = "replacement"
"""The default wrapped method."""
Fact = TypeVar("Fact")


class _Wrapped:
    """Class attribute read from the wrapped method; on the class itself, from the default method."""

    def __init__(self, read: Callable[[type[Method]], object]) -> None:
        self.read = read

    def __get__(self, method: "Grow | None", kind: type) -> object:
        from rad.methods import METHODS

        return self.read(METHODS[DEFAULT if method is None else method.method])


def _of_wrapped(read: Callable[[type[Method]], Fact]) -> Fact:
    return cast(Fact, _Wrapped(read))


@dataclass(frozen=True)
class Grow(CustomSampler):
    """An exact conditional sampler gives the same distribution in any order: a difference measures a method's bias."""

    paper = "after Growing Images 2026, OpenReview 6VOu2xvsbd"
    reconstructed = True
    preset_steps = _of_wrapped(lambda kind: kind.preset_steps)
    preset_eta = _of_wrapped(
        lambda kind: kind.preset_eta if kind.preset_solver == CustomSampler.preset_solver else CustomSampler.preset_eta
    )
    needs_grad = _of_wrapped(lambda kind: kind.needs_grad)
    weights = _of_wrapped(lambda kind: kind.weights)
    uses_eta = _of_wrapped(lambda kind: kind.uses_eta)
    soft = _of_wrapped(lambda kind: kind.soft)
    uses_spacing = False  # bands run the wrapped method with solver "ddpm" and even spacing

    method: str = setting(DEFAULT, "the method that fills a band, with its default settings")
    bands: int = setting(4, "stages, of equal area of the hole; 1: the method itself", low=1)
    budget: Literal["fixed", "full"] = setting(
        "fixed", "fixed: stages share the steps, at least one each; full: each has all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from rad.methods import METHODS

        kinds = [name for name, kind in METHODS.items() if issubclass(kind, SamplingMethod) and not kind.needs_text]
        if self.method not in kinds:
            hint = did_you_mean(self.method, kinds)
            raise ValueError(f"method is {self.method!r}{hint}; allowed are {', '.join(kinds)}")

    @property
    def inner(self) -> SamplingMethod:
        from rad.methods import METHODS

        inner = METHODS[self.method]()
        assert isinstance(inner, SamplingMethod)
        return inner

    def check_autoencoder(self, autoencoder: Autoencoder) -> None:
        self.inner.check_autoencoder(autoencoder)

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        return self.inner.process(base_process, time_origin)

    def cost(self, timesteps: list[float]) -> Cost:
        total, steps = round(timesteps[0]) + 1, self._steps(len(timesteps) - 1)
        stage = self.inner.cost(self.inner.plan(spaced_timesteps(total, steps)))
        return Cost(stage.nfe * self.bands, stage.vjp * self.bands)

    def run(self, run: RunContext) -> Tensor:
        steps = self._steps(len(run.timesteps) - 1)
        x, hole, order = run.task.known, run.task.hole, fill_order(run.task.hole, self.bands)
        for band in range(1, self.bands + 1):
            sampler = Sampler(run.process, self.inner, steps=steps, eta=run.eta)
            task = Task.from_image(x, hole)
            if run.task.autoencoder is not IDENTITY:  # the image still has only the original known pixels
                task = replace(run.task, known=task.known, hole=hole, regions=task.regions)
            result = sampler(run.denoiser, task, noise=_RunNoise(run))
            last = order * self.bands <= band + 0.5
            x = torch.where((hole > 0) & last, result.raw, torch.where(hole > 0, x, result.image))
            hole = torch.where(last, 0.0, hole)
        return x

    def _steps(self, steps: int) -> int:
        return steps if self.budget == "full" else max(1, steps // self.bands)


class _RunNoise:
    def __init__(self, run: RunContext) -> None:
        self.run = run

    def randn(self, number: int, shape: Sequence[int]) -> Tensor:
        return self.run.randn()
