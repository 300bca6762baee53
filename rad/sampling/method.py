"""The interface of a sampling method: its settings, and the hooks of the reverse loop."""

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import pairwise
from numbers import Integral, Real
from typing import ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor

from rad.arguments import describe
from rad.diffusion.choices import Schedule, check_given, check_strength
from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import Process, TimeOrigin
from rad.diffusion.solvers import DEFAULTS, Solver
from rad.diffusion.spacings import Spacing
from rad.diffusion.step import Denoised
from rad.models.vae import Autoencoder
from rad.sampling.state import Cost, RunContext, State
from rad.sampling.task import Task

Value = TypeVar("Value")


def setting(default: Value, help: str, *, low: float = -math.inf, high: float = math.inf) -> Value:
    """A setting of a method: default, help (meaning, unit, equation, source), and inclusive range."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Method:
    """Description of a method: a frozen dataclass whose fields are its settings.

    Attributes:
        paper: authors, year, arXiv id.
        preset_steps: default number of steps, from the paper or measured, as are the other presets.
        preset_eta: default eta.
        preset_solver: default solver.
        preset_spacing: default spacing.
        needs_grad: the method differentiates the network, which excludes bf16.
        weights: "base": the pretrained network; "adapter": RAD's; "inpainting": a network trained for inpainting; "none":
            no network.
        uses_eta: the sampler's eta, and the choice of ddpm or ddim, affects the method.
        uses_spacing: the sampler's spacing affects the method.
        uses_strength: a run may start at a lower noise level, from the image's own content. Not if `on_start` is overridden.
        multistep: the method leaves x and x0 unchanged between steps, as solver "dpm++2m" requires.
        fractional: the method supports fractional timesteps; otherwise they are rounded and duplicates are dropped.
        needs_text: the method requires a `TextDenoiser`.
        keeps_known: known pixels of x are those of the image, at its noise level. False: the network keeps them itself; x starts
            as pure noise, and all its cells are decoded.
        soft: grey pixels of a soft mask keep part of the image. Otherwise they are filled completely.
        reconstructed: the method follows an abstract, or a paper without code or constants; some choices are inferred.
        registered_name: set by `rad.methods.register`.
    """

    paper: ClassVar[str] = ""
    preset_steps: ClassVar[int] = 100
    preset_eta: ClassVar[float] = 1.0
    preset_solver: ClassVar[Solver] = "ddpm"
    preset_spacing: ClassVar[Spacing] = "even"
    needs_grad: ClassVar[bool] = False
    weights: ClassVar[Literal["base", "adapter", "inpainting", "none"]] = "base"
    uses_eta: ClassVar[bool] = True
    uses_spacing: ClassVar[bool] = True
    uses_strength: ClassVar[bool] = False
    multistep: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    keeps_known: ClassVar[bool] = True
    soft: ClassVar[bool] = True
    reconstructed: ClassVar[bool] = False
    registered_name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for item in fields(self):
            name, value = item.name, getattr(self, item.name)
            choices = get_args(kinds[name]) if get_origin(kinds[name]) is Literal else ()
            if choices and value not in choices:
                raise ValueError(f"{name} is {describe(value)}; allowed are {', '.join(map(repr, choices))}")
            whole, low, high = (
                kinds[name] is int,
                item.metadata.get("low", -math.inf),
                item.metadata.get("high", math.inf),
            )
            number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if kinds[name] in (int, float) and not number:
                raise ValueError(f"{name} is {describe(value)}; expected {'a whole' if whole else 'a'} number")
            if number and not isinstance(value, Integral) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; give a finite number")
            if number and not low <= value <= high:
                raise ValueError(f"{name} is {value}; allowed are {_range(low, high)} ({item.metadata['help']})")

    def __init_subclass__(cls, **options: object) -> None:
        """Warn about a misspelt hook or class variable, which would have no effect."""
        super().__init_subclass__(**options)
        known = [name for parent in cls.__mro__[1:] for name in vars(parent) if not name.startswith("_")]
        for name in vars(cls):
            if not name.startswith("_") and name not in (*known, *vars(cls).get("__annotations__", ())):
                for close in get_close_matches(name, known, 1, 0.9):
                    warnings.warn(f"{cls.__name__}.{name} has no effect: did you mean {close}?", stacklevel=2)

    @property
    def name(self) -> str:
        return name_of(type(self))

    def check(self) -> object:
        """Called before any network call. Raises ValueError for a missing requirement."""
        return None

    def check_autoencoder(self, autoencoder: Autoencoder) -> None:
        """Called before any network call. Raises ValueError for a model with this autoencoder."""

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        """The method's noise process on a model with `base_process`."""
        return base_process

    def regions(self, task: Task) -> NoiseRegions:
        """Input of the process; the hole's distinct values by default."""
        return task.regions

    def view(self, denoiser: Denoiser, task: Task) -> Denoiser:
        """The denoiser that the method uses for this task. Raises ValueError for an unsuitable one."""
        return denoiser

    def choose(
        self,
        *,
        steps: int | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
    ) -> Schedule:
        """The preset with the given changes, but not `unused` ones. Another solver brings its spacing and eta from `DEFAULTS`.

        Raises ValueError for an eta outside [0,1], or an unknown solver or spacing.
        """
        check_given(solver, spacing, eta)
        solver = self.preset_solver if solver is None or not self.is_affected_by_solver(solver) else solver
        preset = self.preset_spacing, self.preset_eta
        default_spacing, default_eta = preset if solver == self.preset_solver else DEFAULTS.get(solver, preset)
        if not self.uses_spacing:
            spacing = self.preset_spacing
        spacing = default_spacing if spacing is None else spacing
        eta = default_eta if eta is None or not self.uses_eta else eta
        return Schedule(self.preset_steps if steps is None else steps, solver, spacing, eta)

    def is_affected_by_solver(self, solver: str) -> bool:
        """Whether the method uses or rejects `solver`; False if it ignores it."""
        return self.uses_eta or (solver == "dpm++2m" and self.weights != "none")

    def unused(
        self, *, solver: Solver | None = None, spacing: Spacing | None = None, eta: float | None = None
    ) -> list[str]:
        """Names of the given options that have no effect on this method."""
        kept = {
            "solver": solver is None or self.is_affected_by_solver(solver) or solver == self.preset_solver,
            "spacing": spacing is None or self.uses_spacing or spacing == self.preset_spacing,
            "eta": eta is None or self.uses_eta or eta == self.preset_eta,
        }
        return [name for name, fine in kept.items() if not fine]

    @property
    def takes_strength(self) -> bool:
        """Whether a strength below 1 is possible."""
        return self.uses_strength

    def check_strength(self, strength: float) -> float:
        """Raise ValueError for a strength outside (0,1], or below 1 on a method that cannot start from the image's content."""
        if check_strength(strength) < 1 and not self.takes_strength:
            raise ValueError(
                f"strength is {strength}; method {self.name!r} cannot start from the image's content: leave out strength, or "
                "use a method of the standard loop, such as rad or repaint"
            )
        return strength

    def plan(self, timesteps: list[float]) -> list[float]:
        """The t to visit, ending in CLEAN. A t above its predecessor is a forward step."""
        return timesteps

    def cost(self, timesteps: list[float]) -> Cost:
        """Work per image for the result of `plan`."""
        calls = sum(nxt < now for now, nxt in pairwise(timesteps))
        return Cost(calls, calls if self.needs_grad else 0)

    def decode(self, x: Tensor, task: Task) -> Tensor:
        """Decode the result x (B,C,h,w) to images (B,3,H,W) in [-1,1], before known pixels are restored."""
        return task.autoencoder.decode(x)


