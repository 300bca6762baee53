"""The reverse loop: from noise in the hole to an image, for RAD and for every `SamplingMethod`.

Methods differ in the noise level of each pixel (the process) and in what happens between two steps (the hooks).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rad.arguments import describe
from rad.diffusion.choices import last_part
from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.processes import Process
from rad.diffusion.solvers import DEFAULTS, History, Solver, check_solver, multistep
from rad.diffusion.spacings import Spacing, sampling_timesteps
from rad.diffusion.step import Denoised, noised, renoise, reverse_step
from rad.modes import plain_modes
from rad.sampling.finite import FiniteRecord
from rad.sampling.method import CustomSampler, SamplingMethod
from rad.sampling.state import Cost, CountedDenoiser, OnCall, RunContext, State
from rad.sampling.task import Task


@dataclass(frozen=True)
class Sample:
    """Result of a run.

    Args:
        image: (B,C,H,W) in [-1,1], equal to the input where the hole is 0; raw: before known pixels are restored.
        nfe, vjp: forward and backward passes of the network per image; seconds: wall time of the loop for the batch.
    """

    image: Tensor
    raw: Tensor
    nfe: int
    vjp: int
    seconds: float


class NoiseSource(Protocol):
    """Source of a run's noise, such as `KeyedNoise`: draw `number` is (B, *shape), standard normal."""

    def randn(self, number: int, shape: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True)
class _NoHooks(SamplingMethod):
    multistep: ClassVar[bool] = True
    fractional: ClassVar[bool] = True


