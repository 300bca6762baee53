"""Loads the models of a server."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePath

from rad.resources import EXPORTED, located, pip_install
from rad.studio.fillers.filler import Filler
from rad.studio.options import DEFAULT_CHECKPOINTS, StudioOptions


def load_fillers(options: StudioOptions) -> dict[str, Filler]:
    """The models by id, in the order of --checkpoint. Raises ValueError or FileNotFoundError."""
    fillers: dict[str, Filler] = {}
    for source in options.checkpoint or list(DEFAULT_CHECKPOINTS):
        id = model_id(source, fillers)
        fillers[id] = _load(id, source, options)
    return fillers


def _load(id: str, source: str, options: StudioOptions) -> Filler:
    folder = located(source)
    is_onnx = (folder / EXPORTED).is_file()
    if options.runtime == "onnx" and not is_onnx:
        raise ValueError(
            f"--checkpoint {source} has no {EXPORTED}: write it with `rad export {source} --onnx OUT`, or leave out "
            "--runtime onnx"
        )
    if options.runtime == "torch" and is_onnx:
        raise ValueError(f"--checkpoint {source} is a folder of rad export --onnx: leave out --runtime torch")
    if is_onnx:
        return _load_onnx(id, source, folder, options)
    from rad.inpainting.inpainter import Inpainter
    from rad.studio.fillers.torch_filler import TorchFiller

    return TorchFiller(
        id, source, Inpainter.from_pretrained(source, device=options.device, precision=options.precision)
    )


def _load_onnx(id: str, source: str, folder: Path, options: StudioOptions) -> Filler:
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"--device {options.device} has no effect on {source}, which runs on the CPU: leave it out")
    if find_spec("onnxruntime") is None:
        raise ValueError(f"--checkpoint {source} needs onnxruntime: {pip_install('onnx')}")
    from rad.runtime.inpainter import OnnxInpainter
    from rad.studio.fillers.onnx_filler import OnnxFiller

    return OnnxFiller(id, source, OnnxInpainter.from_pretrained(folder))


def model_id(source: str, taken: Sequence[str] | dict[str, Filler]) -> str:
    """A short name of a checkpoint: the last part of its path; a number makes it unique."""
    last = PurePath(source.partition("@")[0]).name or "model"
    stem = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in last)
    stem = stem.strip("._-")[:80] or "model"
    number, id = 1, stem
    while id in taken:
        number += 1
        id = f"{stem}-{number}"
    return id
