"""Methods of the runtime: RAD, and RePaint for the base weights. Names, settings and presets are those of `rad.methods`."""

from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import ClassVar, Literal

from rad.arguments import describe
from rad.diffusion.choices import DEFAULTS, Schedule, Solver, Spacing, check_given, time_travel


def _setting(default: int, help: str, *, low: int) -> int:
    return field(default=default, metadata={"help": help, "low": low})


@dataclass(frozen=True)
class Method:
    """A method: a frozen dataclass whose fields are its settings.

    Attributes:
        weights: network of the method.
        known_noise: known pixels are replaced, with fresh noise, before each step.
        multistep: whether the method takes solver "dpm++2m".
        fractional: whether it takes fractional timesteps.

    Raises ValueError for a setting outside its range.
    """

    name: ClassVar[str]
    weights: ClassVar[Literal["rad", "base"]]
    preset_steps: ClassVar[int]
    preset_eta: ClassVar[float]
    preset_solver: ClassVar[Solver]
    preset_spacing: ClassVar[Spacing]
    known_noise: ClassVar[bool]
    multistep: ClassVar[bool]
    fractional: ClassVar[bool]

    def __post_init__(self) -> None:
        for item in fields(self):
            value, low = getattr(self, item.name), item.metadata["low"]
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ValueError(f"{item.name} is {describe(value)}; expected a whole number")
            if value < low:
                raise ValueError(f"{item.name} is {value}; allowed are {low} or more ({item.metadata['help']})")

    def plan(self, timesteps: list[float]) -> list[float]:
        """The t to visit, ending in CLEAN. A t above its predecessor is a forward step."""
        return timesteps

    def choose(
        self,
        *,
        steps: int | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
    ) -> Schedule:
        """The preset with the given changes. Another solver brings its spacing and eta from `DEFAULTS`.

        Raises ValueError for an eta outside [0,1], or an unknown solver or spacing.
        """
        check_given(solver, spacing, eta)
        solver = self.preset_solver if solver is None else solver
        preset = self.preset_spacing, self.preset_eta
        default_spacing, default_eta = preset if solver == self.preset_solver else DEFAULTS[solver]
        return Schedule(
            self.preset_steps if steps is None else steps,
            solver,
            default_spacing if spacing is None else spacing,
            default_eta if eta is None else eta,
        )


@dataclass(frozen=True)
class RAD(Method):
    """Region-aware diffusion (Kim, Suh, Lee 2025, arXiv 2412.09191); see `rad.methods.rad`."""

    name = "rad"
    weights = "rad"
    preset_steps = 20
    preset_eta = 0.0
    preset_solver = "dpm++2m"
    preset_spacing = "logsnr"
    known_noise = False
    multistep = True
    fractional = True


@dataclass(frozen=True)
class RePaint(Method):
    """Replacement of known pixels, with time travel (Lugmayr et al. 2022, arXiv 2201.09865); see `rad.methods.repaint`."""

    name = "repaint"
    weights = "base"
    preset_steps = 250
    preset_eta = 1.0
    preset_solver = "ddpm"
    preset_spacing = "even"
    known_noise = True
    multistep = False
    fractional = False

    jump_length: int = _setting(10, "j, levels of a jump back up; the paper's 10", low=1)
    resamplings: int = _setting(10, "r, passes through each block of levels; the paper's 10; 1: no jumps", low=1)

    def plan(self, timesteps: list[float]) -> list[float]:
        return time_travel(timesteps, length=self.jump_length, visits=self.resamplings)


METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (RAD, RePaint)}


def find(method: object, available: tuple[str, ...]) -> Method:
    """A method by its name, its class here, or its class in `rad.methods`, with the same settings.

    Raises ValueError for a method that is not in `available`.
    """
    name = method if isinstance(method, str) else getattr(method, "name", None)
    if not isinstance(name, str):
        raise ValueError(f"method is {describe(method)}; give a name, or an instance such as RePaint()")
    if name not in METHODS or name not in available:
        raise ValueError(
            f"method {name!r} is not available without torch on this model; allowed are {', '.join(available)}"
        )
    kind = METHODS[name]
    return (
        kind() if isinstance(method, str) else kind(**{item.name: getattr(method, item.name) for item in fields(kind)})
    )
