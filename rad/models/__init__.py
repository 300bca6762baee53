"""Pretrained models: base networks, adapters, autoencoders, text-to-image pipelines.

Example:
    model = load_model("xutongda/adm_ffhq_256x256")   # a folder, a hub id or a guided-diffusion .pt file
    network = inject(model.region_aware_network(), LoRA(rank=16))
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.models.adapter import AdapterInfo, load_adapter, save_adapter
    from rad.models.base import Base, load_base, save_base
    from rad.models.latent_mask import Grid, latent_hole, prefill
    from rad.models.load import load_model, new_model
    from rad.models.loaded_model import Condition, LoadedModel
    from rad.models.lora import LoRA, inject, merge, trainable
    from rad.models.unet_model import UNetModel
    from rad.models.vae import IDENTITY, Autoencoder, IdentityAutoencoder, PretrainedAutoencoder

__all__ = [
    "IDENTITY",
    "AdapterInfo",
    "Autoencoder",
    "Base",
    "Condition",
    "Grid",
    "IdentityAutoencoder",
    "LoRA",
    "LoadedModel",
    "PretrainedAutoencoder",
    "UNetModel",
    "inject",
    "latent_hole",
    "load_adapter",
    "load_base",
    "load_model",
    "merge",
    "new_model",
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
        "latent_mask": "Grid latent_hole prefill",
        "load": "load_model new_model",
        "loaded_model": "Condition LoadedModel",
        "lora": "LoRA inject merge trainable",
        "unet_model": "UNetModel",
        "vae": "IDENTITY Autoencoder IdentityAutoencoder PretrainedAutoencoder",
    },
)
