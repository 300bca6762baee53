"""How the network runs in training: memory, speed, precision, parallelism."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from rad.diffusion.losses import Losses
from rad.models.loaded_model import LoadedModel, RegionAwareNetwork
from rad.networks.unet import EmbeddingKind
from rad.training.schedules import require_choice

BaseDtype = Literal["float32", "bfloat16"]
MatmulPrecision = Literal["highest", "high", "medium"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class Execution:
    """How the network runs; results stay the same up to rounding.

    Args:
        embedding: per-pixel time embedding: "factorised", or "dense" (the reference, slower).
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        channels_last: memory format of the network, with its adapter, and of its input.
        base_dtype: dtype of the frozen convolutions and linear layers of a base model. "bfloat16" halves their memory, and the
            network then computes in bfloat16. Norms and trained weights stay in float32. It needs an adapter.
        compile: run noising, network and loss through torch.compile. true is "default"; the others are its modes.
        dynamic: whether torch.compile keeps sizes symbolic; null: it decides at the second size.
        matmul_precision: precision of float32 matrix products during training, see torch.set_float32_matmul_precision. "high" is
            TF32. null: the setting of PyTorch.
        shard_optimizer: each process keeps the optimiser state of a part of the weights (ZeRO stage 1). For large models that
            are trained as a whole; AdamW's 8 bytes a weight are divided by the number of processes.
    """

    embedding: EmbeddingKind = "factorised"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    base_dtype: BaseDtype = "float32"
    compile: bool | CompileMode = False
    dynamic: bool | None = None
    matmul_precision: MatmulPrecision | None = None
    shard_optimizer: bool = False

    def __post_init__(self) -> None:
        require_choice("execution.embedding", self.embedding, EmbeddingKind)
        require_choice("execution.base_dtype", self.base_dtype, BaseDtype)
        if self.matmul_precision is not None:
            require_choice("execution.matmul_precision", self.matmul_precision, MatmulPrecision)
        if not isinstance(self.compile, bool):
            require_choice("execution.compile", self.compile, CompileMode)
        if self.dynamic is not None and self.compile is False:
            raise ValueError(
                f"execution.dynamic is {self.dynamic} and has no effect without execution.compile: remove it"
            )

    def prepare(self, model: LoadedModel) -> RegionAwareNetwork:
        """Patch the network of `model` for per-pixel timesteps, and set it up for training."""
        network = model.region_aware_network(embedding=self.embedding)
        for layer in network.modules():  # the draws of a pretrained model's dropout would not be keyed
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        if self.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        return network

    def finish(self, trained: nn.Module, network: nn.Module) -> None:
        """Set the memory format and the dtype of `network`, after its adapter has been added; `trained` holds both."""
        if self.channels_last:
            nn.utils.convert_conv2d_weight_memory_format(trained, torch.channels_last)
        if self.base_dtype == "float32":
            return
        for layer in trained.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                for weight in layer.parameters(recurse=False):
                    if not weight.requires_grad:
                        weight.data = weight.data.to(torch.bfloat16)
        network.forward = _in_bfloat16(network.forward)

    def compiled(self, function: Callable[..., Losses]) -> Callable[..., Losses]:
        """`function` through torch.compile with these settings, or unchanged."""
        if self.compile is False:
            return function
        mode = "default" if self.compile is True else self.compile
        return torch.compile(function, mode=mode, dynamic=self.dynamic)


class MatmulPrecisionOfRun(Callback):
    """Sets torch.set_float32_matmul_precision while the Trainer runs, and restores the previous precision."""

    def __init__(self, precision: MatmulPrecision) -> None:
        self.precision: MatmulPrecision = precision
        self._before: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._before is None:
            self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        before, self._before = self._before, None
        if before is not None:
            torch.set_float32_matmul_precision(before)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


def _in_bfloat16(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` in autocast to bfloat16, on the device of its first argument, a tensor."""

    @functools.wraps(forward)
    def inner(*args: Any, **kwargs: Any) -> Any:
        first: Tensor = args[0] if args else next(iter(kwargs.values()))
        with torch.autocast(first.device.type, torch.bfloat16):
            return forward(*args, **kwargs)

    return inner
