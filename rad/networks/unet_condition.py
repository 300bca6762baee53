"""Spatial noise embedding for diffusers' UNet2DConditionModel: Stable Diffusion 1.x and 2.x, SDXL, with their adapters.

diffusers' own forward runs as it is, so all that it takes (text, ControlNet, T2I-Adapter, sizes of SDXL) works. What differs is
the object that it hands to its blocks for `temb`: a `TimeEmbedding` in place of a tensor, which `rad.networks.unet` explains.
Parameters and their names stay those of the stock network, and one level for the whole image gives the stock output.
"""

from typing import Any, cast

from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor

from rad.networks.unet import EmbeddingKind, TimeEmbedding, embed_times, patch_blocks, require_patchable


def patch_conditional(
    unet: UNet2DConditionModel, *, embedding: EmbeddingKind = "factorised"
) -> "RegionAwareConditionalUNet":
    """Turn `unet` itself into one that reads a time for every cell. Nothing is copied and no parameter is renamed.

    Raises:
        ValueError: a network of another kind than `patch` takes, or one that changes the time embedding further.
    """
    require_patchable(unet, embedding)
    if unet.time_embed_act is not None or unet.config["class_embeddings_concat"]:
        raise ValueError("the network has time_embedding_act_fn or class_embeddings_concat, which RAD does not patch")
    if unet.config["addition_embed_type"] == "image_hint":
        raise ValueError("the network takes a hint image (addition_embed_type), which RAD does not patch")
    patch_blocks(unet)
    unet.time_embedding.__class__ = _Passing
    unet.__class__ = RegionAwareConditionalUNet
    patched = cast(RegionAwareConditionalUNet, unet)
    patched.embedding = embedding
    return patched


class RegionAwareConditionalUNet(UNet2DConditionModel):
    """UNet2DConditionModel that takes K times for an image and the level of each cell. Made by `patch_conditional`."""

    embedding: EmbeddingKind

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: list[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        index: Tensor | None = None,
    ) -> Any:
        """Predict as UNet2DConditionModel does, which describes the other arguments.

        Args:
            sample: (B,C,H,W).
            timestep: a number, (B,), or (B,K) with `index`.
            encoder_hidden_states: (B,L,D) the text.
            index: (B,H,W) int64 in [0,K): which of the K times each cell has.
        """
        stock = super()
        added = stock.get_class_embed(sample=sample, class_labels=class_labels)
        of_sizes = stock.get_aug_embed(
            emb=sample, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs or {}
        )
        if of_sizes is not None:
            added = of_sizes if added is None else added + of_sizes
        times = embed_times(self, sample, timestep, index, dtype=sample.dtype, added=added, condition=timestep_cond)
        return stock.forward(
            sample,
            cast(Any, times),
            encoder_hidden_states,
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs,
            added_cond_kwargs=added_cond_kwargs,
            down_block_additional_residuals=cast(Any, down_block_additional_residuals),
            mid_block_additional_residual=mid_block_additional_residual,
            down_intrablock_additional_residuals=cast(Any, down_intrablock_additional_residuals),
            encoder_attention_mask=encoder_attention_mask,
            return_dict=return_dict,
        )

    # The stock forward calls these three; what they would add is in the `TimeEmbedding` already.

    def get_time_embed(self, sample: Tensor, timestep: Any) -> Any:
        return timestep

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> None:
        return None

    def get_aug_embed(self, emb: Any, encoder_hidden_states: Tensor, added_cond_kwargs: dict[str, Any]) -> None:
        return None


class _Passing(TimestepEmbedding):
    """TimestepEmbedding that lets a `TimeEmbedding` pass."""

    def forward(self, sample: Tensor | TimeEmbedding, condition: Tensor | None = None) -> Any:
        return sample if isinstance(sample, TimeEmbedding) else super().forward(sample, condition)
