"""Descriptions of the methods that a model supports."""

import inspect
import math
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.methods.own import is_own
from rad.methods.registry import most_steps
from rad.sampling.method import Method, paths_of
from rad.studio.fillers.filler import MOST_COUNT
from rad.studio.schema import MethodView, SettingView

TYPES: dict[object, Literal["float", "int", "bool"]] = {float: "float", int: "int", bool: "bool"}


def list_methods(inpainter: Inpainter) -> dict[str, MethodView]:
    """The methods that run on a model with their default settings, by name.

    Methods from files, or with a path among their settings, are left out: clients give no paths.
    """
    views = {}
    for name, kind in METHODS.items():
        if is_own(kind) or paths_of(kind):
            continue
        method = kind()
        try:
            work = inpainter.sampler(method).cost
        except ValueError:
            continue
        views[name] = _view(name, method, work.nfe, work.vjp, inpainter)
    return views


def _view(name: str, method: Method, nfe: int, vjp: int, inpainter: Inpainter) -> MethodView:
    preferred, networked = inpainter.model.preferred, method.weights != "none"
    schedule, average = method.choose(**preferred.sampler(name)), preferred.mean_of(name)
    summary = (inspect.getdoc(inspect.getmodule(type(method))) or "").partition("\n")[0]
    return MethodView(
        name=name,
        summary=summary,
        paper=method.paper,
        steps=schedule.steps if networked else None,
        max_steps=most_steps(method, inpainter.model.base_process) if networked else None,
        nfe=nfe * average,
        vjp=vjp * average,
        solver=schedule.solver,
        spacing=schedule.spacing,
        eta=schedule.eta,
        solvers=_solvers(method),
        soft=method.soft,
        settings=[_setting(item, get_type_hints(type(method))[item.name]) for item in fields(method)],
    )


def _solvers(method: Method) -> list[str]:
    solvers = ["ddpm", "ddim"] if method.uses_eta and method.weights != "none" else [method.preset_solver]
    return [*solvers, *(["dpm++2m"] if method.multistep and "dpm++2m" not in solvers else [])]


def _setting(item: "Field[Any]", kind: object) -> SettingView:
    choices = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
    low, high = (item.metadata.get(name, math.inf) for name in ("low", "high"))
    high = min(high, MOST_COUNT) if kind is int else high
    return SettingView(
        name=item.name,
        type="choice" if choices else TYPES.get(kind, "text"),
        default=None if item.default is MISSING else item.default,
        low=None if math.isinf(low) else low,
        high=None if math.isinf(high) else high,
        choices=choices,
        help=item.metadata["help"],
    )