class Sampler:
    """The reverse loop.

    Example:
        >>> import torch
        >>> from rad.diffusion import GaussianDenoiser, RegionAware, linear_betas
        >>> from rad.rng import KeyedNoise
        >>> image, hole = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
        >>> denoiser = GaussianDenoiser(torch.zeros(1, 2, 2).double(), torch.eye(4).double())
        >>> sampler = Sampler(RegionAware(linear_betas()), steps=20, solver="dpm++2m", spacing="logsnr")
        >>> with KeyedNoise(0, ["image 0"]) as noise:
        ...     sample = sampler(denoiser, Task.from_image(image.double(), hole), noise=noise)
        >>> sample.nfe, bool((sample.image[hole == 0] == 0).all())
        (20, True)

    Args:
        process: `RegionAware` for RAD, `Uniform` for methods on the base model; `Method.process` returns it.
        method: acts between the steps; None: the plain reverse process.
        steps: number of noise levels, 1 to process.sampled_steps.
        eta: 1 adds DDPM's noise, 0 none. None: the solver's default (1 for "ddpm", otherwise 0).
        solver, spacing: see `rad.diffusion.solvers` and `rad.diffusion.spacings`.
        strength: in (0,1]. Below 1 only the last floor(steps strength) levels are visited, at least one. The first x is then the
            noised content of the task, which needs `Task.start`.
        bf16: run the network in bfloat16 (autocast). An autocast around the call has no effect.

    Raises ValueError if a number is outside its range, or the solver does not support the spacing or the method.
    """

    def __init__(
        self,
        process: Process,
        method: SamplingMethod | CustomSampler | None = None,
        *,
        steps: int = 100,
        eta: float | None = None,
        solver: Solver = "ddpm",
        spacing: Spacing = "even",
        strength: float = 1.0,
        bf16: bool = False,
    ) -> None:
        method = _NoHooks() if method is None else method
        eta = DEFAULTS.get(solver, ("even", 1.0))[1] if eta is None else eta
        if solver == "dpm++2m" and not method.multistep:
            raise ValueError(
                f"solver 'dpm++2m' extrapolates from the previous step; method {method.name!r} changes x or x0 between "
                "steps or has its own loop: use solver 'ddpm' or 'ddim'"
            )
        check_solver(solver, eta, spacing)
        if spacing not in ("even", "official") and not method.uses_spacing:
            raise ValueError(f"spacing {spacing!r} has no effect on method {method.name!r}: use 'even'")
        self.process, self.method, self.eta, self.bf16 = process, method, eta, bf16
        self.solver: Solver = solver
        self.strength = method.check_strength(strength)
        timesteps = sampling_timesteps(process, steps, spacing=spacing, fractional=method.fractional)
        self.timesteps = method.plan(last_part(timesteps, strength))
        if isinstance(method, SamplingMethod) and (not self.timesteps or self.timesteps[-1] != CLEAN):
            raise ValueError(
                f"plan() of method {method.name!r} does not end in {CLEAN}, the clean image: append CLEAN to it"
            )
        if solver == "dpm++2m" and any(nxt > now for now, nxt in pairwise(self.timesteps)):
            raise ValueError(
                "solver 'dpm++2m' extrapolates from the previous step; this plan goes back to noisier levels: "
                "use solver 'ddpm' or 'ddim'"
            )

    @property
    def cost(self) -> Cost:
        """Expected work per image. A line search may exceed it."""
        return self.method.cost(self.timesteps)

    def __call__(self, denoiser: Denoiser, task: Task, *, noise: NoiseSource, on_call: OnCall | None = None) -> Sample:
        """Fill the holes of `task`. Row i of each draw of `noise` belongs to image i.

        `on_call` is called after each network call, with the calls so far and the estimate of x0. It may raise to end the run.
        The estimate of a second model, such as M2S's, has that model's shape.
        Raises NotFiniteError, with the network call, if the network's output or x is not finite.
        """
        if not isinstance(task, Task) or not hasattr(noise, "randn"):
            raise ValueError(f"task is {describe(task)} and noise {describe(noise)}; give a Task and a KeyedNoise")
        began, method = time.perf_counter(), self.method
        record = FiniteRecord(len(task.known), self.cost.nfe)
        counted, drawn = CountedDenoiser(method.view(denoiser, task), record=record, on_call=on_call), 0
        assert counted.record is not None

        def randn() -> Tensor:
            nonlocal drawn
            drawn += 1
            return _sent(noise.randn(drawn - 1, task.known.shape[1:]), task.known)

        if self.strength < 1 and task.start is None:
            raise ValueError(
                f"strength is {self.strength} and the task has no start: use Task.encoded(..., start=True)"
            )
        start, task = task.start, replace(task, regions=method.regions(task), start=None)
        run = RunContext(task, self.process, counted, self.timesteps, self.eta, randn)
        kind, within = task.known.device.type, isinstance(denoiser, CountedDenoiser)  # within: a sampler in a sampler
        bf16 = torch.is_autocast_enabled(kind) if within else self.bf16
        autocast = torch.autocast(kind, torch.bfloat16, enabled=bf16)
        with plain_modes(), torch.inference_mode(not method.needs_grad), torch.no_grad(), autocast:
            x = method.run(run) if isinstance(method, CustomSampler) else self._reverse(run, method, start)
            x = _image(x, task.known, "the result", method).detach()
            counted.record.check(x, task.known, method)
            image = torch.where(task.hole == 0, task.known, x)
        return Sample(image, x, counted.nfe, counted.vjp, time.perf_counter() - began)

    def _first(self, task: Task, now: NoiseLevel, start: Tensor | None, noise: Tensor) -> Tensor:
        """x at the first level."""
        if self.strength < 1:
            assert start is not None
            content = torch.where(task.hole > 0, start, task.known) if self.method.keeps_known else start
            return noised(content, now, noise=noise)
        return noised(task.known, now, noise=noise) if self.method.keeps_known else noise

    def _reverse(self, run: RunContext, method: SamplingMethod, start: Tensor | None) -> Tensor:
        task, randn, timesteps = run.task, run.randn, run.timesteps
        now = run.level(timesteps[0])
        x = self._first(task, now, start, randn())
        done, total = 0, sum(nxt < now for now, nxt in pairwise(timesteps))
        indices = {t: index for index, t in enumerate(sorted(set(timesteps), reverse=True))}
        before: History | None = None
        for number, (t, t_next) in enumerate(pairwise(timesteps)):
            nxt = run.level(t_next)
            if t_next > t:
                x, now = renoise(x, now, nxt, noise=randn()), nxt
                continue
            state = State(task, self.process, run.denoiser, done, total, t, t_next, now, nxt, x, randn, indices[t])
            if number == 0:
                state = replace(state, x=_image(method.on_start(state), x, "on_start()", method))
            differentiated = method.differentiates(state)
            with torch.set_grad_enabled(differentiated):
                if differentiated:
                    state = replace(state, x=state.x.detach().requires_grad_())
                state = replace(state, x=_image(method.before_denoise(state), x, "before_denoise()", method))
                estimate = method.on_denoised(state, run.denoiser.reuse(state.x, now))
                if not isinstance(estimate, Denoised):
                    raise _wrong("on_denoised()", method, estimate, "a Denoised, as of replace(denoised, x0=...)")
                _image(estimate.x0, x, "x0 of on_denoised()", method)
                fresh = randn() if self.eta > 0 and t_next >= 0 else None
                eta = 0.0 if fresh is None else self.eta  # a step to the clean level is equal for every eta
                if self.solver == "dpm++2m":
                    x, before = multistep(state.x, estimate.x0, now, nxt, before=before, eta=eta, noise=fresh)
                else:
                    x = reverse_step(state.x, estimate, now, nxt, eta=eta, noise=fresh)
                x = _image(method.after_step(state, estimate, x), x, "after_step()", method)
            x, now = x.detach(), nxt
            done += 1
        return x


def _sent(draw: Tensor, like: Tensor) -> Tensor:
    """`draw` with device and dtype of `like`. From the CPU it goes through page-locked memory, so that nothing waits."""
    if draw.device.type == "cpu" and like.device.type == "cuda":
        return draw.pin_memory().to(like, non_blocking=True)
    return draw.to(like)


def _image(x: Tensor, like: Tensor, source: str, method: SamplingMethod | CustomSampler) -> Tensor:
    """`x`, which a method of any author returned. Raises ValueError for another shape or type than `like` has."""
    if not isinstance(x, Tensor) or x.shape != like.shape:
        raise _wrong(source, method, x, f"a tensor {tuple(like.shape)}")
    return x


def _wrong(source: str, method: SamplingMethod | CustomSampler, value: object, expected: str) -> ValueError:
    return ValueError(f"{source} of method {method.name!r} is {describe(value)}; expected {expected}")
