"""The page of all methods: costs at their presets, and their settings."""

import math
from collections.abc import Iterator
from dataclasses import fields
from inspect import getdoc, getmodule
from typing import get_type_hints

from rad.methods import METHODS
from rad.methods.registry import cost, hooks
from rad.sampling.method import Method

from .tables import Row, code, describe, prose, table, value

NETWORKS = {
    "adapter": "RAD adapter",
    "base": "pretrained model",
    "inpainting": "model trained for inpainting",
    "none": "no network",
}


def page() -> str:
    """The page."""
    rows = "\n".join(map(_summary, METHODS.values()))
    parts = [
        "# Methods and settings",
        "`rad sample --method NAME` selects a method, and `--set NAME.SETTING=VALUE` changes one of its settings. "
        "`rad sample --list_methods` prints the same table. [Which method?](../start/which-method.md) helps to choose; "
        "[Methods](../concepts/methods.md) explains how they work.",
        "NFE is the number of network calls per image, and VJP the number of backward passes through the network; a VJP "
        "costs about two calls. All columns show the preset of a method, for a model of 1000 noise levels.",
        f"| Method | Model | Solver | Spacing | Steps | NFE | VJP |\n|---|---|---|---|--:|--:|--:|\n{rows}",
        *(part for kind in METHODS.values() for part in section(kind)),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(kind: type[Method]) -> str:
    method = kind()
    work = cost(method, method.preset_steps)
    solver = code(method.preset_solver) if method.uses_eta and work.nfe else "–"
    spacing = code(method.preset_spacing) if method.uses_spacing and work.nfe else "–"
    name = f"[`{method.name}`](#{method.name})"
    cells = (name, NETWORKS[method.weights], solver, spacing, str(method.preset_steps) if work.nfe else "–")
    return "| " + " | ".join([*cells, str(work.nfe), str(work.vjp)]) + " |"


def section(kind: type[Method]) -> Iterator[str]:
    """The part of the page about one method."""
    method = kind()
    yield f"## {method.name}"
    module = getmodule(kind)
    yield prose((getdoc(module) or "").partition("\n\n")[0])
    if kind.reconstructed:
        yield "!!! note\n\n    Reconstructed from an abstract, or from a paper without code. Some choices are inferred."
    facts = [
        f"Source: {prose(kind.paper)}",
        f"Python: [`{kind.__name__}`](api/methods.md#{kind.__module__}.{kind.__name__})",
    ]
    if hooks(kind) not in ("none", "own loop"):
        facts.append("Hooks: " + ", ".join(map(code, hooks(kind).split())) + ".")
    if method.needs_grad:
        facts.append("Needs gradients of the network, which excludes `--precision bf16`.")
    if method.needs_text:
        facts.append("Needs a text-to-image model.")
    yield "\n".join(f"- {fact}" for fact in facts)
    hints = get_type_hints(kind)
    rows = [
        Row(
            name=item.name,
            kind=_range(
                describe(hints[item.name]), item.metadata.get("low", -math.inf), item.metadata.get("high", math.inf)
            ),
            default=code(None) if item.default is None else value(item.default),
            text=item.metadata["help"],
            anchor=f"{method.name}.{item.name}",
        )
        for item in fields(kind)
    ]
    yield table(rows, "Setting") if rows else "No settings."


def _range(kind: str, low: float, high: float) -> str:
    if kind not in ("`int`", "`float`"):
        return kind
    if math.isinf(high):
        return kind if math.isinf(low) else f"{kind}, {low:g} or more"
    return f"{kind}, at most {high:g}" if math.isinf(low) else f"{kind}, {low:g} to {high:g}"
