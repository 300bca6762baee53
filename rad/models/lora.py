"""Low-rank adapters on a network, by peft: W + (alpha / r) B A on convolutions and attention (Hu et al. 2021, arXiv 2106.09685).

RAD trains rank 16 on the layers below, and the time layers fully.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rad.modes import float32_modes
from rad.rng import check_seed

NetworkT = TypeVar("NetworkT", bound=nn.Module)

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv_in", "conv_out", "conv1", "conv2")

TIME_LAYERS = ("time_embedding.linear_1", "time_embedding.linear_2", "time_emb_proj")


# Of Stable Diffusion 3's transformer, where norms take the place of projections; those of the text's stream are left alone.
SD3_TARGETS = (*TARGETS[:4], "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


SD3_TIME_LAYERS = ("timestep_embedder.linear_1", "timestep_embedder.linear_2", "norm1.linear", "norm_out.linear")


@dataclass(frozen=True)
class LoRA:
    """Settings of an adapter.

    Args:
        rank: of the update of each layer, which is scaled by alpha / rank.
        targets: names of layers that get a low-rank update; None: TARGETS of a UNet, SD3_TARGETS of SD3's transformer.
        time_layers: "full" trains the time embedding and its projections as they are (as the paper); "lora" gives them a
            low-rank update, for a third of the size; use it for SD3, whose norms hold a fifth of its weights.
    """

    rank: int = 16
    alpha: float = 16
    targets: tuple[str, ...] | None = None
    time_layers: Literal["full", "lora"] = "full"

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"lora.alpha is {self.alpha}; it must be finite")
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; it must be at least 1")
        if self.time_layers not in ("full", "lora"):
            raise ValueError(f"lora.time_layers is {self.time_layers!r}; allowed are 'full' and 'lora'")

    def peft_config(self, network: nn.Module) -> LoraConfig:
        full = self.time_layers == "full"
        transformer = isinstance(network, SD3Transformer2DModel)
        targets = self.targets or (SD3_TARGETS if transformer else TARGETS)
        time_layers = SD3_TIME_LAYERS if transformer else TIME_LAYERS
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  # peft divides by the rank; any number will do
            target_modules=list(targets) + ([] if full else list(time_layers)),
            modules_to_save=list(time_layers) if full else None,
            init_lora_weights="gaussian",
        )


@float32_modes()
def inject(network: nn.Module, lora: LoRA, *, seed: int = 0) -> PeftModel:
    """Add a new adapter to `network` in place and freeze the rest. B = 0, so the output stays the same.

    A is Gaussian with standard deviation 1/rank, drawn from `seed` alone.
    """
    with torch.random.fork_rng():
        model = get_peft_model(network, lora.peft_config(network))  # pyright: ignore[reportArgumentType]
    assert isinstance(model, PeftModel)
    source = torch.Generator("cpu").manual_seed(check_seed(seed))
    for name, parameter in model.named_parameters():
        if ".lora_A." in name and parameter.device.type != "meta":
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=source, device="cpu", dtype=torch.float32) / lora.rank
            )
    return model


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge(model: PeftModel) -> nn.Module:
    """The network with the adapter added into its weights: W <- W + (alpha / r) B A. `model` loses the adapter.

    Merged weights are new parameters, so a network that shares the old ones does not change. Raises ValueError for weights that
    are not finite.
    """
    layers: list[Any] = [layer.get_base_layer() for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:  # peft replaces the data of the parameter
        layer.weight = nn.Parameter(layer.weight.data, requires_grad=False)
    wrapped: Any = model
    return wrapped.merge_and_unload(safe_merge=True)


def twin(network: NetworkT) -> NetworkT:
    """A copy of the modules of `network` that shares its parameters and buffers."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


@contextmanager
def swapped(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which the named parameters hold `weights`."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in weights}
    try:
        _copy(parameters, weights)
        yield
    finally:
        _copy(parameters, before)


def _copy(parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
