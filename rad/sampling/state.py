"""Inputs of a sampling method: the state of a step, the context of a run, and the NFE counter."""

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
    """Work per image: `nfe` forward passes of the network and `vjp` backward passes, which count twice."""

    nfe: int
    vjp: int = 0

    @property
    def units(self) -> int:
        """Total in forward passes."""
        return self.nfe + 2 * self.vjp

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.nfe + other.nfe, self.vjp + other.vjp)


class CountedDenoiser:
    """A denoiser that counts its calls. A repeated call with the same tensor object returns the last result for free."""

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
        """See `TextDenoiser.semantic`; 1 NFE."""
        assert isinstance(self.prior, TextDenoiser)
        self.nfe += 1
        return self.prior.semantic(x, noise, fine=fine)

    def gradient(self, loss: Tensor, x: Tensor) -> Tensor:
        """d loss / d x, (B,C,H,W); loss (B,), and each image's loss depends on its own x alone. Costs 1 VJP."""
        self.vjp += 1
        with torch.enable_grad():
            return torch.autograd.grad(loss.sum(), x)[0]


@dataclass(frozen=True)
class State:
    """State of one step, the input of every hook. Hooks return a value and mutate nothing.

    Args:
        task, process, prior: of this run; `prior` is the denoiser, which counts its calls.
        step: index of this step, 0 to `steps` - 1.
        time, next_time: t before and after this step; `now`, `next`: their noise levels.
        x: (B,C,H,W) at `now`.
        estimate: result of the denoiser at x; None in earlier hooks.
        draw: returns a new standard normal (B,C,H,W) at each call.
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
        """Noise level at t."""
        return level(self.process, t, self.task)


def level(process: Process, t: float, task: Task) -> NoiseLevel:
    """Noise level of `task` at t, which all images share."""
    kind = torch.int64 if isinstance(t, int) else torch.float64
    return process.noise(torch.full((len(task.known),), t, dtype=kind, device=task.known.device), task.regions)


@dataclass(frozen=True)
class RunContext:
    """Input of a `CustomSampler`; fields as in `State`. `times` are the t to visit, ending in CLEAN."""

    task: Task
    process: Process
    prior: CountedDenoiser
    times: list[float]
    eta: float
    draw: Callable[[], Tensor]
    tell: Callable[[int, int], None]
    """Progress callback: (steps done, total steps)."""

    def level(self, t: float) -> NoiseLevel:
        """Noise level at t."""
        return level(self.process, t, self.task)
