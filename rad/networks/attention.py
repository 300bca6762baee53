"""Cross-attention of a diffusers UNet: measured, or bounded to a hole.

With queries q (cells), keys and values k, v (tokens; 0 starts each text), a layer computes P v with P = softmax(q k^T / sqrt d).
Semantic boundary control (PILOT, `rad/methods/pilot.py`) limits the other tokens to the hole,

    P[q, j] <- P[q, j] A[q, j],    A[q, 0] = 1,    A[q, j > 0] = 1 for cells completely in the hole, else 0,

without normalising again: outside, a layer gives P[q, 0] v_0. This equals attention with all values but v_0 set to zero, so P is
computed explicitly only for measuring.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention, AttnProcessor, IPAdapterAttnProcessor2_0


@dataclass(frozen=True)
class Layer:
    """A cross-attention layer of a UNet; `depth`: number of times that its cells were halved."""

    depth: int
    attention: "Attention"


def cross_attentions(unet: "UNet2DConditionModel") -> list[Layer]:
    """The cross-attention layers, in the order of the modules."""
    deepest = len(unet.config["block_out_channels"]) - 1
    layers = []
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            part, number = name.split(".")[:2]
            depth = {"down_blocks": int, "up_blocks": lambda text: deepest - int(text)}.get(part, lambda _: deepest)
            layers.append(Layer(depth(number), cast("Attention", module)))
    return layers


def grids(size: tuple[int, int], depths: int) -> list[tuple[int, int]]:
    """(height, width) in cells of x and of each depth below it; odd sides are rounded up, as in the UNet."""
    sizes = [size]
    for _ in range(depths - 1):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def shrunk(hole: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells (B, *size) of a coarser grid in a binary hole (B,1,H,W): 1 after bilinear resizing without antialiasing (PILOT)."""
    return F.interpolate(hole, size, mode="bilinear", align_corners=False)[:, 0] > 1 - 1e-4


@dataclass(frozen=True)
class Focus:
    """Settings of the cross-attention layers for a batch.

    Args:
        inside: (B, cells) bool, where text acts, for each number of cells of a layer; None: everywhere.
        tokens: (B,T) 1 for tokens to measure, else 0; None: no measurement. shallowest: least depth of the measured layers.
        style: (B,) scale of an IP-Adapter's tokens; None: without them.
        kept: receives (B, cells) in [0,1] from each measured layer: the share of attention on `tokens`, mean over heads.
    """

    inside: dict[int, Tensor] | None = None
    tokens: Tensor | None = None
    shallowest: int = 0
    style: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)


class _Focused:
    """An attention processor, in diffusers' interface."""

    def __init__(self, layer: Layer, focus: Focus) -> None:
        self.focus, self.original = focus, cast("IPAdapterAttnProcessor2_0", layer.attention.processor)
        self.keeps = focus.tokens is not None and layer.depth >= focus.shallowest

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, list[Tensor]],
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        """(B, cells, channels). An IP-Adapter adds its tokens to the text's (B,T,C) in a tuple."""
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        text, styles = encoder_hidden_states, []
        if isinstance(text, tuple):
            text, styles = text
        query, key, value = _heads(attn, attn.to_q, hidden_states), *_keys_values(attn, attn.to_k, attn.to_v, text)
        where = None if self.focus.inside is None else self.focus.inside[query.shape[2]][:, None, :, None]
        output = self._kept(query, key, value, where) if self.keeps else _bounded(query, key, value, where)
        if self.focus.style is not None:
            scale = self.focus.style[:, None, None, None].to(output.dtype)
            for tokens, to_key, to_value in zip(styles, self.original.to_k_ip, self.original.to_v_ip, strict=True):
                key, value = _keys_values(attn, to_key, to_value, tokens.flatten(1, -2))
                output = output + scale * F.scaled_dot_product_attention(query, key, value)
        output = output.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor

    def _kept(self, query: Tensor, key: Tensor, value: Tensor, where: Tensor | None) -> Tensor:
        assert self.focus.tokens is not None
        exact = torch.promote_types(query.dtype, torch.float32)
        scores = query.to(exact) @ key.to(exact).transpose(-1, -2) * query.shape[-1] ** -0.5
        probabilities = scores.softmax(-1)  # (B, heads, cells, T)
        self.focus.kept.append((probabilities @ self.focus.tokens[:, None, :, None].to(scores)).mean(1)[..., 0])
        if where is not None:
            first = torch.arange(key.shape[2], device=key.device) == 0
            probabilities = probabilities * (where | first)
        return probabilities.to(value.dtype) @ value


def _bounded(query: Tensor, key: Tensor, value: Tensor, where: Tensor | None) -> Tensor:
    attended = F.scaled_dot_product_attention(query, key, value)
    if where is None:
        return attended
    first = torch.zeros_like(value)
    first[:, :, 0] = value[:, :, 0]
    return torch.where(where, attended, F.scaled_dot_product_attention(query, key, first))


def _heads(attn: "Attention", layer: nn.Module, values: Tensor) -> Tensor:
    """layer(values) of (B,N,C) in heads: (B, heads, N, C / heads)."""
    return layer(values).unflatten(2, (attn.heads, -1)).transpose(1, 2)


def _keys_values(attn: "Attention", to_k: nn.Module, to_v: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return _heads(attn, to_k, tokens), _heads(attn, to_v, tokens)


@contextlib.contextmanager
def focused(layers: Sequence[Layer], focus: Focus) -> Iterator[None]:
    """Context in which the layers follow `focus`."""
    with _processors(layers, [_Focused(layer, focus) for layer in layers]):
        yield


@contextlib.contextmanager
def _processors(layers: Sequence[Layer], processors: Sequence[object]) -> Iterator[None]:
    before = [layer.attention.processor for layer in layers]
    for layer, processor in zip(layers, processors, strict=True):
        layer.attention.set_processor(cast("AttnProcessor", processor))
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.attention.set_processor(processor)


def recomputing(layers: Sequence[Layer]) -> Callable[..., object]:
    """Function for `enable_gradient_checkpointing` that recomputes with the processors of the first computation."""

    def run(module: Callable[..., object], *inputs: object) -> object:
        processors = [layer.attention.processor for layer in layers]
        contexts = lambda: (contextlib.nullcontext(), _processors(layers, processors))  # noqa: E731
        return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)

    return run
