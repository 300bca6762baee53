"""Reads our docstrings for the API pages: examples as code, and settings of methods as plain defaults."""

import ast
import re
from textwrap import dedent

import griffe

EXAMPLE = re.compile(r"^( *)Example:\n((?:\1 +.*(?:\n|\Z)|\s*\n)+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Changes what griffe read from a file before mkdocstrings shows it."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Show the block under `Example:` as code; `on_object` leaves out the package `rad` itself."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_as_code, obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: object) -> None:
        """A field `x: int = setting(10, "help")` has the default 10 and the docstring "help"."""
        call = attr.value
        if isinstance(call, griffe.ExprCall) and str(call.function) in ("setting", "_setting"):
            default, text = call.arguments[:2]
            attr.value = default
            attr.docstring = griffe.Docstring(_text(text), parent=attr)


def _text(expression: object) -> str:
    """The text of a string literal; adjacent literals are one."""
    return str(ast.literal_eval(str(expression)))


def _as_code(match: re.Match[str]) -> str:
    indent, body = match[1], dedent(match[2]).strip("\n")
    return "".join(f"{indent}{line}\n" for line in ("```python", *body.splitlines(), "```", ""))
