"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from rad.models.adapter import Kind
from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import FlowDenoiser, FlowModel, Layout, level_shift
from rad.models.text_to_image.prompts import Text, encode_sd3
from rad.networks.sd3_transformer import RegionAwareTransformer, patch_transformer

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    from rad.networks.unet import EmbeddingKind


class SD3Model(FlowModel):
    """Stable Diffusion 3 or 3.5; `load_model` loads it."""

    kind: Kind = "stable3"
    guidance = 7.0
    encode = staticmethod(encode_sd3)

    @property
    def layout(self) -> Layout:
        config = self.transformer.config
        cells = config["patch_size"]
        return Layout(config["in_channels"], cells, config["sample_size"], config["pos_embed_max_size"] * cells)

    @staticmethod
    def sigmas(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Tensor:
        shift = level_shift(scheduler, tokens) if scheduler.config["use_dynamic_shifting"] else None
        scheduler.set_timesteps(scheduler.config["num_train_timesteps"], mu=shift)
        return cast(Tensor, scheduler.sigmas)[:-1].flip(0).double()

    def velocity(
        self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None, *, adapter: bool = False
    ) -> Tensor:
        network, levels = self.sampled_network(adapter=adapter), {"timestep": times[:, 0]}
        if index is not None:
            levels = {"timestep": times, "index": index}
        return network(x.to(network.dtype), **levels, **text.arguments(), return_dict=False)[0].to(x.dtype)

    def check(self, conditions: Sequence[Condition]) -> None:
        super().check(conditions)
        self._check_negatives(conditions)

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        return self._guided(conditions, functools.partial(self.velocity, adapter=adapter))

    def _patched(self, embedding: EmbeddingKind) -> RegionAwareTransformer:
        return patch_transformer(cast("SD3Transformer2DModel", self.transformer), embedding=embedding)
