"""Compiled networks for sampling: callables beside the plain network, which stays as it is."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

CompileMode = Literal["off", "default", "reduce-overhead"]
"""Mode of torch.compile; "reduce-overhead" records CUDA graphs; "off": the plain network."""


class CompiledNetwork:
    """A network behind torch.compile, compiled at its first call with each kind of input. Other attributes are the network's."""

    def __init__(self, network: nn.Module, mode: CompileMode) -> None:
        self.network = network
        self.mode: CompileMode = mode
        self._compiled = torch.compile(network, mode=mode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.mode != "reduce-overhead":
            return self._compiled(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        output = self._compiled(*args, **kwargs)
        return tree_map_only(Tensor, Tensor.clone, output)  # the next replay overwrites the memory of a CUDA graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)

    def __reduce__(self) -> tuple[type["CompiledNetwork"], tuple[nn.Module, CompileMode]]:
        """A copy compiles anew."""
        return type(self), (self.network, self.mode)
