"""Pretrained models: base networks, adapters, autoencoders, text-to-image pipelines.

Example:
    base = load_base("xutongda/adm_ffhq_256x256", image_size=256)   # a folder, a hub id or a guided-diffusion .pt file
    network = inject(patch(base.unet), LoRA(rank=16))
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.models.adapter import AdapterInfo, load_adapter, save_adapter
    from rad.models.base import Base, load_base, save_base
    from rad.models.guidance_inputs import Condition, Model
    from rad.models.latent import LatentModel
    from rad.models.latent_mask import Grid, latent_hole, prefill
    from rad.models.lora import LoRA, inject, merge, merged, trainable
    from rad.models.pixel import PixelModel
    from rad.models.vae import IDENTITY, Autoencoder, IdentityAutoencoder, PretrainedAutoencoder

__all__ = [
    "IDENTITY",
    "AdapterInfo",
    "Autoencoder",
    "Base",
    "Condition",
    "Grid",
    "IdentityAutoencoder",
    "LatentModel",
    "LoRA",
    "Model",
    "PixelModel",
    "PretrainedAutoencoder",
    "inject",
    "latent_hole",
    "load_adapter",
    "load_base",
    "merge",
    "merged",
    "prefill",
    "save_adapter",
    "save_base",
    "trainable",
]

__getattr__ = lazy_names(
    __name__,
    {
        "adapter": "AdapterInfo load_adapter save_adapter",
        "base": "Base load_base save_base",
        "guidance_inputs": "Condition Model",
        "latent": "LatentModel",
        "latent_mask": "Grid latent_hole prefill",
        "lora": "LoRA inject merge merged trainable",
        "pixel": "PixelModel",
        "vae": "IDENTITY Autoencoder IdentityAutoencoder PretrainedAutoencoder",
    },
)
