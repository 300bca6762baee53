"""What a sampling method sees: the state of a step, the context of a run, and the count of network evaluations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.denoiser import Denoiser, Semantics, TextDenoiser
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import Process
from rad.diffusion.step import Denoised
from rad.sampling.task import Task


@dataclass(frozen=True)
class Cost:
    """Work for one image: `nfe` network calls and `vjp` backward passes through the network, each worth two calls."""

    nfe: int
    vjp: int = 0

    @property
    def units(self) -> int:
        """In network calls."""
        return self.nfe + 2 * self.vjp

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.nfe + other.nfe, self.vjp + other.vjp)


class CountedDenoiser:
    """A prior that counts its calls. Asked again about the very same tensor it gives the same answer, at no cost."""

    def __init__(self, prior: Denoiser) -> None:
        self.prior, self.channels = prior, prior.channels
        self.nfe = self.vjp = 0
        self._last: tuple[Tensor, NoiseLevel, Denoised] | None = None

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        if self._last is not None and self._last[0] is x and self._last[1] is noise:
            wanted = torch.is_grad_enabled() and x.requires_grad
            if not wanted or self._last[2].x0.requires_grad:
                return self._last[2]
        self.nfe += 1
        estimate = self.prior.denoise(x, noise)
        self._last = (x, noise, estimate)
        return estimate

    def semantic(self, x: Tensor, noise: NoiseLevel, *, fine: bool) -> Semantics:
        """As `TextDenoiser.semantic`, one network call."""
        assert isinstance(self.prior, TextDenoiser)
        self.nfe += 1
        return self.prior.semantic(x, noise, fine=fine)

    def gradient(self, loss: Tensor, x: Tensor) -> Tensor:
        """d loss / d x, (B,C,H,W), for the losses (B,) of the images, each of which depends on its own x alone."""
        self.vjp += 1
        with torch.enable_grad():
            return torch.autograd.grad(loss.sum(), x)[0]


@dataclass(frozen=True)
class State:
    """What a callback sees. Hooks return a value; they change nothing.

    Args:
        task, process, prior: of this run; the prior counts its calls.
        step: number of this step, from 0, of `steps`.
        time, next_time: levels of this step; `now`, `next` their noise.
        x: (B,C,H,W) at `now`.
        estimate: of the prior at x; None in the hooks before it.
        draw: gives a fresh standard normal image (B,C,H,W) at each call.
    """

    task: Task
    process: Process
    prior: CountedDenoiser
    step: int
    steps: int
    time: float
    next_time: float
    now: NoiseLevel
    next: NoiseLevel
    x: Tensor
    draw: Callable[[], Tensor]
    estimate: Denoised | None = None

    def level(self, t: float) -> NoiseLevel:
        """The noise at time t."""
        return level(self.process, t, self.task)


def level(process: Process, t: float, task: Task) -> NoiseLevel:
    """The noise of `task` at time t, the same for all images."""
    kind = torch.int64 if isinstance(t, int) else torch.float64
    return process.noise(torch.full((len(task.known),), t, dtype=kind, device=task.known.device), task.regions)


@dataclass(frozen=True)
class RunContext:
    """What a `CustomSampler` works with: as in `State`; `times` are the levels to visit, ending in CLEAN."""

    task: Task
    process: Process
    prior: CountedDenoiser
    times: list[float]
    eta: float
    draw: Callable[[], Tensor]
    tell: Callable[[int, int], None]
    """To be called with (steps done, of how many), for a progress bar."""

    def level(self, t: float) -> NoiseLevel:
        """The noise at time t."""
        return level(self.process, t, self.task)
