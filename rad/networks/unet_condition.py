"""Spatial noise embedding for diffusers' UNet2DConditionModel: Stable Diffusion 1.x, 2.x and XL, with their adapters.

diffusers' forward runs unchanged, so all its inputs work (text, ControlNet, T2I-Adapter, SDXL's sizes). It hands a
`TimeEmbedding` to its blocks as `temb`. One level for the whole image gives the output of the unpatched network.
"""

from typing import cast

from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from rad.networks.unet import EmbeddingKind, TimeEmbedding, embed_timesteps, patch_blocks, require_patchable


def patch_conditional(
    unet: UNet2DConditionModel, *, embedding: EmbeddingKind = "factorised"
) -> "RegionAwareConditionalUNet":
    """Make `unet` read a timestep per cell, in place. Parameters are not copied and keep their names.

    Raises ValueError for a network that `patch` rejects too, or that changes the time embedding further.
    """
    require_patchable(unet, embedding)
    if unet.time_embed_act is not None or unet.config["class_embeddings_concat"]:
        raise ValueError("the network has time_embedding_act_fn or class_embeddings_concat, which RAD does not patch")
    if unet.config["addition_embed_type"] == "image_hint":
        raise ValueError("the network takes a hint image (addition_embed_type), which RAD does not patch")
    patch_blocks(unet)
    unet.time_embedding.__class__ = _PassingEmbedding
    unet.__class__ = RegionAwareConditionalUNet
    patched = cast(RegionAwareConditionalUNet, unet)
    patched.embedding = embedding
    return patched


class RegionAwareConditionalUNet(UNet2DConditionModel):
    """UNet2DConditionModel with K timesteps per image and a level per cell; see `patch_conditional`."""

    embedding: EmbeddingKind

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, object] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        index: Tensor | None = None,
    ) -> UNet2DConditionOutput | tuple[Tensor, ...]:
        """As UNet2DConditionModel, with (B,K) for `timestep` if `index` (B,H,W), int64 in [0,K), gives the level of each cell.

        sample (B,C,H,W); text: encoder_hidden_states (B,L,D); timestep otherwise a number, (B,), or a map (B,H,W).
        """
        stock = super()
        added = stock.get_class_embed(sample=sample, class_labels=class_labels)
        sizes = stock.get_aug_embed(
            emb=sample, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs or {}
        )
        if sizes is not None:
            added = sizes if added is None else added + sizes
        temb = embed_timesteps(self, sample, timestep, index, dtype=sample.dtype, added=added, condition=timestep_cond)
        return stock.forward(
            sample,
            cast(Tensor, temb),
            encoder_hidden_states,
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs,
            added_cond_kwargs=added_cond_kwargs,
            down_block_additional_residuals=cast(tuple[Tensor], down_block_additional_residuals),
            mid_block_additional_residual=mid_block_additional_residual,
            down_intrablock_additional_residuals=cast(tuple[Tensor], down_intrablock_additional_residuals),
            encoder_attention_mask=encoder_attention_mask,
            return_dict=return_dict,
        )

    # diffusers' forward calls these three; their results are in the `TimeEmbedding` already.

    def get_time_embed(self, sample: Tensor, timestep: Tensor | float | int) -> Tensor:
        return cast(Tensor, timestep)

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> None:
        return None

    def get_aug_embed(self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: dict[str, object]) -> None:
        return None


class _PassingEmbedding(TimestepEmbedding):
    """TimestepEmbedding that returns a `TimeEmbedding` unchanged."""

    def forward(self, sample: Tensor | TimeEmbedding, condition: Tensor | None = None) -> Tensor | TimeEmbedding:
        return sample if isinstance(sample, TimeEmbedding) else super().forward(sample, condition)
