"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from rad.models.adapter import AdapterInfo, Kind
from rad.models.loaded_model import Condition, Origin
from rad.models.text_to_image.flow import FlowDenoiser, FlowModel, level_shift
from rad.models.text_to_image.prompts import PromptEncoder, Text, encode_sd3
from rad.models.vae import PretrainedAutoencoder
from rad.networks.sd3_transformer import RegionAwareTransformer, patch_transformer

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    from rad.networks.unet import EmbeddingKind


class SD3Model(FlowModel):
    """Stable Diffusion 3 or 3.5; `load_model` loads it. Arguments as of `FlowModel`."""

    guidance = 7.0

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        origin: Origin,
        *,
        scheduler: FlowMatchEulerDiscreteScheduler,
        size: int | None = None,
        info: AdapterInfo | None = None,
    ) -> None:
        self.transformer: SD3Transformer2DModel = pipeline.transformer
        config, autoencoder = self.transformer.config, PretrainedAutoencoder(pipeline.vae)
        largest = config["pos_embed_max_size"] * config["patch_size"] * autoencoder.factor
        super().__init__(
            self.transformer,
            autoencoder,
            PromptEncoder(pipeline, encode_sd3),
            origin,
            scheduler=scheduler,
            latent_channels=config["in_channels"],
            cells=config["patch_size"],
            sides=(config["sample_size"] * autoencoder.factor, largest),
            size=size,
            info=info,
        )

    @property
    def kind(self) -> Kind:
        return "stable3"

    @staticmethod
    def sigmas(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Tensor:
        shifted = {"mu": level_shift(scheduler, tokens)} if scheduler.config["use_dynamic_shifting"] else {}
        scheduler.set_timesteps(scheduler.config["num_train_timesteps"], **shifted)
        return scheduler.sigmas[:-1].flip(0).double()

    def velocity(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None) -> Tensor:
        levels = {"timestep": times[:, 0]} if index is None else {"timestep": times, "index": index}
        output = self.transformer(x.to(self.transformer.dtype), **levels, **text.arguments(), return_dict=False)
        return output[0].to(x.dtype)

    def check(self, conditions: Sequence[Condition]) -> None:
        super().check(conditions)
        for condition in conditions:
            if condition.negative and condition.guidance is not None and condition.guidance <= 1:
                raise ValueError(
                    f"a negative prompt has no effect with guidance {condition.guidance:g}: raise it above 1"
                )

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        scales = [self._scale(condition) for condition in conditions]
        negatives = [condition.negative for condition, scale in zip(conditions, scales, strict=True) if scale > 1]
        return FlowDenoiser(
            self.velocity,
            self._texts([condition.prompt for condition in conditions]),
            negative=self._texts(negatives) if negatives else None,
            guidance=scales,
            channels=self.autoencoder.channels,
        )

    def _patched(self, embedding: EmbeddingKind) -> RegionAwareTransformer:
        return patch_transformer(self.transformer, embedding=embedding)

    def save_trained(self, folder: Path) -> None:
        raise NotImplementedError("Stable Diffusion 3 is not trained as a whole")
