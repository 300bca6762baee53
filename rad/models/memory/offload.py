"""Placement of large flow models: text encoders and network take turns on the accelerator, by accelerate's hooks.

Offloading changes no result. The autoencoder is small and stays on the accelerator, as some methods call it in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, add_hook_to_module
from torch import nn

from rad.models.loaded_model import LoadedModel
from rad.models.memory.choices import BITSANDBYTES, Offload, Quantize


def place(model: LoadedModel, device: torch.device, *, offload: Offload | None, quantize: Quantize | None) -> None:
    """Move a model to `device`, in place, as its memory savers allow."""
    if offload is not None:
        offload_model(model, offload, device)
    elif quantize not in BITSANDBYTES:
        model.to(device)
    else:
        model.pin("its weights are quantised by bitsandbytes")
        modules: list[nn.Module] = [model.network, *model.frozen_modules()]
        for module in modules:
            if not (getattr(module, "is_loaded_in_8bit", False) or getattr(module, "is_loaded_in_4bit", False)):
                module.to(device)


def offload_model(model: LoadedModel, offload: Offload, device: torch.device) -> None:
    """Offload network and text encoders to the CPU, in place; they compute on `device`. One thread at a time may use them."""
    assert model.text is not None
    assert model.adapted is None
    modules: list[nn.Module] = [*model.text.encoders, model.network]
    model.pin(f"its weights are offloaded by {offload!r}", keep=offload == "sequential")
    model.text.place = device
    for module in model.frozen_modules():
        if module not in modules:
            module.to(device)
    for module in modules:
        module.to("cpu")
        if offload == "sequential":
            cpu_offload(module, device, offload_buffers=bool(module._parameters))
        else:
            others = [other for other in modules if other is not module]
            add_hook_to_module(module, _AloneOnDevice(device, others), append=True)


class _AloneOnDevice(CpuOffload):
    """Before a module's forward pass, its weights move to the device, and those of the others to the CPU."""

    def __init__(self, device: torch.device, others: Sequence[nn.Module]) -> None:
        super().__init__(device)
        self.others = others

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # Weights that move in inference mode could not be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            for other in self.others:
                other.to("cpu")
            module.to(self.execution_device)
        return super().pre_forward(module, *args, **kwargs)
