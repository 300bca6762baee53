"""Between images and what a denoiser works on: autoencoders of latent models, and none for pixel models."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rad.models.text_to_image.folders import load_network, read_config


class Autoencoder(Protocol):
    """`factor`: pixels a side of a cell; `channels`: of x."""

    factor: int
    channels: int

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,c,H/factor,W/factor), in the units of the model; the mean, nothing is drawn.

        Differentiable, as PSLD needs it."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The way back; pixels may leave [-1,1]. Differentiable."""
        ...


class IdentityAutoencoder:
    """The autoencoder of a model that works on pixels: none."""

    factor = 1
    channels = 3

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents


IDENTITY = IdentityAutoencoder()


AUTOENCODERS = ("vqvae", "vae")
"""Names of the autoencoder in a pipeline folder."""


KINDS = ("AutoencoderKL", "VQModel", "AutoencoderTiny")


class PretrainedAutoencoder:
    """The autoencoder of a network of one of `KINDS`.

    Args:
        network: it is frozen, and put in float32 and eval mode.

    Raises:
        ValueError: not of RGB images, or with latents scaled channel by channel.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network.float().eval().requires_grad_(False)
        config = self.network.config
        if config["in_channels"] != 3 or config["out_channels"] != 3:
            raise ValueError(f"the autoencoder takes {config['in_channels']} channels; only RGB images can be filled")
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise ValueError("the autoencoder has latents_mean or latents_std, a scale for each channel: use another")
        tiny = type(network).__name__ == "AutoencoderTiny"
        levels = config["encoder_block_out_channels" if tiny else "block_out_channels"]
        self.factor = 2 ** (len(levels) - 1)
        self.channels: int = config["latent_channels"]
        if config.get("vq_embed_dim") is not None:
            self.channels = config["vq_embed_dim"]
        self.scale = float(config["scaling_factor"])
        self.shift = float(config.get("shift_factor") or 0)

    @classmethod
    def load(cls, folder: Path) -> "PretrainedAutoencoder":
        """Of a part of a pipeline folder, on the CPU.

        A VQModel that names no scaling_factor is older than that setting, and scaled nothing: CompVis/ldm-celebahq-256.

        Raises:
            FileNotFoundError: a file is missing; ValueError: something does not fit.
        """
        import diffusers

        config = read_config(folder, KINDS)
        if config["_class_name"] == "VQModel":
            config.setdefault("scaling_factor", 1.0)
        return cls(load_network(getattr(diffusers, config["_class_name"]), folder, config))

    @classmethod
    def find(cls, folder: Path) -> "PretrainedAutoencoder":
        """The autoencoder in `folder`, or in its vae/ or vqvae/. Raises as `load`."""
        places = [folder, *(folder / name for name in AUTOENCODERS)]
        place = next((place for place in places if (place / "config.json").is_file()), None)
        if place is None:
            raise FileNotFoundError(f"no autoencoder in {folder}: there is no config.json in it, in vae/ or in vqvae/")
        return cls.load(place)

    @property
    def decoder(self) -> nn.Module:
        """What makes pixels of latents, for methods that fine-tune a copy of it (a deep copy of this object has one)."""
        return self.network.decoder

    def to(self, device: torch.device | str) -> "PretrainedAutoencoder":
        self.network.to(device)
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,c,H/factor,W/factor); nothing is drawn."""
        with torch.autocast(pixels.device.type, enabled=False):
            made = self.network.encode(pixels.float())
            z = made.latent_dist.mode() if hasattr(made, "latent_dist") else made.latents
            return (z - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """The way back, (B,3,H,W); differentiable (through the quantisation of a VQ autoencoder as if it were not there)."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.network.decode(latents.float() / self.scale + self.shift).sample
