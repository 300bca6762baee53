"""Spatial noise embedding for diffusers' UNet2DModel: each pixel has its own timestep (RAD, arXiv 2412.09191, section 3).

In each residual block the paper applies SiLU, bilinear resize R (align_corners) and a 1x1 projection W, b. R and W are linear.
For a map of K distinct levels with indicator maps 1_k therefore

    W R(sum_k silu(z_k) 1_k) + b = sum_k (W silu(z_k) + b) R(1_k)                                      (factorised)

holds exactly, and the time layers see K vectors instead of H x W pixels. "dense" computes the left side, as a reference.
One level for the whole image gives the output of the unpatched network.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from rad.networks import REGION_AWARE, SURROUNDINGS
from rad.networks.attention import grids
from rad.networks.surroundings import velocity

if TYPE_CHECKING:
    from rad.networks.unet_condition import RegionAwareConditionalUNet

EmbeddingKind = Literal["factorised", "dense"]


def patch(unet: UNet2DModel, *, embedding: EmbeddingKind = "factorised") -> "RegionAwareUNet":
    """Make `unet` read a timestep per pixel, in place. Parameters are not copied and keep their names.

    `embedding` "dense" is the reference, several times slower. Raises ValueError unless `unet` has a positional time embedding,
    SiLU, and residual blocks of type ResnetBlock2D (ADM, DDPM).
    """
    require_patchable(unet, embedding)
    patch_blocks(unet)
    unet.__class__ = RegionAwareUNet
    patched = cast(RegionAwareUNet, unet)
    patched.embedding = embedding
    return patched


def use_surroundings(unet: UNet2DModel, log_cumulative: Tensor) -> None:
    """Make the output of a patched `unet` relative to the surroundings of each hole, see `rad.networks.surroundings`.

    `log_cumulative`: log A_t = 2 log a_t of each timestep (T,).
    """
    unet.register_to_config(**{SURROUNDINGS: True})
    unet.register_buffer("log_cumulative", log_cumulative.to(torch.float32), persistent=False)


def require_patchable(unet: UNet2DModel | UNet2DConditionModel, embedding: EmbeddingKind) -> None:
    """Raise ValueError for an unknown `embedding`, or another kind of time embedding in `unet`."""
    if embedding not in ("factorised", "dense"):
        raise ValueError(f"embedding is {embedding!r}; allowed are 'factorised' and 'dense'")
    kind = unet.config["time_embedding_type"]
    if kind != "positional":
        raise ValueError(f"time_embedding_type is {kind!r}; RAD needs 'positional'")


def patch_blocks(unet: nn.Module) -> None:
    """Make the residual blocks of `unet` read a `TimeEmbedding`. Raises ValueError for other kinds of blocks."""
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    foreign = any(
        hasattr(module, "skip_conv") or isinstance(module, ResnetBlockCondNorm2D) for module in unet.modules()
    )
    if not blocks or foreign:
        raise ValueError("the network is not built of ResnetBlock2D alone; RAD patches ADM and DDPM style networks")
    for block in blocks:
        known = block.time_embedding_norm in ("default", "scale_shift") and not block.skip_time_act
        if not known or not isinstance(block.nonlinearity, nn.SiLU):
            raise ValueError(
                f"a residual block has time_embedding_norm {block.time_embedding_norm!r} and activation "
                f"{type(block.nonlinearity).__name__}; RAD needs 'default' or 'scale_shift', and SiLU"
            )
        block.__class__ = RegionAwareResnetBlock


class RegionAwareUNet(UNet2DModel):
    """UNet2DModel with K timesteps per image and a level per pixel; see `patch`."""

    embedding: EmbeddingKind
    log_cumulative: Tensor
    """See `use_surroundings`."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        index: Tensor | None = None,
    ) -> UNet2DOutput | tuple[Tensor, ...]:
        """As UNet2DModel: sample (B,C,H,W), timestep a number, (B,), or a map (B,H,W), int or float.

        rad's samplers give a map as its K levels (B,K), with index (B,H,W), the level of each pixel in [0,K). This is quicker.
        Raises ValueError for a map of another shape, and for one timestep an image if the network was trained with maps alone.
        """
        if self.config["center_input_sample"]:
            sample = 2 * sample - 1.0
        timesteps = torch.as_tensor(timestep, device=sample.device)
        if index is None and timesteps.ndim > 2:
            timesteps, index = map_levels(timesteps, sample)
        temb = self._embed(sample, timesteps, class_labels, index)

        hidden = self.conv_in(sample)
        skips = (hidden,)
        for block in self.down_blocks:
            hidden, outputs = block(hidden_states=hidden, temb=temb)
            skips += outputs
        if self.mid_block is not None:
            hidden = self.mid_block(hidden, temb)
        for block in self.up_blocks:
            count = len(cast(nn.ModuleList, block.resnets))
            hidden = block(hidden, skips[-count:], temb)
            skips = skips[:-count]
        output = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        if index is not None and self.config.get(SURROUNDINGS):
            output = self._velocity(output, sample, timesteps, index)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _velocity(self, output: Tensor, sample: Tensor, timesteps: Tensor, index: Tensor) -> Tensor:
        """v of an output relative to the surroundings. Known are the pixels of the first level, if its timestep is 0."""
        dtype = torch.promote_types(output.dtype, torch.float32)
        with torch.autocast(sample.device.type, enabled=False):
            values = _interpolated(self.log_cumulative.to(dtype), timesteps.to(dtype))
            known, log_abar = self._first_level(timesteps, index), self._spread(values, index)
            alpha, sigma = (log_abar / 2).exp(), (-log_abar.expm1()).sqrt()
            v = velocity(output.to(dtype), sample.to(dtype), known, alpha=alpha, sigma=sigma)
        return v.to(output.dtype)

    def _first_level(self, timesteps: Tensor, index: Tensor) -> Tensor:
        """Whether a pixel is of the first level, and this has timestep 0; (B,1,H,W) bool."""
        return ((index == 0) & (timesteps[:, :1, None] == 0))[:, None]

    def _spread(self, values: Tensor, index: Tensor) -> Tensor:
        """Values of levels (B,K) to the pixels, (B,1,H,W)."""
        return values.gather(1, index.flatten(1)).view(index.shape)[:, None]

    def _embed(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None,
        index: Tensor | None,
    ) -> "TimeEmbedding":
        added = None
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this network is class-conditional: give class_labels, (B,) int64")
            if self.config["class_embed_type"] == "timestep":
                class_labels = self.time_proj(class_labels)
            added = self.class_embedding(class_labels)
        return embed_timesteps(self, sample, timestep, index, dtype=self.dtype, added=added)


