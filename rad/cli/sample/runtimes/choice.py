"""The choice of a runtime by --runtime and the checkpoint. Loads no torch, unless the run needs it."""

from dataclasses import replace

from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Label
from rad.cli.sample.runtimes.base import Runtime
from rad.console import program, report
from rad.resources import EXPORTED, located

INPAINTING = "inpainting_model"
"""Default method of models trained for inpainting."""


def find_runtime(options: SampleOptions) -> Runtime:
    """The runtime of a run, with the folder of its model.

    Raises ValueError or FileNotFoundError for a checkpoint of another runtime, or an unknown method or setting.
    """
    exported = (located(options.checkpoint) / EXPORTED).is_file()
    if options.runtime == "onnx" and not exported:
        raise ValueError(
            f"--runtime onnx needs a folder with {EXPORTED}, and {options.checkpoint} is none: write one with "
            f"`{program('export')} {options.checkpoint} --onnx OUT`, then give --checkpoint OUT"
        )
    if options.runtime == "torch" and exported:
        raise ValueError(
            f"--runtime torch cannot read {options.checkpoint}, a folder for ONNX Runtime: give the checkpoint that it was "
            "exported from, or leave out --runtime"
        )
    if exported:
        return open_runtime(replace(options, runtime="onnx"))
    from rad.cli.sample.runtimes.pytorch import make_methods
    from rad.inpainting.runs import find_model
    from rad.models.load import is_for_inpainting

    make_methods(options, Label.all_of(options))  # errors before a model is looked up, perhaps on the hub
    model, revision = find_model(options.checkpoint)
    if revision is None and model != options.checkpoint:
        report(f"--checkpoint {options.checkpoint}: using {model}")
        options = replace(options, checkpoint=model)
    if not options.method and is_for_inpainting(model, revision, controlnet=options.controlnet):
        options = replace(options, method=[INPAINTING])
    return open_runtime(replace(options, runtime="torch"))


def open_runtime(options: SampleOptions) -> Runtime:
    """The runtime of `find_runtime`, from its options."""
    if options.runtime == "onnx":
        from rad.cli.sample.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(options)
    from rad.cli.sample.runtimes.pytorch import TorchRuntime

    return TorchRuntime(options)
