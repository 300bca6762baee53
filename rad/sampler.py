"""The reverse loop: from noise in the hole to an image, for RAD and for every method that is a callback of it.

Methods differ in how noisy each pixel is (the process) and in what is done between two steps (the callbacks).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from rad.prior import Prior
from rad.process import Noise, Process, Regions, spaced_times
from rad.step import Estimate, noised, renoise, reverse_step
from rad.tape import NoiseTape


@dataclass(frozen=True)
class Task:
    """Images to be filled.

    Args:
        known: (B,C,H,W) in [-1,1], zero where the hole is 1, so that nothing can read what is to be found.
        hole: (B,1,H,W) in [0,1], 1 = fill; between: kept in part (RAD's soft masks).
        regions: the hole as its distinct values.
    """

    known: Tensor
    hole: Tensor
    regions: Regions

    @classmethod
    def of(cls, image: Tensor, hole: Tensor) -> "Task":
        """image (B,C,H,W) in [-1,1], hole (B,1,H,W) in [0,1]; both on the device of the network."""
        if image.shape[0] != hole.shape[0] or image.shape[2:] != hole.shape[2:]:
            raise ValueError(
                f"image is {tuple(image.shape)} and hole {tuple(hole.shape)}; expected (B,C,H,W) and (B,1,H,W)"
            )
        regions = Regions.of(hole)
        return cls(torch.where(hole == 1, 0.0, image), hole.to(image.dtype), regions)


@dataclass(frozen=True)
class State:
    """What a callback sees. Hooks return a value; they change nothing.

    Args:
        task, process, prior: of this run.
        step: number of this step, from 0, of `steps`.
        time, next_time: levels of this step; `now`, `next` their noise.
        x: (B,C,H,W) at `now`.
        estimate: of the prior at x; None in the hooks before it.
        draw: gives a fresh standard normal image (B,C,H,W) at each call.
    """

    task: Task
    process: Process
    prior: Prior
    step: int
    steps: int
    time: int
    next_time: int
    now: Noise
    next: Noise
    x: Tensor
    draw: Callable[[], Tensor]
    estimate: Estimate | None = None


class SamplingCallback:
    """A method, as hooks of the reverse loop; each does nothing unless overridden, and returns what it was to change."""

    needs_grad = False
    """Whether the estimate is differentiated with respect to x."""

    def plan(self, times: list[int]) -> list[int]:
        """The levels visited, ending in CLEAN; a level that is higher than the one before is a forward move."""
        return times

    def on_start(self, state: State) -> Tensor:
        """x at the first level."""
        return state.x

    def before_estimate(self, state: State) -> Tensor:
        """x, before the prior sees it."""
        return state.x

    def on_estimate(self, state: State) -> Estimate:
        """The estimate of the clean image."""
        assert state.estimate is not None
        return state.estimate

    def after_step(self, state: State, x_next: Tensor) -> Tensor:
        """x at the next level."""
        return x_next


@dataclass(frozen=True)
class Sample:
    """The result of a run.

    Args:
        image: (B,C,H,W) in [-1,1], with the known pixels of the input where the hole is 0.
        raw: the same before that.
        nfe: network calls an image; vjp: backward passes through the network an image.
        seconds: of the loop, for the batch.
    """

    image: Tensor
    raw: Tensor
    nfe: int
    vjp: int
    seconds: float


class Sampler:
    """The loop.

    Args:
        process: `RegionAware` for RAD, `Uniform` for methods that use the base model.
        callbacks: methods; in this order at each hook.
        steps: number of levels visited, from 1 to process.sampled_steps.
        eta: 1 is DDPM, 0 is DDIM; see `rad.step.reverse_step`.
        spacing: "even", or "official" as the official RAD sampler.
        on_step: called with (steps done, steps in all) after each network call, for a progress bar.
    """

    def __init__(
        self,
        process: Process,
        callbacks: Sequence[SamplingCallback] = (),
        *,
        steps: int = 100,
        eta: float = 1.0,
        spacing: Literal["even", "official"] = "even",
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; allowed are 0 (DDIM, no fresh noise) to 1 (DDPM)")
        self.process, self.callbacks, self.eta, self.on_step = process, tuple(callbacks), eta, on_step
        self.times = spaced_times(process.sampled_steps, steps, spacing=spacing)
        for callback in self.callbacks:
            self.times = callback.plan(self.times)

    @property
    def nfe(self) -> int:
        """Network calls an image needs."""
        return sum(nxt < now for now, nxt in pairwise(self.times))

    def __call__(self, prior: Prior, task: Task, *, noise: NoiseTape) -> Sample:
        """Fill the holes of `task`. Draws come from `noise`, whose rows are the images of the task."""
        differentiated = any(callback.needs_grad for callback in self.callbacks)
        with torch.inference_mode(not differentiated), torch.no_grad():
            return self._run(prior, task, noise, differentiated)

    def _run(self, prior: Prior, task: Task, tape: NoiseTape, differentiated: bool) -> Sample:
        began = time.perf_counter()
        device, batch = task.known.device, len(task.known)
        drawn = 0

        def draw() -> Tensor:
            nonlocal drawn
            drawn += 1
            return tape.draw(drawn - 1, task.known.shape[1:]).to(task.known)

        def level(t: int) -> Noise:
            return self.process.noise(torch.full((batch,), t, device=device), task.regions)

        x = draw()
        now = level(self.times[0])
        x = noised(task.known, now, noise=x)
        done, vjp, total = 0, 0, self.nfe
        for number, (t, t_next) in enumerate(pairwise(self.times)):
            nxt = level(t_next)
            if t_next > t:
                x, now = renoise(x, now, nxt, noise=draw()), nxt
                continue
            state = State(task, self.process, prior, done, total, t, t_next, now, nxt, x, draw)
            if number == 0:
                state = self._apply_x("on_start", state)
            with torch.set_grad_enabled(differentiated):
                if differentiated:
                    state = replace(state, x=state.x.detach().requires_grad_())
                    vjp += 1
                state = self._apply_x("before_estimate", state)
                estimate = prior.estimate(state.x, now)
                for callback in self.callbacks:
                    estimate = callback.on_estimate(replace(state, estimate=estimate))
                state = replace(state, estimate=estimate)
                fresh = draw() if self.eta > 0 and t_next >= 0 else None
                x = reverse_step(state.x, estimate, now, nxt, eta=self.eta, noise=fresh)
                for callback in self.callbacks:
                    x = callback.after_step(state, x)
            x, now = x.detach(), nxt
            done += 1
            if self.on_step is not None:
                self.on_step(done, total)
        image = torch.where(task.hole == 0, task.known, x)
        return Sample(image, x, done, vjp, time.perf_counter() - began)

    def _apply_x(self, hook: Literal["on_start", "before_estimate"], state: State) -> State:
        for callback in self.callbacks:
            state = replace(state, x=getattr(callback, hook)(state))
        return state
