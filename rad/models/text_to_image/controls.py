"""Guidance by images for Stable Diffusion: ControlNet, T2I-Adapter, IP-Adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from rad.diffusion.levels import per_image
from rad.images.tensors import to_tensor
from rad.models.loaded_model import Condition

if TYPE_CHECKING:
    from diffusers import ControlNetModel, StableDiffusionPipeline, StableDiffusionXLPipeline, T2IAdapter


@dataclass(frozen=True, eq=False)
class Controls:
    """The networks that turn images of a `Condition` into inputs of the denoiser; `pipeline` holds the IP-Adapter, if any."""

    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline
    controlnet: ControlNetModel | None = None
    t2i_adapter: T2IAdapter | None = None

    @property
    def has_style(self) -> bool:
        return self.pipeline.unet.config.encoder_hid_dim_type == "ip_image_proj"

    def modules(self) -> list[nn.Module]:
        modules = (self.controlnet, self.t2i_adapter, getattr(self.pipeline, "image_encoder", None))
        return [module for module in modules if module is not None]

    def check(self, conditions: Sequence[Condition], source: str) -> None:
        """Raise ValueError for an image or a scale without its network."""
        for condition in conditions:
            for kind, network, name in (
                ("control", self.controlnet is not None, "a ControlNet"),
                ("adapter", self.t2i_adapter is not None, "a T2I-Adapter"),
                ("style", self.has_style, "an IP-Adapter"),
            ):
                if getattr(condition, f"{kind}_image") is not None and not network:
                    raise ValueError(f"an image is given for {name}, and {source} was loaded without one")
                if (scale := getattr(condition, f"{kind}_scale")) != 1 and not network:
                    raise ValueError(
                        f"{kind}_scale={scale:g} has no effect, as {source} was loaded without {name}: leave it out"
                    )

    def control(
        self, conditions: Sequence[Condition], size: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Images (B,3,H,W) in [0,1] for the ControlNet and their scales (B,); None where all are 0."""
        images = [condition.control_image for condition in conditions]
        scales = _scales(images, [condition.control_scale for condition in conditions], device)
        return (_pixels(images, size).to(device), scales) if scales.any() else None

    def features(
        self, conditions: Sequence[Condition], size: tuple[int, int], device: torch.device
    ) -> list[Tensor] | None:
        """Features of the T2I-Adapter, times their scales; None where all are 0."""
        images = [condition.adapter_image for condition in conditions]
        scales = _scales(images, [condition.adapter_scale for condition in conditions], device)
        if self.t2i_adapter is None or not scales.any():
            return None
        pixels = _pixels(images, size)
        if self.t2i_adapter.config["in_channels"] == 1:
            pixels = pixels.mean(1, keepdim=True)
        return [per_image(scales) * feature for feature in self.t2i_adapter(pixels.to(device))]

    def styles(
        self, conditions: Sequence[Condition], device: torch.device
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Tokens (negative, positive) of each IP-Adapter, each (B,1,...); and their scales (B,), None where all are 0."""
        if not self.has_style:
            return [], None
        images = [condition.style_image for condition in conditions]
        scales = _scales(images, [condition.style_scale for condition in conditions], device)
        shown = [image.convert("RGB") if image is not None else Image.new("RGB", (32, 32)) for image in images]
        embedded = [self.pipeline.prepare_ip_adapter_image_embeds([image], None, device, 1, True) for image in shown]
        tokens = []
        for parts in zip(*embedded, strict=True):
            tokens.append((torch.cat([part[:1] for part in parts]), torch.cat([part[1:] for part in parts])))
        return tokens, scales if scales.any() else None


def _scales(images: Sequence[Image.Image | None], scales: Sequence[float], device: torch.device) -> Tensor:
    values = [0.0 if image is None else float(scale) for image, scale in zip(images, scales, strict=True)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _pixels(images: Sequence[Image.Image | None], size: tuple[int, int]) -> Tensor:
    shape = (size[1], size[0])
    shown = [(image or Image.new("RGB", shape)).convert("RGB").resize(shape, _SMOOTH) for image in images]
    return torch.stack([to_tensor(image) for image in shown])


_SMOOTH = Image.Resampling.LANCZOS
