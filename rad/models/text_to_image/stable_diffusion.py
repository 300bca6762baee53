"""Stable Diffusion 1, 2 and XL, with diffusers' own networks. They predict e, or v = a e - s x0."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from rad.diffusion.processes import Uniform
from rad.diffusion.step import Prediction
from rad.images.atomic import replacing_folder
from rad.models.adapter import AdapterInfo, Kind
from rad.models.base import INDEX, save_base
from rad.models.loaded_model import Condition, LoadedModel, Origin, scaled_size
from rad.models.text_to_image.controls import Controls
from rad.models.text_to_image.folders import quietly
from rad.models.text_to_image.prompts import ENCODING, PromptEncoder, Text, encode_stable_diffusion, encode_xl
from rad.models.text_to_image.stable_denoiser import Branch, StableDiffusionDenoiser
from rad.models.vae import PretrainedAutoencoder
from rad.networks.attention import patch_attention
from rad.networks.unet_condition import RegionAwareConditionalUNet, patch_conditional

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

    from rad.models.loaded_model import ControlNetModel, Network
    from rad.networks.unet import EmbeddingKind

GUIDANCE, GUIDANCE_XL = 7.5, 5.0
"""Default guidance."""


class StableDiffusionModel(LoadedModel):
    """Stable Diffusion 1, 2 or XL; `load_model` loads it.

    Args:
        pipeline: its parts in float32.
        betas: (T,) of its training; prediction: "epsilon" or "v_prediction".
        size: (height, width) in pixels; None: that of `info`, or of the network.
    """

    whole_processes = ("uniform",)

    def __init__(
        self,
        pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
        origin: Origin,
        *,
        betas: Tensor,
        prediction: Prediction = "epsilon",
        controls: Controls | None = None,
        info: AdapterInfo | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.unet: UNet2DConditionModel = pipeline.unet
        self.pipeline, self.betas = pipeline, betas
        self.controls = Controls(pipeline) if controls is None else controls
        autoencoder = PretrainedAutoencoder(pipeline.vae)
        channels, inputs = autoencoder.channels, self.unet.config["in_channels"]
        if inputs not in (channels, 2 * channels + 1):
            raise ValueError(
                f"{origin.source} has a network of {inputs} input channels and latents of {channels}; allowed are {channels}, "
                f"or {2 * channels + 1} with the mask and the masked image: take a text-to-image or an inpainting model"
            )
        self.for_inpainting = inputs != channels
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"{origin.source} predicts {prediction!r}; allowed are 'epsilon' and 'v_prediction'")
        self.large = hasattr(pipeline, "text_encoder_2")
        self.kind: Kind = "stable_xl" if self.large else "stable"
        self.shallowest = patch_attention(self.unet)
        self.depths = len(self.unet.config["block_out_channels"])
        if size is None:
            size = scaled_size(self.unet.config["sample_size"], autoencoder.factor) if info is None else info.size
        super().__init__(
            self.unet,
            origin,
            base_process=Uniform(betas),
            prediction=prediction,
            autoencoder=autoencoder,
            size=size,
            side_multiple=autoencoder.factor,
            info=info,
            text=PromptEncoder(pipeline, encode_xl if self.large else encode_stable_diffusion),
        )
        for module in self.frozen_modules():
            module.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def time_ids(self) -> Tensor:
        """(1,6) for XL: original height and width, top and left of the crop, target height and width (arXiv 2307.01952, 2.2)."""
        return torch.tensor([[*self.size, 0, 0, *self.size]], dtype=torch.float32, device=self.device)

    def check(self, conditions: Sequence[Condition]) -> None:
        self.controls.check(conditions, self.source)

    @torch.no_grad()
    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> StableDiffusionDenoiser:
        self.check(conditions)
        assert self.text is not None
        texts = [self.text.single(condition.prompt) for condition in conditions]
        negatives = [
            self._negative(condition.negative, text) for condition, text in zip(conditions, texts, strict=True)
        ]
        styles, scales = self.controls.styles(conditions, self.device)
        default = GUIDANCE_XL if self.large else GUIDANCE
        guidance = [default if condition.guidance is None else float(condition.guidance) for condition in conditions]
        return StableDiffusionDenoiser(
            self,
            cast("UNet2DConditionModel", self._plain_network(adapter=adapter)),
            compiled=self.sampled_network(adapter=adapter) if self._compiled else None,
            prompt=Branch(Text.cat(texts), [positive for _, positive in styles]),
            negative=Branch(Text.cat(negatives), [negative for negative, _ in styles]),
            words=torch.stack([self._words(condition.prompt, texts[0].tokens.shape[1]) for condition in conditions]),
            guidance=torch.tensor(guidance, dtype=torch.float32, device=self.device),
            control=self.controls.control(conditions, self.size, self.device),
            features=self.controls.features(conditions, self.size, self.device),
            style=scales,
            channels=self.autoencoder.channels,
        )

    def _negative(self, negative: str, text: Text) -> Text:
        """XL has zeros for an empty negative prompt, if it was trained so."""
        assert self.text is not None
        if self.large and not negative and self.pipeline.config["force_zeros_for_empty_prompt"]:
            return text.zeros()
        return self.text.single(negative)

    def _words(self, prompt: str, length: int) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        with ENCODING:
            numbers: list[int] = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
        words = torch.zeros(length, dtype=torch.float32, device=self.device)
        words[1 : numbers.index(tokenizer.eos_token_id)] = 1
        return words

    def training_denoiser(self, prompts: Sequence[str], *, learned_variance: bool) -> StableDiffusionDenoiser:
        text = self.encode_text(prompts)
        return StableDiffusionDenoiser(
            self,
            self.unet,
            prompt=Branch(text),
            negative=Branch(text),
            words=torch.zeros(text.tokens.shape[:2], dtype=torch.float32, device=self.device),
            guidance=torch.zeros(len(prompts), dtype=torch.float32, device=self.device),
            channels=self.autoencoder.channels,
        )

    def frozen_modules(self) -> list[nn.Module]:
        return super().frozen_modules() + self.controls.modules()

    def _differentiated(self) -> list[Network | ControlNetModel]:
        controlnet = self.controls.controlnet
        return [*self._networks(), *([] if controlnet is None else [controlnet])]

    def _patched(self, embedding: EmbeddingKind) -> RegionAwareConditionalUNet:
        return patch_conditional(self.unet, embedding=embedding)

    def save_trained(self, folder: Path, *, adapter: bool = False, region_aware: bool = False) -> None:
        """As a StableDiffusionPipeline. XL is not trained."""
        save_base(
            folder,
            cast("UNet2DConditionModel", self.sampled_network(adapter=adapter)),
            betas=self.betas,
            prediction_type=self.prediction,
            half=False,
            latent=True,
            region_aware=region_aware,
        )
        with replacing_folder(folder / "vae") as place:
            self.pipeline.vae.save_pretrained(place)
        index: dict[str, str | bool | list[str] | list[None]] = {
            "_class_name": "StableDiffusionPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", type(self.pipeline.vae).__name__],
        }
        libraries = {"text_encoder": "transformers", "tokenizer": "transformers", "scheduler": "diffusers"}
        with quietly():
            for name, library in libraries.items():
                part = getattr(self.pipeline, name)
                with replacing_folder(folder / name) as place:
                    part.save_pretrained(place)
                index[name] = [library, type(part).__name__]
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
