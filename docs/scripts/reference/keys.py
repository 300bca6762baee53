"""The page of all keys of a training configuration, from the parser of `rad train` and the classes that it accepts."""

import argparse
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType

import jsonargparse
from lightning import Callback

import rad.masks
import rad.training
from rad.data import ColourJitter
from rad.masks import MaskGenerator
from rad.models import LoRA
from rad.training import Scratch

from .commands import HELP, TRAIN, kind, parser_of, settings
from .tables import Row, describe, prose, table, value

OPENING = """# Configuration keys

The keys of `rad train`, with the type, default and meaning of each. On the command line, `--data.batch_size 4` sets the key
`batch_size` of `data`. [Configuration files](configuration.md) explains how files are read and combined.
`rad train --config NAME --print_config` prints the resolved keys of a run.
"""

GROUPS = {"data": "Training images, see [Data](../guides/data.md).", "trainer": "Arguments of Lightning's `Trainer`."}


def page() -> str:
    """The page."""
    diffusion = parser_of("train", *TRAIN)
    autoencoder = parser_of("train", *TRAIN[:1], "autoencoder_nature32.yaml")
    parts = [
        OPENING,
        "## Top level",
        table(_rows(diffusion, _top), "Key"),
        "## model",
        "Keys of `rad.training.Diffusion`, which trains a diffusion model or an adapter, see "
        "[Training](../guides/training.md).",
        table(_rows(diffusion, _below("model")), "Key"),
        *_optional("model.scratch", Scratch, "A network to train from scratch."),
        *_optional("model.lora", LoRA, "An adapter on the base model."),
        "## model (trains: autoencoder)",
        "Keys of `rad.training.AutoencoderTraining`, which trains the autoencoder of a latent model.",
        table(_rows(autoencoder, _below("model"), prefix="autoencoder."), "Key"),
        "## data",
        GROUPS["data"],
        table(_rows(diffusion, _below("data")), "Key"),
        *_optional("data.jitter", ColourJitter, "Colour jitter of the training images."),
        "## Mask generators",
        "Values of `model.masks` and `data.masks`: a `class_path` and its `init_args`.",
        *_classes(rad.masks, MaskGenerator),
        "## Callbacks",
        "Entries of the list `trainer.callbacks`: a `class_path` and its `init_args`. Callbacks of Lightning work too.",
        *_classes(rad.training, Callback),
        "## trainer",
        GROUPS["trainer"] + " The defaults are those of `rad train`.",
        table(_rows(diffusion, _below("trainer")), "Key"),
    ]
    return "\n\n".join(parts) + "\n"


def _top(name: str) -> bool:
    return "." not in name and name not in ("config", "print_config", "model", "data", "trainer")


def _below(group: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"{group}.")


def _rows(parser: argparse.ArgumentParser, keep: Callable[[str], bool], *, prefix: str = "") -> Iterator[Row]:
    for action in settings(parser):
        if keep(action.dest) and hasattr(action, "_typehint") and action.default != argparse.SUPPRESS:
            default = "required" if action.required else value(action.default)
            yield Row(
                action.dest,
                kind_of(action),
                default,
                HELP.get(action.dest, action.help or ""),
                f"{prefix}{action.dest}",
            )


def kind_of(action: argparse.Action) -> str:
    """Markdown of the type of a key, with null if that is allowed."""
    hint = getattr(action, "_typehint", None)
    return kind(action) if hint is None else describe(hint)


def _optional(key: str, settings_of: type, text: str) -> Iterator[str]:
    yield f"### {key}"
    yield text
    yield table(_arguments(settings_of, prefix=f"{key}."), "Key")


def _classes(package: ModuleType, base: type) -> Iterator[str]:
    """A section for each public class of a package that is derived from `base`."""
    for name in package.__all__:
        entry = getattr(package, name)
        if inspect.isclass(entry) and issubclass(entry, base) and entry is not base:
            path = f"{package.__name__}.{name}"
            yield f"### {path}"
            yield prose((inspect.getdoc(entry) or "").partition("\n\n")[0])
            rows = list(_arguments(entry, prefix="", anchor=f"{path}."))
            yield table(rows, "Key") if rows else "No settings."


def _arguments(entry: type, *, prefix: str, anchor: str | None = None) -> Iterator[Row]:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(entry)
    for row in _rows(parser, lambda name: True):
        yield Row(
            f"{prefix}{row.name}", row.kind, row.default, row.text, f"{prefix if anchor is None else anchor}{row.name}"
        )