def paths_of(kind: type[Method]) -> list[str]:
    """Settings of a method that are paths. Clients of a server cannot give them, and results record a hash of the files."""
    return [item.name for item in fields(kind) if item.metadata.get("path")]


def name_of(kind: type[Method]) -> str:
    """The name of a method: the one it was registered with, otherwise that of its file."""
    return vars(kind).get("registered_name") or kind.__module__.rpartition(".")[2]


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{low:g} or more"
    return f"{high:g} or less" if math.isinf(low) else f"{low:g} to {high:g}"


@dataclass(frozen=True)
class SamplingMethod(Method):
    """A method as hooks of the reverse loop. By default each hook returns its input.

    Example:
        >>> @dataclass(frozen=True)
        ... class Clamp(SamplingMethod):
        ...     limit: float = setting(3.0, "largest absolute value of x", low=0)
        ...
        ...     def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        ...         return x_next.clamp(-self.limit, self.limit)
        >>> Clamp(limit=-1)
        Traceback (most recent call last):
        ValueError: limit is -1; allowed are 0 or more (largest absolute value of x)
    """

    uses_strength = True

    @property
    def takes_strength(self) -> bool:
        return self.uses_strength and type(self).on_start is SamplingMethod.on_start

    def differentiates(self, state: State) -> bool:
        """Whether the estimate of this step must be differentiable with respect to `state.x`."""
        return self.needs_grad

    def on_start(self, state: State) -> Tensor:
        """x at the first level."""
        return state.x

    def before_denoise(self, state: State) -> Tensor:
        """The denoiser's input."""
        return state.x

    def on_denoised(self, state: State, denoised: Denoised) -> Denoised:
        """The estimate of the clean image that the step uses; `denoised`: the denoiser's, at `state.x`."""
        return denoised

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        """x at the next level; `denoised`: the estimate that the step to `x_next` used."""
        return x_next


@dataclass(frozen=True)
class CustomSampler(Method, ABC):
    """A method with its own loop."""

    @abstractmethod
    def run(self, run: RunContext) -> Tensor:
        """The filled images (B,C,H,W) in [-1,1]. The sampler restores known pixels afterwards."""
