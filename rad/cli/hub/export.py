"""`rad export`: an adapter merged into its base, weights in float16, or ONNX files."""

import argparse
import fnmatch
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rad.console import EXIT_OK, Parser, print_line, program, report

if TYPE_CHECKING:
    from rad.inpainting.runs import Parts

DAY = 86400.0
"""Seconds without a change after which the unfinished folder of an export is one of a killed process."""

PARTS = (
    "unet", "transformer", "scheduler", "vae", "vqvae", "text_encoder*", "tokenizer*",
    "feature_extractor", "image_encoder", "safety_checker",
)  # fmt: skip
"""Folders of a model, as `save_pretrained` of diffusers names them."""

WEIGHTS = ("*.safetensors", "*.onnx", "adapter_model.bin", "diffusion_pytorch_model*.bin", "pytorch_model*.bin")


def parser() -> Parser:
    """The options of `rad export`."""
    result = Parser(
        prog=program("export"),
        description="Export a trained model: merge its adapter into the base, convert the weights to float16, or write ONNX "
        "files, which run without PyTorch.",
    )
    result.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="adapter, run folder, .ckpt of training, base model, or USER/NAME on the hub",
    )
    result.add_argument("--output", metavar="FOLDER", help="new folder; it appears when it is complete")
    result.add_argument(
        "--merge", action="store_true", help="merge the adapter into its base; writes a diffusers folder"
    )
    result.add_argument("--half", action="store_true", help="store the weights in float16")
    result.add_argument(
        "--onnx",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="write a pixel model as ONNX files, with its adapter merged; the folder may be given here in place of --output",
    )
    result.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        help="storage of the weights in the ONNX files (default: fp32); the computation is in float32",
    )
    result.add_argument(
        "--base_weights", action="store_true", help="also write the base network as ONNX, for zero-shot methods"
    )
    result.add_argument("--base", help="base model of the adapter (default: the base in its settings)")
    result.add_argument("--overwrite", action="store_true", help="replace the output if it is a model folder")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rad export ...`. The folder goes to stdout."""
    options = parser().parse_args(arguments)
    _check_options(options)
    from rad.images.atomic import remove_temporaries, replacing_folder, require_writable
    from rad.inpainting.runs import find_parts, find_trained
    from rad.resources import located

    parts = find_parts(options.checkpoint, options.base)
    if options.merge and parts.adapter is None:
        raise ValueError(f"{options.checkpoint} has no adapter to merge: give an adapter, or leave --merge out")
    whole = located(parts.source) if options.onnx is not None else None  # a file will do, and names are fetched later
    source, output = parts.adapter or whole or _folder(parts.source, parts.revision), Path(options.output)
    _check_output(output, source, overwrite=options.overwrite)
    if find_trained(given := located(options.checkpoint)) != given:
        report(f"{options.checkpoint}: using {source}")
    require_writable(output.parent, options.output)
    remove_temporaries([output.parent], older=DAY)  # of killed exports; others may be running
    with replacing_folder(output) as place:
        _write(options, parts, source, place)
    print_line(output)
    return EXIT_OK


def _check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for options that exclude each other; --output becomes the folder of --onnx."""
    if options.onnx is None:
        if not (options.merge or options.half):
            raise ValueError("nothing to do: give --merge, --half, or both, or --onnx")
        for name in ("precision", "base_weights"):
            if getattr(options, name):
                raise ValueError(f"--{name} is for ONNX files: give --onnx, or leave it out")
    elif options.merge or options.half:
        raise ValueError("--onnx merges the adapter itself: leave --merge out, and for --half give --precision fp16")
    elif options.onnx and options.output:
        raise ValueError(f"--onnx {options.onnx} and --output {options.output} both name the folder: give one of them")
    options.output = options.onnx or options.output
    if not options.output:
        raise ValueError("the output is missing: give --output FOLDER")


def _write(options: argparse.Namespace, parts: "Parts", source: Path, place: Path) -> None:
    from rad.models.hub.convert import save_half

    if options.onnx is not None:
        _write_onnx(options, parts, place)
        return
    if not options.half:
        _merge(parts, place, options.output)
        return
    with tempfile.TemporaryDirectory(prefix=".rad-export-", dir=place.parent) as spare:
        if options.merge:
            source = Path(spare)
            _merge(parts, source, options.output)
        if save_half(source, place) and parts.adapter is None:
            report(
                f"warning: float16 rounds the weights of {options.checkpoint}: adapters trained on it need the original, "
                "and refuse this folder"
            )


def _merge(parts: "Parts", folder: Path, output: str) -> None:
    from rad.models.hub.convert import save_merged
    from rad.models.load import load_model

    assert parts.adapter is not None
    model = load_model(parts.source, revision=parts.revision, adapter=parts.adapter, info=parts.info)
    card = parts.adapter / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    save_merged(model, folder, name=Path(output).resolve().name, card=text)
    for image in sorted(path for path in parts.adapter.iterdir() if path.suffix in (".png", ".jpg", ".webp")):
        shutil.copyfile(image, folder / image.name)


def _write_onnx(options: argparse.Namespace, parts: "Parts", place: Path) -> None:
    from rad.models.load import load_model
    from rad.models.weights import is_hub_id
    from rad.resources import located
    from rad.runtime.export import export_onnx, kind_of, require_onnx, require_pixels

    require_onnx()
    given = options.checkpoint.rstrip("/")
    is_name = is_hub_id(given.partition("@")[0]) and not located(given).exists()
    name = Path(given).resolve().name.removesuffix(".ckpt").partition("@")[0]
    kind = kind_of(parts.source, parts.revision) if parts.info is None else parts.info.kind
    require_pixels(kind, name)
    model = load_model(parts.source, revision=parts.revision, adapter=parts.adapter, info=parts.info)
    differences = export_onnx(
        model,
        place,
        name=name,
        source=given if is_name else name,
        precision=options.precision or "fp32",
        base_weights=options.base_weights,
    )
    for result in differences:
        report(
            f"{result.file}: largest difference from PyTorch {result.difference:.2g}, {result.share:.2g} of its output"
        )


def _folder(source: str, revision: str | None) -> Path:
    """The folder of a model without an adapter, fetched if it is on the hub."""
    from rad.models.hub.download import WHOLE
    from rad.models.weights import fetch, is_hub_id
    from rad.resources import located

    path = located(source)
    if path.is_dir():
        return path
    if path.exists() or not is_hub_id(source):
        raise FileNotFoundError(f"{source} is no folder of a model: give an adapter, a diffusers folder, or USER/NAME")
    return fetch(source, WHOLE, revision=revision)


def _check_output(output: Path, source: Path, *, overwrite: bool) -> None:
    """Raise ValueError for an output that exists, or that is the source, contains it or lies in it."""
    from rad.inpainting.runs import MODEL_FILES
    from rad.resources import EXPORTED

    marks = (*MODEL_FILES, EXPORTED)

    place, given = output.resolve(), source.resolve()
    if place == given or place in given.parents:
        raise ValueError(f"--output {output} holds the checkpoint itself: give another folder")
    if given in place.parents:
        raise ValueError(f"--output {output} lies in the folder of the checkpoint: give a folder outside {source}")
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise ValueError(f"--output {output} exists: give another folder, or --overwrite")
        files = [path for path in sorted(output.rglob("*")) if path.is_symlink() or not path.is_dir()]
        if not (any((output / name).exists() for name in marks) and any(map(_is_weights, files))):
            raise ValueError(f"--output {output} is no model folder, and --overwrite replaces no other: give another")
        if foreign := next((path for path in files if not _is_of_model(path.relative_to(output))), None):
            raise ValueError(
                f"--overwrite would delete {foreign}, which is no file of a model: move it, or give another --output"
            )


def _is_weights(path: Path) -> bool:
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in WEIGHTS)


def _is_of_model(path: Path) -> bool:
    """Whether a file, relative to its folder, has a place in the layout of a model."""
    from rad.models.hub.convert import COPIED

    *folders, _ = path.parts
    known = not folders or (len(folders) == 1 and any(fnmatch.fnmatchcase(folders[0], part) for part in PARTS))
    return known and (path.name == "LICENSE" or path.suffix in COPIED or _is_weights(path))
