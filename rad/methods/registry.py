"""Methods from text: name and settings, number of steps for a budget, and the table of all methods."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

from rad.console import did_you_mean
from rad.diffusion import choices
from rad.diffusion.processes import Process, Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import Spacing, sampling_timesteps
from rad.methods import METHODS
from rad.methods.own import is_own, load, split_file
from rad.sampling.method import CustomSampler, Method, SamplingMethod
from rad.sampling.state import Cost

HOOKS = ("view", "plan", "on_start", "before_denoise", "on_denoised", "after_step")

RECONSTRUCTED = "Reconstructed from an abstract (no official code; some choices are inferred):"
OWN = "Your own:"
"""Headings of groups in the table."""


def find(text: str) -> type[Method]:
    """The method called `text`, or that of `FILE.py:CLASS`, whose code is run. ValueError for an unknown name or class."""
    if text and split_file(text)[0] == text:
        return load(text)
    if text not in METHODS:
        hint = f": give its class too, as {text}:CLASS" if text.endswith(".py") else ""
        hint = hint or did_you_mean(text, METHODS)
        raise ValueError(f"method {text!r} is not known{hint}; allowed are {', '.join(METHODS)}, or FILE.py:CLASS")
    return METHODS[text]


def create(name: str, settings: Mapping[str, str] | None = None) -> Method:
    """The method called `name`, or `FILE.py:CLASS`, with `settings` given as text.

    Raises:
        ValueError: unknown method or setting, or a value of another type or outside its range.
    """
    kind, values = find(name), {}
    known = [item.name for item in fields(kind)]
    for key, text in (settings or {}).items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"method {name} has no setting {key!r}{hint}; it has {', '.join(known) or 'none'}")
        values[key] = _parse(f"{name}.{key}", text, get_type_hints(kind)[key])
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"method {name}: {error}") from None


def _parse(name: str, text: str, kind: object) -> str | bool | float:
    if get_origin(kind) is Literal and text not in get_args(kind):
        hint = did_you_mean(text, map(str, get_args(kind)))
        raise ValueError(f"{name} is {text!r}{hint}; allowed are {', '.join(map(str, get_args(kind)))}")
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} is {text!r}; allowed are true and false")
        return text.lower() == "true"
    if kind is int or kind is float:
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            raise ValueError(f"{name} is {text!r}; expected {'a whole' if kind is int else 'a'} number") from None
    return text


def most_steps(method: Method, base_process: Process) -> int:
    """Largest number of steps of the method on a model with this process."""
    return method.process(base_process, "adm").sampled_steps


def cost(
    method: Method,
    steps: int,
    *,
    base_process: Process | None = None,
    spacing: Spacing | None = None,
    strength: float = 1.0,
) -> Cost:
    """Work per image for `steps` levels. Without `base_process`: DDPM's 1000 levels; without `spacing`: the preset's."""
    process = method.process(base_process or Uniform(linear_betas()), "adm")
    spacing = method.preset_spacing if spacing is None else spacing
    timesteps = sampling_timesteps(process, steps, spacing=spacing, fractional=method.fractional)
    return method.cost(method.plan(choices.last_part(timesteps, strength)))


def steps_within(
    method: Method,
    budget: int,
    *,
    base_process: Process | None = None,
    spacing: Spacing | None = None,
    strength: float = 1.0,
) -> int:
    """The most steps that cost at most `budget` (NFE; a VJP counts as two), see `cost`. ValueError if there are none."""
    base_process = base_process or Uniform(linear_betas())
    spacing = method.preset_spacing if spacing is None else spacing
    most = choices.most_count(most_steps(method, base_process), spacing)
    return choices.steps_within(
        lambda steps: cost(method, steps, base_process=base_process, spacing=spacing, strength=strength).units,
        budget,
        most=most,
        dips=most if is_own(type(method)) else choices.DIPS,  # nothing is known about the cost of your own methods
        name=method.name,
    )


def hooks(kind: type[Method]) -> str:
    """Hooks that a method overrides; "own loop"; "none" for a plain reverse process."""
    if issubclass(kind, CustomSampler):
        return "own loop"
    return " ".join(hook for hook in HOOKS if getattr(kind, hook) is not getattr(SamplingMethod, hook)) or "none"


def table() -> str:
    """All methods with their cost at the preset, in groups, and the settings of each."""
    groups: dict[str, list[str]] = {heading: [] for heading in ("", RECONSTRUCTED, OWN)}
    rows = [("method", "paper", "hooks", "weights", "solver", "spacing", "steps", "NFE", "VJP", "gradient")]
    for name, kind in METHODS.items():
        method = kind()
        work = cost(method, method.preset_steps)
        gradient = "yes" if method.needs_grad else "no"
        steps = str(method.preset_steps) if work.nfe else "-"
        solver = method.preset_solver if method.uses_eta else "-"
        spacing = method.preset_spacing if method.uses_spacing else "-"
        preset = (solver, spacing, steps, str(work.nfe), str(work.vjp), gradient)
        rows.append((name, kind.paper, hooks(kind), method.weights, *preset))
        groups[OWN if is_own(kind) else RECONSTRUCTED if kind.reconstructed else ""].append(name)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = {
        row[0]: "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    }
    lines = [shown["method"]]
    for heading, names in groups.items():
        if names:
            lines += [*(["", heading] if heading else []), *(shown[name] for name in names)]
    lines += ["", "NFE: network calls per image; VJP: backward passes through the network, each about two calls.", ""]
    lines += ["Settings, as --set METHOD.SETTING=VALUE:"]
    for name, kind in METHODS.items():
        for item in fields(kind):
            default = str(item.default).lower() if isinstance(item.default, bool) else item.default
            lines.append(f"  {name}.{item.name}={default}: {item.metadata['help']}")
    return "\n".join(lines)
