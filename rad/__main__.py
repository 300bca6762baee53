"""The command `rad`, also `python -m rad`; `COMMANDS` are loaded when called."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rad.console import EXIT_OK, did_you_mean, guarded

COMMANDS = {
    "sample": ("rad.cli.main", "sample", "fill holes in images, with RAD or with zero-shot methods"),
    "train": ("rad.cli.main", "train", "train a RAD adapter or a base model from a configuration"),
    "ema": ("rad.cli.ema", "main", "average the weights of a training run over another length, after training"),
    "evaluate": ("rad.evaluation.__main__", "main", "score inpainted images, ours or those of other systems"),
    "masks": ("rad.masks.__main__", "main", "write named sets of masks, or check mask files"),
    "export": (
        "rad.cli.hub.export",
        "main",
        "merge an adapter into its base, or write weights in float16 or ONNX files",
    ),
    "studio": ("rad.studio.command", "main", "open a page to brush masks and compare methods, and serve an HTTP API"),
    "push": ("rad.cli.hub.push", "main", "publish a trained model on the Hugging Face hub"),
    "doctor": ("rad.cli.doctor", "main", "print the environment and test the installation"),
    "demo": ("rad.cli.demo", "main", "write the training images and the panel of `make demo`"),
}
"""Module, function and summary of each command; the functions take arguments and return an exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 2 for an unknown command."""
    return guarded(lambda: _run(sys.argv[1:] if arguments is None else list(arguments)))


def _run(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return EXIT_OK
    if name == "--version":
        from rad import __version__

        print(f"rad {__version__}")
        return EXIT_OK
    if name not in COMMANDS:
        raise ValueError(
            f"rad has no command {name!r}{did_you_mean(name, COMMANDS)}: commands are {', '.join(COMMANDS)}"
        )
    module, function, _ = COMMANDS[name]
    return getattr(import_module(module), function)(rest)


def usage() -> str:
    called = "python -m rad" if Path(sys.argv[0]).name == "__main__.py" else "rad"
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, _, summary) in COMMANDS.items()]
    return "\n".join(
        [f"usage: {called} COMMAND ...", "", "Region-aware diffusion for image inpainting. Commands:", *lines, "",
         f"`{called} COMMAND --help` lists the options of a command; --version prints the version."]
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
