"""Preferred settings of a checkpoint: the object "sampling" of rad_config.json and runtime.json. Loads no torch.

Precedence: what the caller gives, then the checkpoint's settings, then the defaults of the library.

- `steps`, `solver`, `spacing`, `eta`, `average` and `thin_steps` hold for the method "rad" alone, so zero-shot methods keep their
  own defaults. All others hold for every method.
- `solver`, `spacing` and `eta` stand together: if the caller gives a solver or a spacing, the checkpoint's three are left out.
- `average` and `thin_steps` suit the other settings of the sampler: they are left out if the caller gives steps, a budget, a
  solver or a spacing. `thin_steps` is left out with a strength below 1, too.
- `margin` and the settings of the pyramid belong to `size_policy`: they are left out if the caller gives another policy.
- "pyramid" becomes "crop" where a method of the call cannot start finer scales from coarser results, or a strength is below 1.
- Lengths in pixels suit one size of windows, see `Preferred.at`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, get_args

from rad.arguments import describe
from rad.diffusion.choices import DEFAULTS, Solver, Spacing, check_solver

SizePolicy = Literal["error", "resize", "crop", "zoom", "pyramid"]
"""What happens to images of another size than the model's, see `rad.inpainting.canvas.layout.Layout`."""

METHOD = "rad"
"""The method that uses the settings of the sampler."""


@dataclass(frozen=True)
class Key:
    """A key of the object "sampling".

    Args:
        allowed: its values, for errors; check: whether a value is one of them.
        sampler: it holds for the method "rad" alone. needs: key that has to stand beside it.
        pixels: a length for windows of one size.
    """

    allowed: str
    check: Callable[[object], bool]
    sampler: bool = False
    needs: str = ""
    pixels: bool = False


class SamplerSettings(TypedDict):
    """Arguments of `Method.choose`; None: the method's preset."""

    steps: int | None
    solver: Solver | None
    spacing: Spacing | None
    eta: float | None


@dataclass(frozen=True)
class Preferred:
    """Settings of sampling, None where they are not given: those of a checkpoint, or those of a caller.

    Args:
        steps, solver, spacing, eta: see `rad.sampling.Sampler`; average: samples of a mean.
        size_policy, margin: see `rad.inpainting.canvas.layout.Layout`.
        size: side of a window in pixels, of a pixel model; it may exceed the size of the training images.
        pyramid_coarsest, pyramid_strength, pyramid_steps: see `rad.inpainting.canvas.pyramid.Pyramid`.
        thin_steps: steps of windows without a wide hole, see `rad.inpainting.canvas.windows.THIN`.
    """

    steps: int | None = None
    solver: Solver | None = None
    spacing: Spacing | None = None
    eta: float | None = None
    average: int | None = None
    size_policy: SizePolicy | None = None
    margin: int | None = None
    size: int | None = None
    pyramid_coarsest: int | None = None
    pyramid_strength: float | None = None
    pyramid_steps: int | None = None
    thin_steps: int | None = None

    @classmethod
    def read(cls, content: object) -> "Preferred":
        """Settings from JSON. Raises ValueError that names the key and the allowed values."""
        if not isinstance(content, dict):
            raise ValueError(f"sampling is {describe(content)}; expected an object")
        for name, value in content.items():
            if name not in KEYS:
                raise ValueError(f"sampling has the unknown key {name!r}; allowed are {', '.join(KEYS)}")
            key = KEYS[name]
            if not key.check(value):
                raise ValueError(f"sampling.{name} is {describe(value)}; allowed are {key.allowed}")
            if key.needs and key.needs not in content:
                raise ValueError(f"sampling.{name} is given without sampling.{key.needs}, to which it belongs")
            if name.startswith("pyramid_") and content["size_policy"] != "pyramid":
                raise ValueError(
                    f"sampling.{name} needs sampling.size_policy 'pyramid', not {content['size_policy']!r}"
                )
        settings = cls(**content)
        if settings.solver is not None:
            _check_solver(settings.solver, settings.spacing, settings.eta)
        return settings

    def content(self) -> dict[str, str | float]:
        """The given settings, for JSON."""
        return {name: value for name in KEYS if (value := getattr(self, name)) is not None}

    def complete(self, given: "Preferred", *, method: str, budget: bool = False, strength: float = 1.0) -> "Preferred":
        """`given` with the checkpoint's value for each setting that is None, where it holds for the method; idempotent.

        `budget`: a budget of the caller sets the steps; strength: of the caller.
        """
        holding = {name for name, key in KEYS.items() if method == METHOD or not key.sampler}
        if budget:
            holding -= {"steps", *WITH_ALL}
        if given.steps is not None:
            holding -= WITH_ALL
        if given.solver is not None or given.spacing is not None:
            holding -= {"solver", *_that_need("solver"), *WITH_ALL}
        if strength < 1:
            holding -= {"thin_steps"}
        if given.size_policy not in (None, self.size_policy):
            holding -= _that_need("size_policy")
        return replace(given, **{name: getattr(self, name) for name in holding if getattr(given, name) is None})

    def sampler(
        self,
        method: str,
        *,
        steps: int | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
    ) -> SamplerSettings:
        """The arguments of `Method.choose` for the method of this name."""
        chosen = self.complete(Preferred(steps, solver, spacing, eta), method=method)
        return {"steps": chosen.steps, "solver": chosen.solver, "spacing": chosen.spacing, "eta": chosen.eta}

    def mean_of(self, method: str) -> int:
        """Samples of a mean, for a caller who gives nothing; 1 by default."""
        return self.complete(NOTHING, method=method).average or 1

    def starting(self, *, refines: bool) -> "Preferred":
        """With "crop" in place of "pyramid", unless all methods of the call can start finer scales from coarser results."""
        if refines or self.size_policy != "pyramid":
            return self
        return replace(self, size_policy="crop", **{name: None for name in KEYS if name.startswith("pyramid_")})

    def at(self, size: tuple[int, int] | None, *, trained: tuple[int, int]) -> "Preferred":
        """For windows of `size` (height, width): without lengths in pixels if it is not the checkpoint's; None: unchanged.

        `trained`: size of the training images, which is that of the windows without a setting `size`.
        """
        windows = trained if self.size is None else (self.size, self.size)
        return self if size in (None, windows) else self.without_lengths()

    def without_lengths(self) -> "Preferred":
        """For windows of another size: without lengths in pixels."""
        return replace(self, **{name: None for name, key in KEYS.items() if key.pixels})