def embed_timesteps(
    unet: "RegionAwareUNet | RegionAwareConditionalUNet",
    sample: Tensor,
    timestep: Tensor | float | int,
    index: Tensor | None,
    *,
    dtype: torch.dtype,
    added: Tensor | None = None,
    condition: Tensor | None = None,
) -> "TimeEmbedding":
    """The input `temb` of the blocks of `unet`; sample, timestep, index: see `RegionAwareUNet.forward`.

    `added` (B,D), for a class, text or sizes, is added to every level. `condition` (B,C): input of time_embedding's cond_proj.
    """
    timesteps = torch.as_tensor(timestep, device=sample.device)
    if index is None and timesteps.ndim < 2 and unet.config.get(REGION_AWARE):
        raise ValueError(
            "timestep is one number an image, and this network was trained with a timestep per pixel: give a map (B,H,W), or "
            "use the base model"
        )
    if index is None and timesteps.ndim > 2:
        timesteps, index = map_levels(timesteps, sample)
    elif index is None:
        timesteps = timesteps.reshape(-1, 1).expand(sample.shape[0], 1)
    assert timesteps.ndim == 2, "timestep is a number, (B,), (B,H,W), or (B,K) with an index"
    levels = timesteps.shape[1]
    # With more levels than channels, K indicator maps cost more than the dense embedding.
    dense = unet.embedding == "dense" or levels > unet.time_embedding.linear_2.out_features
    if index is not None and dense:
        timesteps = timesteps.gather(1, index.flatten(1))
    conditions = () if condition is None else (condition.repeat_interleave(timesteps.shape[1], 0),)
    vectors = unet.time_embedding(unet.time_proj(timesteps.flatten()).to(dtype), *conditions)
    vectors = vectors.unflatten(0, (-1, timesteps.shape[1]))
    if added is not None:
        vectors = vectors + added.to(vectors.dtype)[:, None]
    if index is not None and dense:
        return TimeEmbedding(image=rearrange(vectors, "b (h w) d -> b d h w", h=sample.shape[2]))
    indicators = _indicators(index, levels, sample.dtype)
    if indicators is None:
        return TimeEmbedding(vectors=F.silu(vectors))
    sizes = grids((sample.shape[2], sample.shape[3]), len(unet.config["block_out_channels"]))
    return TimeEmbedding(vectors=F.silu(vectors), maps=tuple(resize(indicators, size) for size in sizes))


