"""Inputs of a sampling method: the state of a step, the context of a run, and the NFE counter."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.denoiser import Denoiser, Semantics, TextDenoiser
from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.processes import Process
from rad.diffusion.step import Denoised
from rad.sampling.finite import FiniteRecord
from rad.sampling.task import Task

OnCall = Callable[[int, Tensor], None]
"""(network calls so far, the estimate of x0, detached): called after each network call. An exception in it ends the run."""


@dataclass(frozen=True)
class Cost:
    """Work per image: `nfe` forward and `vjp` backward passes of the network."""

    nfe: int
    vjp: int = 0

    @property
    def units(self) -> int:
        """Total in forward passes; a backward pass counts twice."""
        return self.nfe + 2 * self.vjp

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.nfe + other.nfe, self.vjp + other.vjp)

    def __mul__(self, samples: int) -> "Cost":
        return Cost(self.nfe * samples, self.vjp * samples)


class CountedDenoiser:
    """A denoiser that counts its work: network calls `nfe`, and backward passes `vjp`.

    A wrapped `CountedDenoiser` counts this work too, as does `within`, for a second denoiser in the run. `record` notes the first
    call whose values are not finite; that of `within` is used where it has one. `on_call` also sees the calls of denoisers within
    this one, whose estimates may have other shapes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        within: "CountedDenoiser | None" = None,
        record: FiniteRecord | None = None,
        on_call: OnCall | None = None,
    ) -> None:
        if isinstance(denoiser, CountedDenoiser):
            denoiser, within = denoiser.denoiser, denoiser
        self.denoiser, self.channels, self._within = denoiser, denoiser.channels, within
        self.record = record if within is None or within.record is None else within.record
        self.on_call, self.nfe, self.vjp = on_call, 0, 0
        self._kept: tuple[Tensor, NoiseLevel, Denoised] | None = None

    def denoise(self, x: Tensor, noise: NoiseLevel, *, keep: bool = False, trial: bool = False) -> Denoised:
        """See `Denoiser.denoise`. With `keep`, the next `reuse` may return this estimate. A `trial` need not be finite."""
        self._count(nfe=1)
        denoised = self.denoiser.denoise(x, noise)
        if not trial:
            self._note(x, noise, denoised)
        if keep:
            self._kept = (x.detach().clone(), noise, denoised)
        self._report(denoised)
        return denoised

    def reuse(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """The kept estimate, at no cost, if the values of x and the level are equal and x needs no gradient; else `denoise`."""
        kept, self._kept = self._kept, None
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if kept is None or differentiated or kept[1] is not noise or not torch.equal(kept[0], x):
            return self.denoise(x, noise)
        return kept[2]

    def semantic(self, x: Tensor, noise: NoiseLevel, *, fine: bool) -> Semantics:
        """See `TextDenoiser.semantic`; 1 NFE."""
        assert isinstance(self.denoiser, TextDenoiser)
        self._count(nfe=1)
        semantics = self.denoiser.semantic(x, noise, fine=fine)
        self._note(x, noise, semantics.estimate)
        self._report(semantics.estimate)
        return semantics

    def gradient(self, loss: Tensor, x: Tensor, *, passes: int = 1) -> Tensor:
        """d loss / d x, `passes` network calls (1 VJP each) after x. Each entry of loss (B,) depends on its own image alone."""
        self._count(vjp=passes)
        with torch.enable_grad():
            return torch.autograd.grad(loss.sum(), x)[0]

    def _count(self, *, nfe: int = 0, vjp: int = 0) -> None:
        self.nfe, self.vjp = self.nfe + nfe, self.vjp + vjp
        if self._within is not None:
            self._within._count(nfe=nfe, vjp=vjp)

    def _note(self, x: Tensor, noise: NoiseLevel, denoised: Denoised) -> None:
        root = self
        while root._within is not None:
            root = root._within
        if self.record is not None:
            self.record.add(root.nfe, x, noise, denoised)

    def _report(self, denoised: Denoised) -> None:
        if self.on_call is not None:
            self.on_call(self.nfe, denoised.x0.detach())
        if self._within is not None:
            self._within._report(denoised)


@dataclass(frozen=True)
class State:
    """State of one step, the input of every hook. Hooks return a value and mutate nothing.

    Args:
        denoiser: counts its calls. step: index of this step, 0 to `steps` - 1.
        timestep, next_timestep: t before and after this step; `now`, `next`: their noise levels.
        x: (B,C,H,W) at `now`. randn: returns a fresh standard normal image (B,C,H,W) at each call.
        index: of the level `now` among the plan's distinct levels, from 0, the noisiest.
    """

    task: Task
    process: Process
    denoiser: CountedDenoiser
    step: int
    steps: int
    timestep: float
    next_timestep: float
    now: NoiseLevel
    next: NoiseLevel
    x: Tensor
    randn: Callable[[], Tensor]
    index: int = 0

    def level(self, t: float) -> NoiseLevel:
        return level(self.process, t, self.task)

    def is_clean(self, level: NoiseLevel) -> bool:
        """Whether `level` has no noise anywhere. `now` and `next` of a uniform process need no read of the device."""
        for each, t in ((self.now, self.timestep), (self.next, self.next_timestep)):
            if level is each and level.index is None:
                return t <= CLEAN
        return not bool((level.sigma > 0).any())


def level(process: Process, t: float, task: Task) -> NoiseLevel:
    """Noise level of `task` at t, which all images share."""
    kind = torch.int64 if isinstance(t, int) else torch.float64
    return process.noise(torch.full((len(task.known),), t, dtype=kind, device=task.known.device), task.regions)


@dataclass(frozen=True)
class RunContext:
    """Input of a `CustomSampler`; fields as in `State`. `timesteps` are the t to visit, ending in CLEAN."""

    task: Task
    process: Process
    denoiser: CountedDenoiser
    timesteps: list[float]
    eta: float
    randn: Callable[[], Tensor]

    def level(self, t: float) -> NoiseLevel:
        return level(self.process, t, self.task)
