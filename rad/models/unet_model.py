"""A UNet2DModel on pixels, or between the halves of an autoencoder: ADM, DDPM, EDM; LDM (Rombach et al., arXiv 2112.10752)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from rad.diffusion.denoiser import Denoiser, EDMDenoiser, UNetDenoiser
from rad.diffusion.processes import EDM, Uniform
from rad.diffusion.schedules import log_cumulative
from rad.images.atomic import replacing_folder
from rad.models.adapter import AdapterInfo, Kind
from rad.models.base import INDEX, Base, save_base
from rad.models.loaded_model import PLAIN, Condition, LoadedModel, Origin, scaled_size
from rad.models.vae import IDENTITY, Autoencoder, PretrainedAutoencoder
from rad.networks import SURROUNDINGS
from rad.networks.unet import RegionAwareUNet, patch, use_surroundings

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from rad.networks.unet import EmbeddingKind


class UNetModel(LoadedModel):
    """A UNet without text, for RAD (adapter on) and for zero-shot methods (adapter off).

    Args:
        base: the network and its noise schedule; the network is patched in place.
        info: of an adapter, or of per-pixel training of all weights.
        size: (height, width) in pixels; None: that of `info`, or of the base.

    Raises ValueError for an unknown size, or one that the network cannot halve.
    """

    whole_processes = ("region_aware", "tdpaint", "uniform")

    def __init__(
        self,
        base: Base,
        *,
        autoencoder: Autoencoder = IDENTITY,
        info: AdapterInfo | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.unet, self.base = patch(base.unet), base
        self.kind: Kind = "pixel" if autoencoder is IDENTITY else "latent"
        if self.unet.config.get(SURROUNDINGS):
            self.use_surroundings()
        halvings = len(self.unet.config["block_out_channels"]) - 1
        if size is None:
            size = scaled_size(self.unet.config["sample_size"], autoencoder.factor) if info is None else info.size
        super().__init__(
            self.unet,
            Origin(base.source, base.revision, base.hash),
            base_process=Uniform(base.betas) if base.sigmas is None else EDM(base.sigmas),
            prediction="sample" if base.prediction_type == "edm" else base.prediction_type,
            autoencoder=autoencoder,
            size=size,
            side_multiple=autoencoder.factor * 2**halvings,
            info=info,
        )

    def use_surroundings(self) -> None:
        """See `LoadedModel`."""
        if self.base.prediction_type != "v_prediction" or self.kind != "pixel":
            raise ValueError(
                f"{self.source} is a {self.kind} model with prediction {self.base.prediction_type!r}; outputs relative to the "
                "surroundings are for pixel models with 'v_prediction'"
            )
        use_surroundings(self.unet, log_cumulative(self.base.betas)[:-1])

    @property
    def learns_variance(self) -> bool:
        return self.autoencoder is IDENTITY and self.prediction == "epsilon"

    @property
    def output_channels(self) -> tuple[int, ...]:
        channels = self.autoencoder.channels
        return (channels, 2 * channels) if self.learns_variance else (channels,)

    def require_inpainting(self) -> None:
        """Raise ValueError for a network with other inputs, or with classes."""
        if self.unet.config["in_channels"] != self.autoencoder.channels or self.unet.config["num_class_embeds"]:
            raise ValueError(f"{self.source} is not a model of RGB images without classes, which inpainting needs")

    def check(self, conditions: Sequence[Condition]) -> None:
        if any(condition != PLAIN for condition in conditions):
            names = {"prompt": "the prompt", "negative": "the negative prompt", "guidance": "guidance"}
            names = {field.name: names.get(field.name, field.name) for field in fields(PLAIN)}
            given = [
                word
                for name, word in names.items()
                if any(getattr(condition, name) != getattr(PLAIN, name) for condition in conditions)
            ]
            raise ValueError(f"{self.source} takes no text: leave {', '.join(given)} out, or use a text-to-image model")

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> Denoiser:
        self.check(conditions)
        if self.base.sigmas is not None:
            network, channels = self.sampled_network(adapter=False), self.autoencoder.channels
            return EDMDenoiser(lambda x, c: network(x, c).sample, sigma_data=self.base.sigma_data, channels=channels)
        info = self.info if adapter or self.adapted is None else None
        return self._denoiser(self.sampled_network(adapter=adapter), info is None or info.learned_variance)

    def training_denoiser(self, prompts: Sequence[str], *, learned_variance: bool) -> Denoiser:
        return self._denoiser(self.unet, learned_variance)

    def _denoiser(self, network: nn.Module, learned_variance: bool) -> UNetDenoiser:
        return UNetDenoiser(
            network,
            prediction_type=self.prediction,
            channels=self.autoencoder.channels,
            clip=self.autoencoder.factor == 1,
            learned_variance=learned_variance,
        )

    def _patched(self, embedding: EmbeddingKind) -> RegionAwareUNet:
        return patch(self.unet, embedding=embedding)

    def save_trained(self, folder: Path, *, adapter: bool = False, region_aware: bool = False) -> None:
        autoencoder, network = self.autoencoder, self.sampled_network(adapter=adapter)
        save_base(
            folder,
            cast("UNet2DModel", network),
            betas=self.base.betas,
            prediction_type=self.prediction,
            half=False,
            latent=isinstance(autoencoder, PretrainedAutoencoder),
            region_aware=region_aware,
        )
        if isinstance(autoencoder, PretrainedAutoencoder):
            with replacing_folder(folder / "vqvae") as place:
                autoencoder.network.save_pretrained(place)
            index = {
                "_class_name": "LDMPipeline",
                "scheduler": ["diffusers", "DDPMScheduler"],
                "unet": ["diffusers", "UNet2DModel"],
                "vqvae": ["diffusers", type(autoencoder.network).__name__],
            }
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
