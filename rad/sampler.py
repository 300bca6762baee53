"""The reverse loop: from noise in the hole to an image, for RAD and for every method that is a callback of it.

Methods differ in how noisy each pixel is (the process) and in what is done between two steps (the callbacks).
The few that are no reverse loop at all are a `Loop`: they own theirs, behind the same call.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from rad.codec import PIXELS, Codec, Grid, Prefill, latent_hole, prefill
from rad.prior import Prior, Semantics, TextPrior
from rad.process import Noise, Process, Regions, Spacing, TimeOrigin, sampling_times
from rad.solvers import DEFAULTS, History, Solver, check_solver, multistep
from rad.step import Estimate, noised, renoise, reverse_step


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


class CountedPrior:
    """A prior that counts its calls. Asked again about the very same tensor it gives the same answer, at no cost."""

    def __init__(self, prior: Prior) -> None:
        self.prior, self.channels = prior, prior.channels
        self.nfe = self.vjp = 0
        self._last: tuple[Tensor, Noise, Estimate] | None = None

    def estimate(self, x: Tensor, noise: Noise) -> Estimate:
        if self._last is not None and self._last[0] is x and self._last[1] is noise:
            wanted = torch.is_grad_enabled() and x.requires_grad
            if not wanted or self._last[2].x0.requires_grad:
                return self._last[2]
        self.nfe += 1
        estimate = self.prior.estimate(x, noise)
        self._last = (x, noise, estimate)
        return estimate

    def semantic(self, x: Tensor, noise: Noise, *, fine: bool) -> Semantics:
        """As `TextPrior.semantic`, one network call."""
        assert isinstance(self.prior, TextPrior)
        self.nfe += 1
        return self.prior.semantic(x, noise, fine=fine)

    def gradient(self, loss: Tensor, x: Tensor) -> Tensor:
        """d loss / d x, (B,C,H,W), for the losses (B,) of the images, each of which depends on its own x alone."""
        self.vjp += 1
        with torch.enable_grad():
            return torch.autograd.grad(loss.sum(), x)[0]


@dataclass(frozen=True)
class Task:
    """Images to be filled.

    Args:
        known: (B,C,H,W) in [-1,1], zero where the hole is 1, so that nothing can read what is to be found.
        hole: (B,1,H,W) in [0,1], 1 = fill; between: kept in part (RAD's soft masks).
        regions: the hole as its distinct values.
        codec: between what the model works on (pixels, or latents) and pixels.
        picture: (B,3,H,W) in [-1,1] the known pixels, zero where picture_hole (B,1,H,W) is 1. Of a pixel model these are
            `known` and `hole`; of a latent one `known` (B,c,h,w) is its encoding, and `hole` the cells that it spoils.
    """

    known: Tensor
    hole: Tensor
    regions: Regions
    codec: Codec
    picture: Tensor
    picture_hole: Tensor

    @classmethod
    def of(cls, image: Tensor, hole: Tensor) -> "Task":
        """image (B,C,H,W) in [-1,1], hole (B,1,H,W) in [0,1]; both on the device of the network."""
        if image.shape[0] != hole.shape[0] or image.shape[2:] != hole.shape[2:]:
            raise ValueError(
                f"image is {tuple(image.shape)} and hole {tuple(hole.shape)}; expected (B,C,H,W) and (B,1,H,W)"
            )
        known, regions, hole = torch.where(hole == 1, 0.0, image), Regions.of(hole), hole.to(image.dtype)
        return cls(known, hole, regions, PIXELS, known, hole)

    @classmethod
    def encoded(
        cls, picture: Tensor, hole: Tensor, codec: Codec, *, grid: Grid | None = None, fill: Prefill = "smooth"
    ) -> "Task":
        """A task for a latent model.

        Args:
            picture: (B,3,H,W) in [-1,1]; hole: (B,1,H,W) in [0,1]; sides are multiples of codec.factor.
            grid: how the hole comes to the latent grid; fill: what the hole holds when the picture is encoded, so that known
                latents have not seen it; "none": its own content (`encode_full` of other programs, which leaks).
        """
        plain = cls.of(picture, hole)
        cells = latent_hole(plain.hole, codec.factor, grid or Grid())
        latents = codec.encode(prefill(picture if fill == "none" else plain.picture, plain.hole, fill))
        inner = cls.of(latents, cells)
        return cls(inner.known, inner.hole, inner.regions, codec, plain.picture, plain.hole)


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
    prior: CountedPrior
    step: int
    steps: int
    time: float
    next_time: float
    now: Noise
    next: Noise
    x: Tensor
    draw: Callable[[], Tensor]
    estimate: Estimate | None = None

    def level(self, t: float) -> Noise:
        """The noise at time t."""
        return level(self.process, t, self.task)


def level(process: Process, t: float, task: Task) -> Noise:
    """The noise of `task` at time t, the same for all images."""
    kind = torch.int64 if isinstance(t, int) else torch.float64
    return process.noise(torch.full((len(task.known),), t, dtype=kind, device=task.known.device), task.regions)


def setting(default: Any, help: str, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field of a method: what it is, with unit, equation and source, and the range it must lie in (ends included)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Schedule:
    """How a method is run: the number of network steps, the solver with its eta, and the spacing of the noise levels."""

    steps: int
    solver: Solver
    spacing: Spacing
    eta: float


@dataclass(frozen=True)
class Method:
    """What every method says of itself. A method is a frozen dataclass whose fields are its settings.

    Attributes:
        paper: authors, year, arXiv id.
        preset_steps, preset_eta, preset_solver, preset_spacing: where the user gives none; of the paper, or measured.
        needs_grad: whether the network is differentiated; then bf16 is refused.
        weights: "base": the pretrained network; "adapter": RAD's; "none": no network at all.
        uses_eta: whether the sampler's eta, and with it the choice of ddpm or ddim, has a meaning for it.
        uses_spacing: whether the sampler's spacing has.
        multistep: whether it leaves x and x0 alone between the steps, so that "dpm++2m" may use the step before.
        fractional: whether it takes fractional times; otherwise they are rounded and repeated ones are dropped.
        needs_text: whether it needs a `TextPrior`.
    """

    paper: ClassVar[str] = ""
    preset_steps: ClassVar[int] = 100
    preset_eta: ClassVar[float] = 1.0
    preset_solver: ClassVar[Solver] = "ddpm"
    preset_spacing: ClassVar[Spacing] = "even"
    needs_grad: ClassVar[bool] = False
    weights: ClassVar[Literal["base", "adapter", "none"]] = "base"
    uses_eta: ClassVar[bool] = True
    uses_spacing: ClassVar[bool] = True
    multistep: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for one in fields(self):
            choices = get_args(kinds[one.name]) if get_origin(kinds[one.name]) is Literal else ()
            if choices and getattr(self, one.name) not in choices:
                raise ValueError(
                    f"{one.name} is {getattr(self, one.name)!r}; allowed are {', '.join(map(repr, choices))}"
                )
            value, low, high = getattr(self, one.name), one.metadata.get("low"), one.metadata.get("high")
            if low is None or high is None or isinstance(value, str):
                continue
            if not low <= value <= high:
                raise ValueError(f"{one.name} is {value}; allowed are {_range(low, high)} ({one.metadata['help']})")

    @property
    def name(self) -> str:
        """As on the command line."""
        return name_of(type(self))

    def check(self) -> object:
        """Called before any network call. Raises ValueError where something that the method needs is missing."""
        return None

    def process(self, own: Process, time_origin: TimeOrigin) -> Process:
        """The noise process that the method runs on, for a model whose own is `own`."""
        return own

    def regions(self, task: Task) -> Regions:
        """The distinct values that the process tells apart: those of the hole itself."""
        return task.regions

    def view(self, prior: Prior, task: Task) -> Prior:
        """The denoiser as the method uses it for this task. Raises ValueError for one that lacks what the method needs."""
        return prior

    def choose(
        self,
        *,
        steps: int | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
    ) -> Schedule:
        """The preset, changed by what the user gives. Another solver brings its own spacing and eta, see `DEFAULTS`.

        What has no effect (see `unused`) stays as in the preset.
        """
        solver = self.preset_solver if solver is None or not self.takes(solver) else solver
        own = self.preset_spacing, self.preset_eta
        default_spacing, default_eta = own if solver == self.preset_solver else DEFAULTS.get(solver, own)
        spacing = default_spacing if spacing is None or not self.uses_spacing else spacing
        eta = default_eta if eta is None or not self.uses_eta else eta
        return Schedule(self.preset_steps if steps is None else steps, solver, spacing, eta)

    def takes(self, solver: str) -> bool:
        """Whether `solver` has an effect, or is refused, rather than being ignored."""
        return self.uses_eta or (solver == "dpm++2m" and self.weights != "none")

    def unused(
        self, *, solver: Solver | None = None, spacing: Spacing | None = None, eta: float | None = None
    ) -> list[str]:
        """The names of those that are given and have no effect on this method."""
        kept = {
            "solver": solver is None or self.takes(solver) or solver == self.preset_solver,
            "spacing": spacing is None or self.uses_spacing or spacing == self.preset_spacing,
            "eta": eta is None or self.uses_eta or eta == self.preset_eta,
        }
        return [name for name, fine in kept.items() if not fine]

    def plan(self, times: list[float]) -> list[float]:
        """The levels visited, ending in CLEAN; a level that is higher than the one before is a forward move."""
        return times

    def cost(self, times: list[float]) -> Cost:
        """Work for one image on the levels that `plan` gave."""
        calls = sum(nxt < now for now, nxt in pairwise(times))
        return Cost(calls, calls if self.needs_grad else 0)

    def decode(self, x: Tensor, task: Task) -> Tensor:
        """The pictures (B,3,H,W) in [-1,1] of what the method made, x (B,C,h,w), before known pixels are put back."""
        return task.codec.decode(x)


def name_of(kind: type[Method]) -> str:
    """What a method is called: the name of its file."""
    return kind.__module__.rpartition(".")[2]


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{low:g} or more"
    return f"{high:g} or less" if math.isinf(low) else f"{low:g} to {high:g}"


@dataclass(frozen=True)
class SamplingCallback(Method):
    """A method, as hooks of the reverse loop; each does nothing unless overridden, and returns what it was to change."""

    def differentiates(self, state: State) -> bool:
        """Whether `state.estimate` of this step is to be differentiable with respect to `state.x`."""
        return self.needs_grad

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
class Run:
    """What a `Loop` works with: as in `State`; `times` are the levels to visit, ending in CLEAN."""

    task: Task
    process: Process
    prior: CountedPrior
    times: list[float]
    eta: float
    draw: Callable[[], Tensor]
    tell: Callable[[int, int], None]
    """To be called with (steps done, of how many), for a progress bar."""

    def level(self, t: float) -> Noise:
        """The noise at time t."""
        return level(self.process, t, self.task)


@dataclass(frozen=True)
class Loop(Method, ABC):
    """A method that is not a reverse loop with something between the steps."""

    @abstractmethod
    def run(self, run: Run) -> Tensor:
        """The filled images (B,C,H,W) in [-1,1]; known pixels are put back afterwards."""


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


class Draws(Protocol):
    """Where a run's noise comes from: a `NoiseTape`, or the draws of a run around this one."""

    def draw(self, number: int, shape: Sequence[int]) -> Tensor: ...


class Sampler:
    """The loop.

    Args:
        process: `RegionAware` for RAD, `Uniform` for methods that use the base model.
        callbacks: methods; in this order at each hook. Or a single `Loop`.
        steps: number of noise levels, from 1 to process.sampled_steps.
        eta: 1 adds DDPM's noise, 0 none; None: the solver's own (1 for "ddpm", otherwise 0).
        solver: "ddpm" and "ddim", see `rad.step.reverse_step`; "dpm++2m", see `rad.solvers.multistep`.
        spacing: where the noise levels lie, see `rad.process.Spacing`.
        on_step: called with (steps done, steps in all) after each step, for a progress bar.

    Raises:
        ValueError: a number outside its range; or a solver that cannot be combined with the spacing or the methods.
    """

    def __init__(
        self,
        process: Process,
        callbacks: Sequence[SamplingCallback] | Loop = (),
        *,
        steps: int = 100,
        eta: float | None = None,
        solver: Solver = "ddpm",
        spacing: Spacing = "even",
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        eta = DEFAULTS.get(solver, ("even", 1.0))[1] if eta is None else eta
        check_solver(solver, eta, spacing)
        self.process, self.eta, self.solver, self.on_step = process, eta, solver, on_step
        self.loop = callbacks if isinstance(callbacks, Loop) else None
        self.callbacks = () if isinstance(callbacks, Loop) else tuple(callbacks)
        for method in self.methods:
            if spacing not in ("even", "official") and not method.uses_spacing:
                raise ValueError(f"spacing {spacing!r} has no effect on method {method.name!r}: use 'even'")
        fractional = all(method.fractional for method in self.methods)
        self.times = sampling_times(process, steps, spacing=spacing, fractional=fractional)
        for method in self.methods:
            self.times = method.plan(self.times)
        if solver == "dpm++2m":
            self._check_multistep()

    def _check_multistep(self) -> None:
        for method in self.methods:
            if not method.multistep:
                raise ValueError(
                    f"solver 'dpm++2m' extrapolates from the step before, and method {method.name!r} changes x or x0 between "
                    "steps or has a loop of its own: use solver 'ddpm' or 'ddim'"
                )
        if any(nxt > now for now, nxt in pairwise(self.times)):
            raise ValueError(
                "solver 'dpm++2m' extrapolates from the step before, and this plan goes back to noisier levels: "
                "use solver 'ddpm' or 'ddim'"
            )

    @property
    def methods(self) -> tuple[Method, ...]:
        return self.callbacks if self.loop is None else (self.loop,)

    @property
    def cost(self) -> Cost:
        """Work that an image needs; a line search may take more."""
        if len(self.methods) == 1:
            return self.methods[0].cost(self.times)
        plain = SamplingCallback().cost(self.times)
        extra = [method.cost(self.times) for method in self.methods]
        return plain + Cost(sum(cost.nfe - plain.nfe for cost in extra), sum(cost.vjp for cost in extra))

    def __call__(self, prior: Prior, task: Task, *, noise: Draws) -> Sample:
        """Fill the holes of `task`. Draws come from `noise`, whose rows are the images of the task."""
        began = time.perf_counter()
        for method in self.methods:
            prior = method.view(prior, task)
        counted, drawn = CountedPrior(prior), 0

        def draw() -> Tensor:
            nonlocal drawn
            drawn += 1
            return noise.draw(drawn - 1, task.known.shape[1:]).to(task.known)

        def tell(done: int, total: int) -> None:
            if self.on_step is not None:
                self.on_step(done, total)

        if self.methods:
            task = replace(task, regions=self.methods[0].regions(task))
        run = Run(task, self.process, counted, self.times, self.eta, draw, tell)
        differentiated = any(method.needs_grad for method in self.methods)
        with torch.inference_mode(not differentiated), torch.no_grad():
            x = self._reverse(run) if self.loop is None else self.loop.run(run)
            x = x.detach()
            image = torch.where(task.hole == 0, task.known, x)
        return Sample(image, x, counted.nfe, counted.vjp, time.perf_counter() - began)

    def _reverse(self, run: Run) -> Tensor:
        task, draw = run.task, run.draw
        now = run.level(self.times[0])
        x = noised(task.known, now, noise=draw())
        done, total = 0, sum(nxt < now for now, nxt in pairwise(self.times))
        before: History | None = None
        for number, (t, t_next) in enumerate(pairwise(self.times)):
            nxt = run.level(t_next)
            if t_next > t:
                x, now = renoise(x, now, nxt, noise=draw()), nxt
                continue
            state = State(task, self.process, run.prior, done, total, t, t_next, now, nxt, x, draw)
            if number == 0:
                state = self._apply_x("on_start", state)
            differentiated = any(callback.differentiates(state) for callback in self.callbacks)
            with torch.set_grad_enabled(differentiated):
                if differentiated:
                    state = replace(state, x=state.x.detach().requires_grad_())
                state = self._apply_x("before_estimate", state)
                estimate = run.prior.estimate(state.x, now)
                for callback in self.callbacks:
                    estimate = callback.on_estimate(replace(state, estimate=estimate))
                state = replace(state, estimate=estimate)
                fresh = draw() if self.eta > 0 and t_next >= 0 else None
                if self.solver == "dpm++2m":
                    x, before = multistep(state.x, estimate.x0, now, nxt, before=before, eta=self.eta, noise=fresh)
                else:
                    x = reverse_step(state.x, estimate, now, nxt, eta=self.eta, noise=fresh)
                for callback in self.callbacks:
                    x = callback.after_step(state, x)
            x, now = x.detach(), nxt
            done += 1
            run.tell(done, total)
        return x

    def _apply_x(self, hook: Literal["on_start", "before_estimate"], state: State) -> State:
        for callback in self.callbacks:
            state = replace(state, x=getattr(callback, hook)(state))
        return state
