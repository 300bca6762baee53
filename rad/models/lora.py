"""Low-rank adapters on a network, by peft: W + s B A on convolutions and attention (Hu et al. 2021, arXiv 2106.09685).

The scale s is alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732). DoRA (Liu et al. 2024, arXiv
2402.09353) trains the norm m of each output channel apart: m (W + s B A) / |W + s B A|.

RAD trains rank 16 on the layers below, and the time layers fully.
"""

import copy
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rad.modes import float32_modes
from rad.networks.dropout import key_dropout
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
        rank: r of the update of each layer, which is scaled by alpha / rank.
        targets: names of layers that get a low-rank update; None: TARGETS of a UNet, SD3_TARGETS of SD3's transformer.
        time_layers: "full" trains the time embedding and its projections as they are (as the paper); "lora" gives them a
            low-rank update, for a third of the size; use it for SD3, whose norms hold a fifth of its weights.
        dropout: probability in [0,1) of a zero among the inputs of each update, in training; masks are keyed by the sample.
        use_rslora: scale by alpha / sqrt(rank), which suits high ranks.
        use_dora: train the norm of each output channel apart from its direction.
        rank_pattern: ranks of some layers, by a regular expression of the end of the name, such as {"mid_block.*": 32}; the
            first that matches counts.
        alpha_pattern: alphas of some layers, likewise.
    """

    rank: int = 16
    alpha: float = 16
    targets: tuple[str, ...] | None = None
    time_layers: Literal["full", "lora"] = "full"
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"lora.alpha is {self.alpha}; it must be finite")
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; it must be at least 1")
        if self.time_layers not in ("full", "lora"):
            raise ValueError(f"lora.time_layers is {self.time_layers!r}; allowed are 'full' and 'lora'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; allowed are probabilities from 0 to below 1")
        for name, rank in self.rank_pattern.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ValueError(f"lora.rank_pattern has {rank!r} for {name!r}; ranks are whole numbers of at least 1")
        for name, alpha in self.alpha_pattern.items():
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
                raise ValueError(f"lora.alpha_pattern has {alpha!r} for {name!r}; alphas are finite numbers")
        for name in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(
                    f"lora.rank_pattern or lora.alpha_pattern has {name!r}, which is no regular expression ({error}): give the "
                    "end of a layer's name, or an expression such as 'mid_block.*'"
                ) from None

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
            lora_dropout=self.dropout,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
        )


@float32_modes()
def inject(network: nn.Module, lora: LoRA, *, seed: int = 0) -> PeftModel:
    """Add a new adapter to `network` in place and freeze the rest. B = 0, so the output stays the same.

    A is Gaussian with standard deviation 1/rank, drawn from `seed` alone. Raises ValueError for patterns that match no layer, and
    for DoRA on output channels whose weights are all zero.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following .*_pattern keys did not match")  # an error below
        model = get_peft_model(network, lora.peft_config(network))  # pyright: ignore[reportArgumentType]
    assert isinstance(model, PeftModel)
    _require_matches(model, lora)
    _require_directions(model)
    key_dropout(model, shared=(*TIME_LAYERS, *SD3_TIME_LAYERS))
    source = torch.Generator("cpu").manual_seed(check_seed(seed))
    for name, parameter in model.named_parameters():
        if ".lora_A." in name and parameter.device.type != "meta":
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=source, device="cpu", dtype=torch.float32) / len(parameter)
            )
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Layers with a low-rank update, by their names in the base network."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name.removeprefix("base_model.model."): layer for name, layer in layers.items()}


def _require_matches(model: nn.Module, lora: LoRA) -> None:
    """Raise ValueError for a setting of ranks or alphas that no layer has."""
    layers = lora_layers(model)
    for setting, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for pattern in patterns:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in layers):
                raise ValueError(
                    f"lora.{setting} has {pattern!r}, which matches none of the {len(layers)} layers: give the end of a name, or "
                    f"an expression such as 'mid_block.*'; names are {', '.join(list(layers)[:3])}, ..."
                )
    ranks = sorted({layer.r["default"] for layer in layers.values()})
    if lora.rank not in ranks:
        raise ValueError(
            f"lora.rank is {lora.rank}, and lora.rank_pattern gives all layers other ranks, {ranks}: set lora.rank to one of them"
        )


def _require_directions(model: nn.Module) -> None:
    """Raise ValueError for DoRA on weights without a direction, which it would divide by their norm of zero."""
    for name, parameter in model.named_parameters():
        if ".lora_magnitude_vector." in name and parameter.device.type != "meta" and not bool(parameter.all()):
            layer = name.removeprefix("base_model.model.").partition(".lora_magnitude_vector.")[0]
            raise ValueError(
                f"lora.use_dora is true, and an output channel of {layer} has only zeros as weights, without a direction: leave "
                "the layer out of lora.targets, or set lora.use_dora to false"
            )


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge(model: PeftModel) -> nn.Module:
    """The network with the adapter added into its weights: W <- W + s B A, or DoRA's weights. `model` loses the adapter.

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
