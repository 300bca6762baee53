"""The reverse loop: from noise in the hole to an image, for RAD and for every `SamplingMethod`.

Methods differ in the noise level of each pixel (the process) and in their hooks between two steps.
A `CustomSampler` has its own loop behind the same call.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.processes import Process
from rad.diffusion.solvers import DEFAULTS, History, Solver, check_solver, multistep
from rad.diffusion.spacings import Spacing, sampling_times
from rad.diffusion.step import noised, renoise, reverse_step
from rad.sampling.method import CustomSampler, Method, SamplingMethod
from rad.sampling.state import Cost, CountedDenoiser, RunContext, State
from rad.sampling.task import Task


@dataclass(frozen=True)
class Sample:
    """Result of a run.

    Args:
        image: (B,C,H,W) in [-1,1], equal to the input where the hole is 0.
        raw: the image before known pixels are restored.
        nfe, vjp: forward and backward passes of the network per image.
        seconds: wall time of the loop for the batch.
    """

    image: Tensor
    raw: Tensor
    nfe: int
    vjp: int
    seconds: float


class Draws(Protocol):
    """Source of a run's noise, such as `KeyedNoise`."""

    def draw(self, number: int, shape: Sequence[int]) -> Tensor: ...


class Sampler:
    """The reverse loop.

    Example:
        sampler = Sampler(RegionAware(betas), steps=20, solver="dpm++2m", spacing="logsnr")
        with KeyedNoise(seed, names) as noise:
            filled = sampler(denoiser, Task.from_image(image, hole), noise=noise).image

    Args:
        process: `RegionAware` for RAD, `Uniform` for methods on the base model.
        callbacks: methods, in the order of their hooks; or one `CustomSampler`.
        steps: number of noise levels, 1 to process.sampled_steps.
        eta: 1 adds DDPM's noise, 0 none. None: the solver's default (1 for "ddpm", otherwise 0).
        solver: "ddpm" and "ddim", see `rad.diffusion.step.reverse_step`; "dpm++2m", see `rad.diffusion.solvers.multistep`.
        spacing: see `rad.diffusion.spacings.Spacing`.
        on_step: called with (steps done, total steps) after each step.

    Raises:
        ValueError: a number is outside its range, or the solver does not support the spacing or the methods.
    """

    def __init__(
        self,
        process: Process,
        callbacks: Sequence[SamplingMethod] | CustomSampler = (),
        *,
        steps: int = 100,
        eta: float | None = None,
        solver: Solver = "ddpm",
        spacing: Spacing = "even",
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        eta = DEFAULTS.get(solver, ("even", 1.0))[1] if eta is None else eta
        self.loop = callbacks if isinstance(callbacks, CustomSampler) else None
        self.callbacks = () if isinstance(callbacks, CustomSampler) else tuple(callbacks)
        for method in self.methods:
            if solver == "dpm++2m" and not method.multistep:
                raise ValueError(
                    f"solver 'dpm++2m' extrapolates from the previous step; method {method.name!r} changes x or x0 between "
                    "steps or has its own loop: use solver 'ddpm' or 'ddim'"
                )
        check_solver(solver, eta, spacing)
        self.process, self.eta, self.solver, self.on_step = process, eta, solver, on_step
        for method in self.methods:
            if spacing not in ("even", "official") and not method.uses_spacing:
                raise ValueError(f"spacing {spacing!r} has no effect on method {method.name!r}: use 'even'")
        fractional = all(method.fractional for method in self.methods)
        self.times = sampling_times(process, steps, spacing=spacing, fractional=fractional)
        for method in self.methods:
            self.times = method.plan(self.times)
        if solver == "dpm++2m" and any(nxt > now for now, nxt in pairwise(self.times)):
            raise ValueError(
                "solver 'dpm++2m' extrapolates from the previous step; this plan goes back to noisier levels: "
                "use solver 'ddpm' or 'ddim'"
            )

    @property
    def methods(self) -> tuple[Method, ...]:
        return self.callbacks if self.loop is None else (self.loop,)

    @property
    def cost(self) -> Cost:
        """Expected work per image. A line search may exceed it."""
        if len(self.methods) == 1:
            return self.methods[0].cost(self.times)
        plain = SamplingMethod().cost(self.times)
        extra = [method.cost(self.times) for method in self.methods]
        return plain + Cost(sum(cost.nfe - plain.nfe for cost in extra), sum(cost.vjp for cost in extra))

    def __call__(self, denoiser: Denoiser, task: Task, *, noise: Draws) -> Sample:
        """Fill the holes of `task`. Row i of each draw of `noise` belongs to image i."""
        began = time.perf_counter()
        for method in self.methods:
            denoiser = method.view(denoiser, task)
        counted, drawn = CountedDenoiser(denoiser), 0

        def draw() -> Tensor:
            nonlocal drawn
            drawn += 1
            return noise.draw(drawn - 1, task.known.shape[1:]).to(task.known)

        def report(done: int, total: int) -> None:
            if self.on_step is not None:
                self.on_step(done, total)

        if self.methods:
            task = replace(task, regions=self.methods[0].regions(task))
        run = RunContext(task, self.process, counted, self.times, self.eta, draw, report)
        differentiated = any(method.needs_grad for method in self.methods)
        with torch.inference_mode(not differentiated), torch.no_grad():
            x = self._reverse(run) if self.loop is None else self.loop.run(run)
            x = x.detach()
            image = torch.where(task.hole == 0, task.known, x)
        return Sample(image, x, counted.nfe, counted.vjp, time.perf_counter() - began)

    def _reverse(self, run: RunContext) -> Tensor:
        task, draw = run.task, run.draw
        now = run.level(self.times[0])
        x = noised(task.known, now, noise=draw())
        done, total = 0, sum(nxt < now for now, nxt in pairwise(self.times))
        indices = {t: index for index, t in enumerate(sorted(set(self.times), reverse=True))}
        before: History | None = None
        for number, (t, t_next) in enumerate(pairwise(self.times)):
            nxt = run.level(t_next)
            if t_next > t:
                x, now = renoise(x, now, nxt, noise=draw()), nxt
                continue
            state = State(task, self.process, run.denoiser, done, total, t, t_next, now, nxt, x, draw, indices[t])
            if number == 0:
                state = self._apply_x("on_start", state)
            differentiated = any(callback.differentiates(state) for callback in self.callbacks)
            with torch.set_grad_enabled(differentiated):
                if differentiated:
                    state = replace(state, x=state.x.detach().requires_grad_())
                state = self._apply_x("before_denoise", state)
                estimate = run.denoiser.reuse(state.x, now)
                for callback in self.callbacks:
                    estimate = callback.on_denoised(state, estimate)
                fresh = draw() if self.eta > 0 and t_next >= 0 else None
                if self.solver == "dpm++2m":
                    x, before = multistep(state.x, estimate.x0, now, nxt, before=before, eta=self.eta, noise=fresh)
                else:
                    x = reverse_step(state.x, estimate, now, nxt, eta=self.eta, noise=fresh)
                for callback in self.callbacks:
                    x = callback.after_step(state, estimate, x)
            x, now = x.detach(), nxt
            done += 1
            run.report(done, total)
        return x

    def _apply_x(self, hook: Literal["on_start", "before_denoise"], state: State) -> State:
        for callback in self.callbacks:
            state = replace(state, x=getattr(callback, hook)(state))
        return state
