"""Cross-attention of a diffusers UNet: measured, or bounded to a hole.

With queries q (cells), keys and values k, v (tokens; 0 starts each text), a layer computes P v with P = softmax(q k^T / sqrt d).
Semantic boundary control (PILOT, `rad/methods/pilot.py`) limits the other tokens to the hole,

    P[q, j] <- P[q, j] A[q, j],    A[q, 0] = 1,    A[q, j > 0] = 1 for cells completely in the hole, else 0,

without normalising again: outside, a layer gives P[q, 0] v_0. This equals attention with all values but v_0 set to zero, so P is
computed explicitly only for measuring.

A call passes its settings as an argument, so calls in several threads can share a network:

    patch_attention(unet)
    unet(x, timesteps, encoder_hidden_states=text, cross_attention_kwargs={"focus": Focus(...)})
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0


def patch_attention(unet: "UNet2DConditionModel") -> int:
    """Make the attention layers of `unet` read a `Focus`, in place. Returns the least depth of a cross-attention layer.

    The depth of a layer is the number of times that its cells were halved. Parameters keep their names.
    """
    deepest, depths = len(unet.config["block_out_channels"]) - 1, []
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            module.__class__ = FocusedAttention
            layer = cast(FocusedAttention, module)
            layer.depth = None
            if name.endswith(".attn2"):
                part, number = name.split(".")[:2]
                depth = {"down_blocks": int, "up_blocks": lambda text: deepest - int(text)}.get(part, lambda _: deepest)
                layer.depth = depth(number)
                depths.append(layer.depth)
    return min(depths, default=0)


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


class FocusedAttention(Attention):
    """diffusers' Attention, with a `Focus` for cross-attention; see `patch_attention`."""

    depth: int | None
    """None for self-attention, which ignores the focus."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, list[Tensor]] | None = None,
        attention_mask: Tensor | None = None,
        focus: Focus | None = None,
        **cross_attention_kwargs: object,
    ) -> Tensor:
        """(B, cells, channels). An IP-Adapter adds its tokens to the text's (B,T,C) in a tuple."""
        if focus is None or self.depth is None:
            text = cast("Tensor | None", encoder_hidden_states)
            return super().forward(hidden_states, text, attention_mask, **cross_attention_kwargs)
        assert self.to_k is not None
        assert self.to_v is not None
        assert self.to_out is not None
        assert encoder_hidden_states is not None
        text, styles = encoder_hidden_states, []
        if isinstance(text, tuple):
            text, styles = text
        query, key, value = _heads(self, self.to_q, hidden_states), *_keys_values(self, self.to_k, self.to_v, text)
        where = None if focus.inside is None else focus.inside[query.shape[2]][:, None, :, None]
        keeps = focus.tokens is not None and self.depth >= focus.shallowest
        output = _kept(focus, query, key, value, where) if keeps else _bounded(query, key, value, where)
        if focus.style is not None:
            scale = focus.style[:, None, None, None].to(output.dtype)
            of_adapter = cast("IPAdapterAttnProcessor2_0", self.processor)
            for tokens, to_key, to_value in zip(styles, of_adapter.to_k_ip, of_adapter.to_v_ip, strict=True):
                key, value = _keys_values(self, to_key, to_value, tokens.flatten(1, -2))
                output = output + scale * F.scaled_dot_product_attention(query, key, value)
        output = output.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return self.to_out[1](self.to_out[0](output)) / self.rescale_output_factor


def _kept(focus: Focus, query: Tensor, key: Tensor, value: Tensor, where: Tensor | None) -> Tensor:
    assert focus.tokens is not None
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(exact) @ key.to(exact).transpose(-1, -2) * query.shape[-1] ** -0.5
    probabilities = scores.softmax(-1)  # (B, heads, cells, T)
    focus.kept.append((probabilities @ focus.tokens[:, None, :, None].to(scores)).mean(1)[..., 0])
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


def _heads(attn: Attention, layer: nn.Module, values: Tensor) -> Tensor:
    """layer(values) of (B,N,C) in heads: (B, heads, N, C / heads)."""
    return layer(values).unflatten(2, (attn.heads, -1)).transpose(1, 2)


def _keys_values(attn: Attention, to_k: nn.Module, to_v: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return _heads(attn, to_k, tokens), _heads(attn, to_v, tokens)
