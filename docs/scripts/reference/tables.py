"""Tables of options in Markdown."""

import json
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Union, get_args, get_origin

CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|attr|paramref|ref|mod):(?=`)")
DEFAULT = re.compile(r"\s*(?:\(default: %\(default\)s\)|Default: ``[^`]*``\.?)\s*$")


@dataclass(frozen=True)
class Row:
    """An option, or a key of a configuration.

    Args:
        name: as it is written, such as --steps.
        kind: Markdown of its type or choices, see `describe`.
        default: Markdown; empty if there is none.
        text: its help, as plain text with code in backquotes.
        anchor: name of the row in links.
    """

    name: str
    kind: str
    default: str
    text: str
    anchor: str


def table(rows: Iterable[Row], heading: str = "Option") -> str:
    """A table whose rows can be linked to; narrow screens show each row as a block."""
    lines = [f"| {heading} | Type | Default | Description |", "|---|---|---|---|"]
    for row in rows:
        name = f"{code(row.name)}{{ #{row.anchor} }}"
        lines.append(f"| {name} | {row.kind} | {row.default} | {prose(row.text)} |")
    return '<div class="options" markdown>\n\n' + "\n".join(lines) + "\n\n</div>\n"


def code(text: object) -> str:
    """Inline code."""
    return f"`{text}`".replace("|", "\\|")


def value(default: object) -> str:
    """A default, as YAML and the command line write it."""
    if isinstance(default, bool) or default is None:
        return code({True: "true", False: "false", None: "null"}[default])
    if isinstance(default, dict) and "class_path" in default:
        settings = ", ".join(f"{key}={item}" for key, item in default.get("init_args", {}).items() if key in ("lr",))
        return code(default["class_path"]) + (f" with {code(settings)}" if settings else "")
    if isinstance(default, list | tuple | dict):
        return code(json.dumps(default))
    return code(default) if default != "" else "empty"


def prose(text: str) -> str:
    """Plain text on one line, in which only code in backquotes is markup."""
    text = ROLE.sub("", DEFAULT.sub("", text.replace("%%", "%"))).replace("`~", "`")
    parts, end = [], 0
    for match in CODE.finditer(text):
        parts += [_escape(text[end : match.start()]), code(match[2])]
        end = match.end()
    line = " ".join("".join([*parts, _escape(text[end:])]).split())
    if not re.match(r"[\w+-]+[:;] |[b-z],? |auto[, ]|\w+\.\w", line):  # the name of a choice keeps its case
        line = line[:1].upper() + line[1:]
    return line + ("" if not line or line.endswith((".", ":", ")")) else ".")


def _escape(text: str) -> str:
    return re.sub(r"([\\*_<>|\[\]{}#])", r"\\\1", text).replace("\\<", "&lt;").replace("\\>", "&gt;")


def describe(hint: object) -> str:
    """Markdown of a type: the choices of a Literal, `int`, `list of str`, the name of a class."""
    if hint is type(None) or hint is None:
        return code("null")
    if get_origin(hint) is Literal:
        return ", ".join(value(choice) if isinstance(choice, bool) else code(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        parts = list(dict.fromkeys(describe(part) for part in get_args(hint)))
        null = code("null")
        return " or ".join([part for part in parts if part != null] + ([null] if null in parts else []))
    origin, inside = get_origin(hint), [part for part in get_args(hint) if part is not Ellipsis]
    if isinstance(origin, type) and issubclass(origin, Iterable) and inside and origin is not dict:
        items = describe(inside[0]) if len(set(inside)) == 1 else f"({', '.join(map(describe, inside))})"
        return f"{len(inside)} × {items}" if origin is tuple and len(inside) > 1 else f"list of {items}"
    if origin is not None and "Callable" in str(origin):
        return describe(inside[-1])
    return code(getattr(origin or hint, "__name__", str(hint)))
