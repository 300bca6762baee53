"""What text does where: cross-attention of a diffusers UNet, kept for looking at it or bounded to a hole.

With queries q (cells), keys and values k, v (tokens; 0 is the one that begins each text) a layer computes P v with
P = softmax(q k^T / sqrt d). Semantic boundary control (PILOT, `rad/methods/pilot.py`) lets other tokens act in the hole alone,

    P[q, j] <- P[q, j] A[q, j],    A[q, 0] = 1,    A[q, j > 0] = 1 for cells that lie in the hole as a whole, else 0,

without normalising anew: outside, a layer gives P[q, 0] v_0. That is the attention with all values but v_0 set to zero, so
no probability is formed for it; they are formed, explicitly, only where they are kept.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Layer:
    """A cross-attention of a UNet; `depth`: how often its cells were halved."""

    depth: int
    attention: Any


def cross_attentions(unet: nn.Module) -> list[Layer]:
    """Those of a `UNet2DConditionModel`, in the order of its modules."""
    deepest = len(unet.config["block_out_channels"]) - 1  # pyright: ignore[reportArgumentType, reportIndexIssue]
    found = []
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            part, number = name.split(".")[:2]
            depth = {"down_blocks": int, "up_blocks": lambda text: deepest - int(text)}.get(part, lambda _: deepest)
            found.append(Layer(depth(number), module))
    return found


def grids(size: tuple[int, int], depths: int) -> list[tuple[int, int]]:
    """(height, width) of the cells of x and of each depth below it; odd sides are rounded up, as the UNet does."""
    found = [size]
    for _ in range(depths - 1):
        found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
    return found


def shrunk(hole: Tensor, size: tuple[int, int]) -> Tensor:
    """Which cells of a coarser grid lie in the hole (B,1,H,W) of 0 and 1: (B, *size) bool.

    PILOT's rule: resized bilinearly without antialiasing, where it is 1.
    """
    return F.interpolate(hole, size, mode="bilinear", align_corners=False)[:, 0] > 1 - 1e-4


@dataclass(frozen=True)
class Focus:
    """What cross-attention is to do, for the rows of a batch.

    Args:
        inside: where text acts, for each number of cells that a layer may have: (B, cells) bool; None: everywhere.
        tokens: (B,T) 1 for tokens whose attention is to be kept, else 0; None: nothing is kept.
        shallowest: layers of at least this depth are kept.
        style: (B,) the scale of an IP-Adapter's tokens; None: they are left out.
        kept: gets, layer by layer, the part of each cell's attention that these tokens have, the mean of the heads: (B, cells)
            in [0,1].
    """

    inside: dict[int, Tensor] | None = None
    tokens: Tensor | None = None
    shallowest: int = 0
    style: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)


class _Focused:
    """The processor of a layer, as diffusers calls it."""

    def __init__(self, layer: Layer, focus: Focus) -> None:
        self.focus, self.original = focus, layer.attention.processor
        self.keeps = focus.tokens is not None and layer.depth >= focus.shallowest

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, list[Tensor]],
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        """(B, cells, channels), with the tokens (B,T,C), which an IP-Adapter makes a tuple with its own."""
        text, styles = encoder_hidden_states, []
        if isinstance(text, tuple):
            text, styles = text
        query = _heads(attn, attn.to_q(hidden_states))
        key, value = _heads(attn, attn.to_k(text)), _heads(attn, attn.to_v(text))
        where = None if self.focus.inside is None else self.focus.inside[query.shape[2]][:, None, :, None]
        made = self._kept(query, key, value, where) if self.keeps else _bounded(query, key, value, where)
        if self.focus.style is not None:
            scale = self.focus.style[:, None, None, None].to(made.dtype)
            projections = zip(styles, self.original.to_k_ip, self.original.to_v_ip, strict=True)
            for tokens, to_key, to_value in projections:
                key, value = _heads(attn, to_key(tokens.flatten(1, -2))), _heads(attn, to_value(tokens.flatten(1, -2)))
                made = made + scale * F.scaled_dot_product_attention(query, key, value)
        made = made.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](made)) / attn.rescale_output_factor

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


def _heads(attn: Any, values: Tensor) -> Tensor:
    """(B,N,C) -> (B, heads, N, C / heads)."""
    return values.unflatten(2, (attn.heads, -1)).transpose(1, 2)


@contextlib.contextmanager
def focused(layers: Sequence[Layer], focus: Focus) -> Iterator[None]:
    """Within it the layers do what `focus` says; then they are as before."""
    with _processors(layers, [_Focused(layer, focus) for layer in layers]):
        yield


@contextlib.contextmanager
def _processors(layers: Sequence[Layer], processors: Sequence[Any]) -> Iterator[None]:
    before = [layer.attention.processor for layer in layers]
    for layer, processor in zip(layers, processors, strict=True):
        layer.attention.set_processor(processor)
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.attention.set_processor(processor)


def recomputing(layers: Sequence[Layer]) -> Any:
    """For `enable_gradient_checkpointing`: what is computed again sees the layers as they were the first time."""

    def run(module: Any, *inputs: Any) -> Any:
        there = [layer.attention.processor for layer in layers]
        contexts = lambda: (contextlib.nullcontext(), _processors(layers, there))  # noqa: E731
        return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)

    return run
