"""Spatial noise embedding for diffusers' SD3Transformer2DModel: each image token has its own timestep.

A token (2x2 cells) has the timestep of its noisiest cell: hole, if one cell is. The linear layers of the adaptive norms see the
K timesteps' vectors, and each token looks up its shifts, scales and gates. "dense" gives each token its own vector (reference).

Text has the timestep of the noisiest token, the hole's, as when the pretrained network fills a whole image. The known cells'
timestep, clean, would modulate it as for a finished image. diffusers' forward runs unchanged; parameters keep their names.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import AdaLayerNormContinuous
from einops import rearrange
from torch import Tensor, nn

from rad.networks.unet import EmbeddingKind


def patch_transformer(
    network: SD3Transformer2DModel, *, embedding: EmbeddingKind = "factorised"
) -> "RegionAwareTransformer":
    """Make `network` read a timestep per cell, in place. Parameters are not copied and keep their names."""
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
    """SD3Transformer2DModel with K timesteps per image and a level per cell; see `patch_transformer`."""

    embedding: EmbeddingKind

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        block_controlnet_hidden_states: list[Tensor] | None = None,
        joint_attention_kwargs: dict[str, object] | None = None,
        return_dict: bool = True,
        skip_layers: list[int] | None = None,
        index: Tensor | None = None,
    ) -> Tensor | Transformer2DModelOutput:
        """As SD3Transformer2DModel, with (B,K) for `timestep` if `index` (B,H,W), int64 in [0,K), gives the level of each cell.

        hidden_states (B,C,H,W); text: encoder_hidden_states (B,L,D), pooled_projections (B,P); timestep else a number or (B,).
        """
        timesteps = torch.as_tensor(timestep, device=hidden_states.device)
        if index is None:
            timesteps = timesteps.reshape(-1, 1).expand(hidden_states.shape[0], 1)
        assert timesteps.ndim == 2, "timestep is a number, (B,), or (B,K) with an index"
        of_tokens = TokenTimesteps(timesteps)
        if index is not None and timesteps.shape[1] > 1:
            of_tokens = token_timesteps(
                timesteps, index, patch=self.config["patch_size"], dense=self.embedding == "dense"
            )
        return super().forward(
            hidden_states,
            encoder_hidden_states,
            pooled_projections,
            cast(torch.LongTensor, of_tokens),
            block_controlnet_hidden_states=cast(list[Tensor], block_controlnet_hidden_states),
            joint_attention_kwargs=joint_attention_kwargs,
            return_dict=return_dict,
            skip_layers=skip_layers,
        )


@dataclass(frozen=True)
class TokenTimesteps:
    """`timestep` of the network: `image` (B,K), and `text` (B,), or None: the image's, with K = 1.

    `index`: (B,N), the level of each token; None: one for all tokens (K = 1), or one each (K = N).
    """

    image: Tensor
    text: Tensor | None = None
    index: Tensor | None = None


def token_timesteps(timesteps: Tensor, index: Tensor, *, patch: int, dense: bool) -> TokenTimesteps:
    """Timesteps of tokens of `patch` x `patch` cells, from timesteps (B,K) and index (B,H,W) in [0,K)."""
    cells = rearrange(index, "b (h p) (w q) -> b (h w) (p q)", p=patch, q=patch)
    noisiest = timesteps.gather(1, cells.flatten(1)).view(cells.shape).argmax(-1, keepdim=True)
    level = cells.gather(-1, noisiest).squeeze(-1)
    of_tokens = timesteps.gather(1, level)
    text = of_tokens.amax(1)
    if dense or timesteps.shape[1] > level.shape[1]:
        return TokenTimesteps(of_tokens, text)
    return TokenTimesteps(timesteps, text, level)


@dataclass(frozen=True)
class TokenEmbedding:
    """`temb` of the blocks: `image` (B,K,D) and `text` (B,D), vectors before SiLU; `index` as in `TokenTimesteps`."""

    image: Tensor
    text: Tensor
    index: Tensor | None

    def modulation(self, layer: nn.Module, *, parts: int) -> tuple[Tensor, ...]:
        """layer(silu(image)) in `parts` pieces, each (B,N,C), or (B,1,C) if all tokens have one timestep."""
        levels = layer(F.silu(self.image))
        if self.index is not None and levels.shape[1] == 2:
            levels = torch.where((self.index == 1)[:, :, None], levels[:, 1:], levels[:, :1])
        elif self.index is not None:
            levels = levels.gather(1, self.index[:, :, None].expand(-1, -1, levels.shape[2]))
        return levels.chunk(parts, dim=-1)


class _TokenTimeText(CombinedTimestepTextProjEmbeddings):
    def forward(self, timestep: TokenTimesteps, pooled_projection: Tensor) -> TokenEmbedding:
        image, text = timestep.image, timestep.text
        timesteps = image if text is None else torch.cat([image, text[:, None]], 1)
        vectors = self.timestep_embedder(self.time_proj(timesteps.flatten()).to(pooled_projection.dtype))
        vectors = vectors.unflatten(0, (-1, timesteps.shape[1]))
        vectors = vectors + self.text_embedder(pooled_projection)[:, None]
        return TokenEmbedding(vectors[:, : image.shape[1]], vectors[:, -1], timestep.index)


class _TokenNorm(AdaLayerNormContinuous):
    def forward(self, x: Tensor, conditioning_embedding: Tensor | TokenEmbedding) -> Tensor:
        assert isinstance(conditioning_embedding, TokenEmbedding)
        scale, shift = conditioning_embedding.modulation(self.linear, parts=2)
        return self.norm(x) * (1 + scale) + shift


class RegionAwareJointBlock(JointTransformerBlock):
    """JointTransformerBlock with a `TokenEmbedding` as `temb`."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor | TokenEmbedding,
        joint_attention_kwargs: dict[str, object] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        assert isinstance(temb, TokenEmbedding)
        image, text, options = hidden_states, encoder_hidden_states, joint_attention_kwargs or {}
        parts = temb.modulation(self.norm1.linear, parts=9 if self.use_dual_attention else 6)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts[:6]
        normed = self.norm1.norm(image)
        if self.context_pre_only:
            normed_text, text_parts = self.norm1_context(text, temb.text), None
        else:
            normed_text, *text_parts = self.norm1_context(text, emb=temb.text)

        attended, attended_text = self.attn(
            hidden_states=normed * (1 + scale) + shift, encoder_hidden_states=normed_text, **options
        )
        image = image + gate * attended
        if self.attn2 is not None:
            shift, scale, gate = parts[6:]
            image = image + gate * self.attn2(hidden_states=normed * (1 + scale) + shift, **options)
        image = image + gate_mlp * self.ff(self.norm2(image) * (1 + scale_mlp) + shift_mlp)
        if text_parts is None:
            return None, image

        gate, shift, scale, gate_mlp = (part[:, None] for part in text_parts)
        text = text + gate * attended_text
        assert self.norm2_context is not None
        assert self.ff_context is not None
        return text + gate_mlp * self.ff_context(self.norm2_context(text) * (1 + scale) + shift), image
