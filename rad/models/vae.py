"""Autoencoders between images and latents; the identity for pixel models."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rad.models.text_to_image.folders import load_network, read_config
from rad.models.weights import weights_hash

Cache = Callable[[str, Callable[[], Sequence[Tensor]]], Sequence[Tensor]]
"""The tensors of a key on the CPU: kept from an earlier call, or computed by the function and kept."""


class Autoencoder(Protocol):
    """factor: pixels along a side of a latent cell; channels: of the latents."""

    factor: int
    channels: int

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,c,H/factor,W/factor), the mean, in the denoiser's scale. Differentiable."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B,3,H,W); pixels may leave [-1,1]. Differentiable."""
        ...


class IdentityAutoencoder:
    """The autoencoder of pixel models."""

    factor = 1
    channels = 3

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def __reduce__(self) -> str:
        """Copies and pickles of `IDENTITY` are itself, since pixel models are recognised by it."""
        return "IDENTITY"


IDENTITY = IdentityAutoencoder()


AUTOENCODERS = ("vqvae", "vae")
"""Names of the autoencoder in a pipeline folder."""


KINDS = ("AutoencoderKL", "VQModel", "AutoencoderTiny")


class PretrainedAutoencoder:
    """A pretrained network, one of `KINDS`, in float32, frozen.

    Raises:
        ValueError: images other than RGB, or a latent scale for each channel.
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
        if not (math.isfinite(self.scale) and self.scale != 0 and math.isfinite(self.shift)):
            raise ValueError(
                f"the autoencoder has scaling_factor {self.scale} and shift_factor {self.shift}; "
                "both must be finite, and the first not 0"
            )

    @classmethod
    def load(cls, folder: Path) -> "PretrainedAutoencoder":
        """From a part of a pipeline folder, on the CPU. Raises FileNotFoundError, or ValueError for files that do not fit."""
        import diffusers

        config = read_config(folder, KINDS)
        if config["_class_name"] == "VQModel":  # CompVis/ldm-celebahq-256 is older than this setting
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

    @functools.cached_property
    def hash(self) -> str:
        """Of the weights and of the settings that latents depend on."""
        settings = (type(self.network).__name__, self.scale, self.shift)
        return f"{weights_hash(self.network.state_dict())} {settings}"

    @property
    def decoder(self) -> nn.Module:
        """The decoder network, for methods that fine-tune a copy of it."""
        return self.network.decoder

    def to(self, device: torch.device | str) -> "PretrainedAutoencoder":
        self.network.to(device)
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            output = self.network.encode(pixels.float())
            z = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
            return (z - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Gradients pass through the quantisation of a VQ autoencoder unchanged."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.network.decode(latents.float() / self.scale + self.shift).sample


def tile(autoencoder: Autoencoder, source: str) -> None:
    """Work on large images in tiles, and on batches one by one, by diffusers' switches; tiles differ slightly at their seams.

    Raises ValueError for models of pixels, and for autoencoders without tiles.
    """
    network = autoencoder.network if isinstance(autoencoder, PretrainedAutoencoder) else None
    if network is None or not hasattr(network, "use_tiling"):
        reason = "works on pixels" if network is None else f"has a {type(network).__name__}, which has no tiles"
        raise ValueError(f"{source} {reason}, so vae_tiling=True has no effect: leave it out")
    network.enable_tiling()
    network.enable_slicing()