def map_levels(timesteps: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (B,K) and index (B,H,W) of a map of timesteps (B,H,W), K the number of its values in the batch.

    Raises ValueError for another shape than that of `sample` (B,C,H,W).
    """
    batch, _, height, width = sample.shape
    if timesteps.shape != (batch, height, width):
        raise ValueError(
            f"timestep is a tensor {tuple(timesteps.shape)} for images {tuple(sample.shape)}: give a number, (B,), or a map "
            f"(B,H,W), here {(batch, height, width)}"
        )
    levels, index = torch.unique(timesteps, return_inverse=True)
    return levels.expand(batch, -1), index


def _interpolated(table: Tensor, t: Tensor) -> Tensor:
    """Values of a table (T,) at fractional t of any shape, linear between its entries."""
    low = t.floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], t - low)


def _indicators(index: Tensor | None, levels: int, dtype: torch.dtype) -> Tensor | None:
    if index is None or levels == 1:
        return None
    if levels == 2:
        return index[:, None].to(dtype)
    return torch.stack([index == level for level in range(levels)], 1).to(dtype)


@dataclass(frozen=True)
class TimeEmbedding:
    """The residual blocks' `temb`: `vectors` (B,K,D) after SiLU with indicator maps, or (dense) an image of vectors.

    `maps`: R(1_k) at the size of each depth, the input's size first; (B,1,h,w), of level 1, for K = 2; (B,K,h,w) for more; empty
    for K = 1. They are computed before the blocks, so that torch.compile keeps one graph with gradient checkpointing.
    `image`: (B,D,H,W) before SiLU.
    """

    vectors: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    image: Tensor | None = None

    def weights(self, size: tuple[int, int]) -> Tensor | None:
        """The map of `size`; None for K = 1."""
        for indicators in self.maps:
            if indicators.shape[-2:] == size:
                return indicators
        return resize(self.maps[0], size) if self.maps else None


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """R: bilinear, align_corners=True, no antialiasing; (B,C,H,W) -> (B,C,*size)."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=True)


def pointwise(layer: nn.Module, image: Tensor) -> Tensor:
    """Apply a linear layer over channels, (B,D,H,W) -> (B,C,H,W), as a 1x1 convolution."""
    if type(layer) is nn.Linear:
        return F.conv2d(image, layer.weight[:, :, None, None], layer.bias)
    return layer(image.movedim(1, -1)).movedim(-1, 1)  # LoRA layers take channels last


def mix(levels: Tensor, weights: Tensor | None) -> Tensor:
    """sum_k levels_k R(1_k): (B,K,C) and `TimeEmbedding.weights` -> (B,C,h,w), or (B,C,1,1) for K = 1."""
    if weights is None:
        return levels[:, 0, :, None, None]
    if levels.shape[1] == 2:
        known, hole = levels[:, :, :, None, None].unbind(1)
        # Exact at weights 0 and 1, as torch.lerp, which is four times slower on a CPU when its ends broadcast.
        return (known * (1 - weights)).addcmul_(hole, weights)
    return torch.einsum("bkc,bkhw->bchw", levels, weights)


class _Modulate(torch.autograd.Function):
    """silu(hidden * scale + shift), with maps mixed from K levels. To save memory, the backward pass recomputes them."""

    @staticmethod
    def forward(ctx: BackwardCFunction, hidden: Tensor, scale: Tensor, shift: Tensor, weights: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, scale, shift, cast(Tensor, weights))  # None is allowed
        return F.silu(_affine(hidden, mix(scale, weights), mix(shift, weights)), inplace=True)

    @staticmethod
    def backward(ctx: BackwardCFunction, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved, wanted = cast(tuple[Tensor, ...], ctx.saved_tensors), cast(tuple[bool, ...], ctx.needs_input_grad)
        hidden, scale, shift, weights = saved
        factor = mix(scale, weights)
        argument = _affine(hidden, factor, mix(shift, weights))
        grad = torch.ops.aten.silu_backward(grad_outputs[0], argument)
        of_scale = _collect(grad * hidden, weights) if wanted[1] else None
        of_shift = _collect(grad, weights) if wanted[2] else None
        return grad * factor if wanted[0] else None, of_scale, of_shift, None


def _affine(hidden: Tensor, factor: Tensor, term: Tensor) -> Tensor:
    """hidden * factor + term. Overwrites a `term` of the same shape, to save memory."""
    return torch.addcmul(term, hidden, factor) if term.shape != hidden.shape else term.addcmul_(hidden, factor)


def _collect(grad: Tensor, weights: Tensor | None) -> Tensor:
    """Adjoint of `mix` with respect to its levels: (B,C,h,w) -> (B,K,C)."""
    if weights is None:
        return grad.sum((2, 3))[:, None]
    collected = torch.einsum("bchw,bkhw->bkc", grad, weights)
    if weights.shape[1] > 1:
        return collected
    return torch.cat([grad.sum((2, 3))[:, None] - collected, collected], 1)


def modulate(hidden: Tensor, scale: Tensor, shift: Tensor, weights: Tensor | None) -> Tensor:
    """silu(hidden * mix(scale) + mix(shift)): hidden (B,C,h,w), scale and shift (B,K,C)."""
    dtype = hidden.dtype
    with torch.autocast(hidden.device.type, enabled=False):
        return _Modulate.apply(hidden, scale.to(dtype), shift.to(dtype), None if weights is None else weights.to(dtype))


class RegionAwareResnetBlock(ResnetBlock2D):
    """ResnetBlock2D with a `TimeEmbedding` as `temb`."""

    def forward(self, input_tensor: Tensor, temb: Tensor | TimeEmbedding, *args: object, **kwargs: object) -> Tensor:
        assert isinstance(temb, TimeEmbedding)
        hidden = F.silu(self.norm1(input_tensor))
        resample = self.upsample or self.downsample
        if resample is not None:
            input_tensor, hidden = resample(input_tensor), resample(hidden)
        hidden = self.conv1(hidden)
        hidden = self._condition_dense(hidden, temb) if temb.vectors is None else self._condition(hidden, temb)
        hidden = self.conv2(self.dropout(hidden))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor.contiguous())
        return (input_tensor + hidden) / self.output_scale_factor

    def _condition(self, hidden: Tensor, temb: TimeEmbedding) -> Tensor:
        assert self.time_emb_proj is not None
        levels = self.time_emb_proj(temb.vectors)
        weights = temb.weights((hidden.shape[2], hidden.shape[3]))
        if self.time_embedding_norm == "default":
            return F.silu(self.norm2(hidden + mix(levels, None if weights is None else weights.to(levels.dtype))))
        scale, shift = levels.chunk(2, dim=-1)
        return modulate(self.norm2(hidden), 1 + scale, shift, weights)

    def _condition_dense(self, hidden: Tensor, temb: TimeEmbedding) -> Tensor:
        assert self.time_emb_proj is not None
        assert temb.image is not None
        image = pointwise(self.time_emb_proj, resize(F.silu(temb.image), (hidden.shape[2], hidden.shape[3])))
        if self.time_embedding_norm == "default":
            return F.silu(self.norm2(hidden + image))
        scale, shift = image.chunk(2, dim=1)
        return F.silu(self.norm2(hidden) * (1 + scale) + shift)
