"""Spatial noise embedding for diffusers' SD3Transformer2DModel: every token of the image has its own time.

A token (2x2 cells) is told the time of its noisiest cell: a token that holds a cell of the hole counts as hole. The K vectors of
the times go through the linear layers of the adaptive norms, whose shifts, scales and gates are then looked up for the tokens;
"dense" gives each token a vector of its own, and is the reference.

The text has no place in the image. Its stream is told the time of the noisiest token, which is the hole's: the text says what
to put there, and this is the time that it is told when the pretrained network makes a whole image. At the time of the known
cells, which are clean while the hole is filled, it would be modulated as for a finished image, to which it has nothing to add.

diffusers' own forward runs as it is; parameters and their names stay those of the stock network.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings
from diffusers.models.normalization import AdaLayerNormContinuous
from einops import rearrange
from torch import Tensor, nn

from rad.networks.unet import EmbeddingKind


def patch_transformer(
    network: SD3Transformer2DModel, *, embedding: EmbeddingKind = "factorised"
) -> "RegionAwareTransformer":
    """Turn `network` itself into one that reads a time for every cell. Nothing is copied and no parameter is renamed."""
    if embedding not in ("factorised", "dense"):
        raise ValueError(f"embedding is {embedding!r}; allowed are 'factorised' and 'dense'")
    network.time_text_embed.__class__ = _TokenTimeText
    network.norm_out.__class__ = _TokenNorm
    for block in network.transformer_blocks:
        block.__class__ = RegionAwareJointBlock
    network.__class__ = RegionAwareTransformer
    patched = cast(RegionAwareTransformer, network)
    patched.embedding = embedding
    return patched


class RegionAwareTransformer(SD3Transformer2DModel):
    """SD3Transformer2DModel that takes K times for an image and the level of each cell. Made by `patch_transformer`."""

    embedding: EmbeddingKind

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        block_controlnet_hidden_states: list[Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: list[int] | None = None,
        index: Tensor | None = None,
    ) -> Any:
        """Predict as SD3Transformer2DModel does, which describes the other arguments.

        Args:
            hidden_states: (B,C,H,W).
            encoder_hidden_states: (B,L,D) and pooled_projections: (B,P), the text.
            timestep: a number, (B,), or (B,K) with `index`.
            index: (B,H,W) int64 in [0,K): which of the K times each cell has.
        """
        times = torch.as_tensor(timestep, device=hidden_states.device)
        if index is None:
            times = times.reshape(-1, 1).expand(len(hidden_states), 1)
        assert times.ndim == 2, "timestep is a number, (B,), or (B,K) with an index"
        told = _Times(times)
        if index is not None and times.shape[1] > 1:
            told = token_times(times, index, patch=self.config["patch_size"], dense=self.embedding == "dense")
        return super().forward(
            hidden_states,
            encoder_hidden_states,
            pooled_projections,
            cast(Any, told),
            block_controlnet_hidden_states=cast(Any, block_controlnet_hidden_states),
            joint_attention_kwargs=joint_attention_kwargs,
            return_dict=return_dict,
            skip_layers=skip_layers,
        )


@dataclass(frozen=True)
class _Times:
    """Travels in place of `timestep`.

    Args:
        image: (B,K) times; text: (B,), None: that of the image, whose K is 1.
        index: (B,N) which of the K each token has; None: all have the one, or (K = N) each its own.
    """

    image: Tensor
    text: Tensor | None = None
    index: Tensor | None = None


def token_times(times: Tensor, index: Tensor, *, patch: int, dense: bool) -> _Times:
    """The times of tokens of `patch` x `patch` cells: times (B,K), index (B,H,W) in [0,K)."""
    cells = rearrange(index, "b (h p) (w q) -> b (h w) (p q)", p=patch, q=patch)
    batch = torch.arange(len(times), device=times.device)[:, None]
    noisiest = times[batch, cells.flatten(1)].view(cells.shape).argmax(-1, keepdim=True)
    level = cells.gather(-1, noisiest).squeeze(-1)
    of_tokens = times.gather(1, level)
    text = of_tokens.amax(1)
    if dense or times.shape[1] > level.shape[1]:
        return _Times(of_tokens, text)
    return _Times(times, text, level)


@dataclass(frozen=True)
class TokenEmbedding:
    """Travels in place of `temb`.

    Args:
        image: (B,K,D) and text: (B,D), vectors before SiLU; index: as for `_Times`.
    """

    image: Tensor
    text: Tensor
    index: Tensor | None

    def modulation(self, layer: nn.Module, *, parts: int) -> tuple[Tensor, ...]:
        """layer(silu(image)) in `parts` pieces, each (B,N,C), or (B,1,C) where all tokens have one time."""
        levels = layer(F.silu(self.image))
        if self.index is not None and levels.shape[1] == 2:
            levels = torch.where((self.index == 1)[:, :, None], levels[:, 1:], levels[:, :1])
        elif self.index is not None:
            levels = levels.gather(1, self.index[:, :, None].expand(-1, -1, levels.shape[2]))
        return levels.chunk(parts, dim=-1)


class _TokenTimeText(CombinedTimestepTextProjEmbeddings):
    def forward(self, timestep: _Times, pooled_projection: Tensor) -> TokenEmbedding:
        times = timestep.image if timestep.text is None else torch.cat([timestep.image, timestep.text[:, None]], 1)
        vectors = self.timestep_embedder(self.time_proj(times.flatten()).to(pooled_projection.dtype))
        vectors = rearrange(vectors, "(b k) d -> b k d", b=len(times))
        vectors = vectors + self.text_embedder(pooled_projection)[:, None]
        return TokenEmbedding(vectors[:, : timestep.image.shape[1]], vectors[:, -1], timestep.index)


class _TokenNorm(AdaLayerNormContinuous):
    def forward(self, x: Tensor, conditioning_embedding: TokenEmbedding) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, shift = conditioning_embedding.modulation(self.linear, parts=2)
        return self.norm(x) * (1 + scale) + shift


class RegionAwareJointBlock(JointTransformerBlock):
    """JointTransformerBlock whose time argument is a `TokenEmbedding`. Made by `patch_transformer`."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: TokenEmbedding,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        image, text, given = hidden_states, encoder_hidden_states, joint_attention_kwargs or {}
        parts = temb.modulation(self.norm1.linear, parts=9 if self.use_dual_attention else 6)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts[:6]
        normed = self.norm1.norm(image)
        if self.context_pre_only:
            normed_text, of_text = self.norm1_context(text, temb.text), None
        else:
            normed_text, *of_text = self.norm1_context(text, emb=temb.text)

        attended, attended_text = self.attn(
            hidden_states=normed * (1 + scale) + shift, encoder_hidden_states=normed_text, **given
        )
        image = image + gate * attended
        if self.attn2 is not None:
            shift, scale, gate = parts[6:]
            image = image + gate * self.attn2(hidden_states=normed * (1 + scale) + shift, **given)
        image = image + gate_mlp * self.ff(self.norm2(image) * (1 + scale_mlp) + shift_mlp)
        if of_text is None:
            return None, image

        gate, shift, scale, gate_mlp = (part[:, None] for part in of_text)
        text = text + gate * attended_text
        assert self.norm2_context is not None
        assert self.ff_context is not None
        return text + gate_mlp * self.ff_context(self.norm2_context(text) * (1 + scale) + shift), image
