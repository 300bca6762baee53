"""Memory savers for large flow models: choices, their checks, and the configurations of quantised weights."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import torch

from rad.arguments import describe
from rad.resources import pip_install

Offload = Literal["model", "sequential"]
"""model: one network at a time on the accelerator. sequential: one layer at a time, which is far slower."""

Quantize = Literal["8bit", "4bit", "int8"]
"""8bit, 4bit: LLM.int8 and NF4 of bitsandbytes, on CUDA devices. int8: weights as integers by torchao, on any device."""

BITSANDBYTES = ("8bit", "4bit")


def check_saving(
    offload: Offload | None, quantize: Quantize | None, device: torch.device, *, bf16: bool, compiled: bool
) -> None:
    """Raise ValueError for an unknown choice, one without effect on `device`, or a missing package."""
    for name, value, kind in (("offload", offload, Offload), ("quantize", quantize, Quantize)):
        if value is not None and value not in get_args(kind):
            allowed = ", ".join(map(repr, get_args(kind)))
            raise ValueError(f"{name} is {describe(value)}; allowed are {allowed}, or None for off")
    if offload is not None and device.type == "cpu":
        raise ValueError(
            f"offload is {offload!r}, which moves weights between the CPU and an accelerator; the device is 'cpu': "
            "leave it out, or use an accelerator"
        )
    if compiled and (offload is not None or quantize is not None):
        raise ValueError("compile cannot be combined with offload and quantize: leave it out")
    if quantize is None:
        return
    if offload is not None:
        raise ValueError(f"offload {offload!r} and quantize {quantize!r} exclude each other: leave out one of them")
    if not bf16:
        raise ValueError(f"quantize is {quantize!r}, which computes in bfloat16: set precision to 'bf16'")
    if quantize in BITSANDBYTES and device.type != "cuda":
        raise ValueError(
            f"quantize is {quantize!r}, which needs a CUDA device; the device is {str(device)!r}: use 'int8' or a CUDA device"
        )
    package, extra = ("bitsandbytes", "adam8bit") if quantize in BITSANDBYTES else ("torchao", "quantize")
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"quantize {quantize!r} needs the package {package}, which is not installed: {pip_install(extra)}"
        )


def quantization(quantize: Quantize, package: Literal["diffusers", "transformers"]) -> Any:
    """The configuration of `package` for `quantize`; both have classes of the same names."""
    module = importlib.import_module(package)
    if quantize == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]

        return module.TorchAoConfig(Int8WeightOnlyConfig())
    if quantize == "8bit":
        return module.BitsAndBytesConfig(load_in_8bit=True)
    return module.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
