"""Pixel models: a UNet with its pretrained weights and, if there is one, RAD's adapter."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from rad.diffusion.denoiser import Denoiser, EDMDenoiser, UNetDenoiser
from rad.diffusion.processes import EDM, Process, Uniform
from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.base import Base, load_base
from rad.models.guidance_inputs import PLAIN, Condition
from rad.models.lora import merged
from rad.models.vae import IDENTITY, Autoencoder
from rad.networks.unet import RegionAwareUNet, patch

CHECKPOINTED_SIZE = 128
"""From this side of what it works on, half of it for latents, whose networks are wider, a network that is differentiated keeps
few activations and computes the others again."""


class PixelModel:
    """A UNet on pixels, for RAD (adapter on) and for the zero-shot methods (adapter off): one set of weights for both.

    Args:
        unet: the patched network; peft: the same with its adapter, or None.
        base: where the network came from, with its schedule.
        info: what the adapter was trained for; with no `peft`: all weights were.
        autoencoder: of a UNet on latents.
    """

    def __init__(
        self,
        unet: RegionAwareUNet,
        base: Base,
        *,
        peft: PeftModel | None = None,
        info: AdapterInfo | None = None,
        autoencoder: Autoencoder = IDENTITY,
    ) -> None:
        if unet.config["in_channels"] != autoencoder.channels or unet.config["num_class_embeds"] is not None:
            raise ValueError(f"{base.source} is not a model of RGB images without classes, which inpainting needs")
        self.unet: nn.Module = unet.eval()
        self.peft, self.info, self.base, self.autoencoder = peft, info, base, autoencoder
        self.source, self.hash = base.source, base.hash
        self.base_process: Process = Uniform(base.betas) if base.sigmas is None else EDM(base.sigmas)
        self.size = size_of(unet, info, factor=autoencoder.factor)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        adapter: Path | None = None,
        info: AdapterInfo | None = None,
    ) -> "PixelModel":
        """From whatever `rad.models.base.load_base` takes.

        Args:
            adapter: folder of a RAD adapter for it; info: what the adapter says, or what the whole UNet was trained for.

        Raises:
            FileNotFoundError: something is missing; ValueError: something does not fit.
        """
        if adapter is None or info is None:
            base = load_base(source, revision=revision)
        else:
            base = load_base(source, image_size=info.size[0], qkv_order=info.qkv_order, revision=revision)
        unet = patch(base.unet).requires_grad_(False)
        peft = None if adapter is None else load_adapter(unet, adapter, base_hash=base.hash)
        unet.to(device)  # pyright: ignore[reportArgumentType]
        return cls(unet, base, peft=peft, info=info)

    @property
    def has_base(self) -> bool:
        return self.info is None or self.peft is not None or self.info.unconditional

    @property
    def has_adapter(self) -> bool:
        return self.info is not None

    def check(self, conditions: Sequence[Condition]) -> None:
        if any(condition != PLAIN for condition in conditions):
            raise ValueError(f"{self.source} takes no text: leave the prompt out, or use a text-to-image model")

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> Denoiser:
        self.check(conditions)
        if self.base.sigmas is not None:
            channels = self.autoencoder.channels
            return EDMDenoiser(lambda x, c: self.unet(x, c).sample, sigma_data=self.base.sigma_data, channels=channels)
        info = self.info if adapter or self.peft is None else None
        return UNetDenoiser(
            self.unet,
            prediction_type=self.base.prediction_type,  # pyright: ignore[reportArgumentType]
            channels=self.autoencoder.channels,
            clip=self.autoencoder.factor == 1,
            learned_variance=info is None or info.learned_variance,
        )

    def weights(self, *, adapter: bool, differentiated: bool) -> contextlib.AbstractContextManager[None]:
        return ready(self, [self.unet], adapter=adapter, differentiated=differentiated)


@contextlib.contextmanager
def ready(
    model: Any, networks: Sequence[Any], *, adapter: bool, differentiated: bool, recompute: Any = None
) -> Iterator[None]:
    """`Model.weights` of a model that has `peft`, None or its network with an adapter.

    Args:
        networks: that are differentiated; recompute: the function that computes their activations again, None for torch's.
    """
    side, least = (
        min(model.size) // model.autoencoder.factor,
        CHECKPOINTED_SIZE // (1 if model.autoencoder is IDENTITY else 2),
    )
    large = list(networks) if differentiated and side >= least else []
    for network in large:
        network.enable_gradient_checkpointing(*([] if recompute is None else [recompute]))
    try:
        with adapted(model.peft, adapter=adapter):
            yield
    finally:
        for network in large:
            network.disable_gradient_checkpointing()


@contextlib.contextmanager
def adapted(peft: PeftModel | None, *, adapter: bool) -> Iterator[None]:
    """RAD runs with the adapter merged, a zero-shot method with it off: the network of the base model."""
    if peft is None:
        yield
        return
    try:
        with merged(peft) if adapter else peft.disable_adapter():
            yield
    finally:
        peft.requires_grad_(False)  # peft makes a layer that it switches on trainable


def size_of(unet: RegionAwareUNet, info: AdapterInfo | None, *, factor: int = 1) -> tuple[int, int]:
    """(height, width) in pixels, of which a side of what the network works on has one in `factor`.

    Raises ValueError for a base model that does not say it, and for one that the network cannot halve.
    """
    size: Any = unet.config["sample_size"]
    if info is None and size is None:
        raise ValueError("the base model does not say its image size: set sample_size in its config.json")
    if info is not None:
        height, width = info.size
    else:
        height, width = (factor * side for side in ((size, size) if isinstance(size, int) else size))
    halved = len(unet.config["block_out_channels"]) - 1
    if height % (factor * 2**halved) or width % (factor * 2**halved):
        raise ValueError(f"the model's images are {width}x{height}, which its network cannot halve {halved} times")
    return height, width
