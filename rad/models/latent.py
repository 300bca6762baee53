"""Latent diffusion without text: a UNet2DModel between the two halves of an autoencoder, for RAD and for zero-shot methods.

CompVis/ldm-celebahq-256 and its like (Rombach et al., arXiv 2112.10752): a folder with `vqvae` or `vae`, `unet` and `scheduler`.
Its denoiser is that of a pixel UNet without clipping, since latents have no range.
"""

from pathlib import Path

import torch

from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.base import load_base
from rad.models.pixel import PixelModel
from rad.models.text_to_image.folders import Pipeline, find_pipeline
from rad.models.vae import PretrainedAutoencoder
from rad.networks.unet import patch

AUTOENCODERS = ("vqvae", "vae")


def is_latent(pipeline: Pipeline) -> bool:
    """Whether a pipeline is one of this kind, whatever its class is called."""
    return pipeline.parts.get("unet") == "UNet2DModel" and any(part in pipeline.parts for part in AUTOENCODERS)


class LatentModel(PixelModel):
    """A UNet on the latents of `autoencoder`; everything else is as of a `PixelModel`, sizes in pixels included."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        adapter: Path | None = None,
        info: AdapterInfo | None = None,
    ) -> "LatentModel":
        """From a pipeline folder or hub id.

        Args:
            adapter: folder of a RAD adapter for its UNet; info: what the adapter says, or what the whole UNet was trained for.

        Raises:
            FileNotFoundError: something is missing; ValueError: something does not fit.
        """
        pipeline = find_pipeline(source, revision)
        if pipeline is None or not is_latent(pipeline):
            raise ValueError(f"{source} is no pipeline of an autoencoder (vqvae or vae) and a UNet2DModel")
        pipeline = pipeline.fetched()
        autoencoder = PretrainedAutoencoder.load(
            pipeline.folder / next(part for part in AUTOENCODERS if part in pipeline.parts)
        )
        base = load_base(source, revision=revision, qkv_order="legacy" if info is None else info.qkv_order)
        unet = patch(base.unet).requires_grad_(False)
        peft = None if adapter is None else load_adapter(unet, adapter, base_hash=base.hash)
        unet.to(device)  # pyright: ignore[reportArgumentType]
        return cls(unet, base, peft=peft, info=info, autoencoder=autoencoder.to(device))
