"""A page for each `rad` command, from its parser."""

import argparse
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from unittest.mock import patch

import jsonargparse

from rad.__main__ import COMMANDS

from .tables import Row, code, describe, prose, table, value

FOLDER = "reference/commands"
TRAIN = ("--config", "rad_demo.yaml")
"""Arguments with which `rad train --help` lists all settings."""

GUIDES = {
    "sample": ("guides/sampling.md", "Sampling"),
    "train": ("guides/training.md", "Training"),
    "ema": ("guides/training.md", "Training"),
    "evaluate": ("guides/evaluation.md", "Evaluation"),
    "masks": ("guides/data.md", "Data"),
    "export": ("guides/runtime.md", "Running without PyTorch"),
    "studio": ("guides/studio.md", "Studio"),
    "push": ("guides/hub.md", "Publishing on the hub"),
    "doctor": ("start/install.md", "Install"),
    "demo": ("start/install.md", "Install"),
}
"""Page that explains each command, and its name."""

HELP = {
    "config": "options from a YAML file, or for `rad train` also from a shipped configuration; later ones override earlier ones",
    "print_config": "print the resolved settings and exit",
    "seed_everything": "seed of the run; `true`: a random seed",
}
"""Texts in place of those of jsonargparse and Lightning."""


def parser_of(command: str, *arguments: str) -> argparse.ArgumentParser:
    """The parser that `rad COMMAND ARGUMENTS --help` prints."""
    parsers: list[argparse.ArgumentParser] = []

    def take(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parsers.append(parser)

    module, function, _ = COMMANDS[command]
    run = getattr(import_module(module), function)
    kinds = (argparse.ArgumentParser, jsonargparse.ArgumentParser)
    with patch.object(kinds[0], "print_help", take), patch.object(kinds[1], "print_help", take), suppress(SystemExit):
        run([*arguments, "--help"])
    return parsers[0]


def settings(parser: argparse.ArgumentParser, group: str | None = None) -> list[argparse.Action]:
    """The options that a user gives, of one group or of all, without --help."""
    hidden = (argparse.SUPPRESS, "==SUPPRESS==")
    groups = [part for part in parser._action_groups if group in (None, part.title)]
    return [
        action
        for part in groups
        for action in part._group_actions
        if not isinstance(action, argparse._HelpAction)
        and action.help not in hidden
        and not any(option.endswith(".help") for option in action.option_strings)
    ]


def row(action: argparse.Action) -> Row:
    """The row of an option in a table."""
    option = max((text for text in action.option_strings if not text.endswith("+")), key=len, default="")
    name = option or str(action.metavar or action.dest)
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    empty = action.default in (None, "", [], argparse.SUPPRESS, "==SUPPRESS==") or action.nargs == 0
    return Row(
        name=f"{name} {metavar}" if option and re.match(r"\w", metavar) else name,
        kind=kind(action),
        default="required" if action.required else "" if empty else value(action.default),
        text=HELP.get(action.dest, action.help or ""),
        anchor=name.lstrip("-").lower() or action.dest,
    )


def kind(action: argparse.Action) -> str:
    """Markdown of the type of an option."""
    if action.nargs == 0 or action.dest == "print_config":  # its value, flags of jsonargparse, is optional
        return "flag"
    parsed = action.type if isinstance(action.type, type) else str
    if action.choices:
        text = ", ".join(map(code, action.choices))
    else:
        text = describe(getattr(action, "_typehint", None) or parsed).removesuffix(" or `null`")
    if action.nargs == "?":
        return f"{text}, optional"
    return f"{text}, several" if action.nargs in ("+", "*") else text


def page(command: str) -> str:
    """The page of a command."""
    if command == "train":
        return train_page()
    parser = parser_of(command)
    parts = [*_opening(command, (parser.description or "").strip())]
    positional = [action for action in settings(parser) if not action.option_strings]
    for title, actions in [("Arguments", positional), *_groups(parser)]:
        if actions:
            parts += [f"## {title}", table(row(action) for action in actions)]
    return "\n\n".join(parts) + "\n"


def _groups(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    for group in parser._action_groups:
        title = group.title or "Options"
        actions = [action for action in settings(parser, group.title) if action.option_strings]
        yield title[:1].upper() + title[1:], actions


def _opening(command: str, description: str) -> list[str]:
    link, name = GUIDES[command]
    first, *rest = description.split("\n\n")
    arguments = " ".join(
        str(action.metavar) for action in settings(parser_of(command, *_needed(command))) if not action.option_strings
    )
    usage = " ".join(filter(None, ["rad", command, arguments, "[OPTIONS]"]))
    text = [prose(first), *map(prose, rest)]
    return [
        f"# rad {command}",
        *text,
        f"```bash\n{usage}\n```",
        f"Guide: [{name}](../../{link}). `rad {command} --help` prints this list.",
    ]


def _needed(command: str) -> tuple[str, ...]:
    return TRAIN if command == "train" else ()


def train_page() -> str:
    """The page of `rad train`: its own options, and the configurations; the keys have a page of their own."""
    from rad.resources import config_names

    parser = parser_of("train", *TRAIN)
    shown = [
        action
        for action in settings(parser)
        if "." not in action.dest and action.dest not in ("model", "data", "trainer")
    ]
    help_text = StringIO()
    with redirect_stdout(help_text):
        import_module("rad.cli.main").train(["--help"])
    common = help_text.getvalue().partition("common settings:\n")[2].partition("\n\n")[0]
    configs = [f"[`{name}`](../../../configs/{name})" for name in config_names()]
    return "\n\n".join(
        [
            *_opening("train", "Train a RAD adapter, a diffusion model or an autoencoder from a configuration."),
            "## Options",
            table(row(action) for action in shown),
            "## Settings of the configuration",
            "Each key of a configuration is an option too, such as `--data.batch_size 4`. "
            "[Configuration keys](../keys.md) lists all of them; [Configuration files](../configuration.md) explains "
            "how files and options combine. The most common ones:",
            f"```text\n{common}\n```",
            "## Shipped configurations",
            "`--config` takes one of these names, or a file: " + ", ".join(configs) + ".",
        ]
    )


def overview() -> str:
    """The page that lists all commands."""
    rows = "\n".join(f"| [`rad {name}`]({name}.md) | {prose(about)} |" for name, (_, _, about) in COMMANDS.items())
    return f"""# Command line

| Command | What it does |
|---|---|
{rows}

`rad COMMAND --help` prints the options of a command, and `rad --version` the version.
In option names, `-` and `_` are the same: `--num-samples` is `--num_samples`.

## Exit codes

| Code | Meaning |
|---|---|
| 0 | success |
| 1 | the standard output could not be written |
| 2 | wrong input, or no file could be written; one line on stderr says what to change |
| 3 | some files could not be processed; the others are finished |
| 130 | interrupted by Ctrl-C or a signal; finished files are kept |

Set the environment variable `RAD_DEBUG=1` to see the traceback of an error.
"""


def pages() -> dict[str, str]:
    """All pages of the command line."""
    return {f"{FOLDER}/index.md": overview(), **{f"{FOLDER}/{name}.md": page(name) for name in COMMANDS}}