def _is_whole(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_part(value: object) -> bool:
    return _is_fraction(value) and value not in (0, 1)


def _choice(kind: object, *, sampler: bool = False, needs: str = "") -> Key:
    values = get_args(kind)
    return Key(", ".join(values), lambda value: isinstance(value, str) and value in values, sampler, needs)


KEYS: dict[str, Key] = {
    "steps": Key("whole numbers from 1 to 100000", _is_whole(1, 10**5), sampler=True),
    "solver": _choice(Solver, sampler=True),
    "spacing": _choice(Spacing, sampler=True, needs="solver"),
    "eta": Key("0 to 1", _is_fraction, sampler=True, needs="solver"),
    "average": Key("whole numbers from 1 to 10000", _is_whole(1, 10**4), sampler=True),
    "size_policy": _choice(SizePolicy),
    "margin": Key("whole numbers from 0 to 65536", _is_whole(0, 2**16), needs="size_policy", pixels=True),
    "size": Key("whole numbers from 8 to 65536", _is_whole(8, 2**16), pixels=True),
    "pyramid_coarsest": Key("whole numbers from 1 to 65536", _is_whole(1, 2**16), needs="size_policy", pixels=True),
    "pyramid_strength": Key("above 0 to below 1", _is_part, needs="size_policy"),
    "pyramid_steps": Key("whole numbers from 1 to 100000", _is_whole(1, 10**5), needs="size_policy"),
    "thin_steps": Key("whole numbers from 1 to 100000", _is_whole(1, 10**5), sampler=True),
}
"""The keys, which are the fields of `Preferred`."""

OF_SAMPLER = [name for name, key in KEYS.items() if key.sampler]
WITH_ALL = {"average", "thin_steps"}
"""Settings that suit the checkpoint's whole sampler, and are left out if the caller gives another one."""

OF_EVERY_METHOD = [name for name, key in KEYS.items() if not key.sampler]

NOTHING = Preferred()
"""A checkpoint without preferred settings."""


def takes_thin_steps(method: str, strength: float) -> bool:
    """Whether thin windows can have their own steps, in a run of the method of this name."""
    return method == METHOD and strength == 1


def _that_need(setting: str) -> set[str]:
    return {name for name, key in KEYS.items() if key.needs == setting}


def _check_solver(solver: Solver, spacing: Spacing | None, eta: float | None) -> None:
    default_spacing, default_eta = DEFAULTS[solver]
    try:
        check_solver(solver, default_eta if eta is None else eta, default_spacing if spacing is None else spacing)
    except ValueError as error:
        raise ValueError(f"sampling has settings of a solver that exclude each other: {error}") from None
