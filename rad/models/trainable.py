"""What a model is made of, for training: the denoiser, its noise, and, frozen, the autoencoder and the text encoders.

The frozen parts are kept out of the LightningModule's tree of modules: they are no part of its checkpoints, its optimiser or the
gradients that processes exchange.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import Process
from rad.diffusion.step import Denoised, Prediction, denoised
from rad.models.adapter import Kind
from rad.models.latent import AUTOENCODERS, LatentModel, is_latent
from rad.models.text_to_image.folders import find_pipeline, load_encoder, load_tokenizer, quietly, require_transformers
from rad.models.vae import Autoencoder, PretrainedAutoencoder
from rad.networks.sd3_transformer import RegionAwareTransformer, patch_transformer
from rad.networks.unet import EmbeddingKind, RegionAwareUNet, patch
from rad.networks.unet_condition import RegionAwareConditionalUNet, patch_conditional

RegionAwareNetwork = RegionAwareUNet | RegionAwareConditionalUNet | RegionAwareTransformer


class TextEncoder(Protocol):
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The arguments of the denoiser that say these prompts to a batch."""
        ...

    def to(self, device: torch.device | str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """A pretrained model, taken apart.

    Args:
        network: the denoiser, float32, on the CPU; `region_aware_network` patches it.
        kind: "pixel": a UNet on pixels; "latent": one on latents, without text (LDM); "stable": Stable Diffusion 1.x or 2.x;
            "stable3": Stable Diffusion 3 and 3.5.
        own: the noise process that it was trained on; prediction: what it predicts.
        autoencoder: of its latents; `IDENTITY` for none.
        text: None for a model without text.
        source, revision, hash: where it came from, and `rad.models.weights.weights_hash` of the denoiser.
    """

    network: nn.Module
    kind: Kind
    base_process: Process
    prediction: Prediction
    autoencoder: Autoencoder
    text: TextEncoder | None
    source: str
    revision: str | None
    hash: str

    def to(self, device: torch.device | str) -> None:
        """Move what is frozen; the network is moved by its owner."""
        if isinstance(self.autoencoder, PretrainedAutoencoder):
            self.autoencoder.to(device)
        if self.text is not None:
            self.text.to(device)


class StableText:
    """Stable Diffusion 1.x and 2.x: the last hidden states of a CLIP text model, padded to its full length."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.encoders = pipeline, [pipeline.text_encoder]

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        device = self.encoders[0].device
        with quietly(), torch.autocast(device.type, enabled=False):  # of texts that are cut it would warn at every step
            tokens, _ = self.pipeline.encode_prompt(
                list(prompts), device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return {"encoder_hidden_states": tokens}

    def to(self, device: torch.device | str) -> None:
        self.encoders[0].to(device)


class Stable3Text:
    """Stable Diffusion 3: two CLIP models and, where the folder has it, T5; put together by diffusers' own pipeline."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        self.encoders: list[Any] = [encoder for encoder in encoders if encoder is not None]

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        device = self.encoders[0].device
        with quietly(), torch.autocast(device.type, enabled=False):
            embedded, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, None, device=device, do_classifier_free_guidance=False
            )
        return {"encoder_hidden_states": embedded.float(), "pooled_projections": pooled.float()}

    def to(self, device: torch.device | str) -> None:
        for encoder in self.encoders:
            encoder.to(device)


def region_aware_network(network: nn.Module, *, embedding: EmbeddingKind) -> RegionAwareNetwork:
    """Patch `network` itself, of whichever kind. Raises ValueError for one that cannot be."""
    if isinstance(network, UNet2DConditionModel):
        return patch_conditional(network, embedding=embedding)
    if isinstance(network, SD3Transformer2DModel):
        return patch_transformer(network, embedding=embedding)
    assert isinstance(network, UNet2DModel)
    return patch(network, embedding=embedding)


class ConditionedDenoiser:
    """A patched network with what a batch is told besides its noise, as a denoiser of the sampler.

    Args:
        conditions: arguments of the network, such as those of `TextEncoder`, for each batch.
    """

    def __init__(
        self, network: nn.Module, *, prediction: Prediction, channels: int, conditions: Mapping[str, Tensor]
    ) -> None:
        self.network, self.channels, self.conditions = network, channels, conditions
        self.prediction: Prediction = prediction

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        times = noise.timesteps.to(x.dtype)
        output = self.network(x, timestep=times, index=noise.index, **self.conditions).sample.to(x.dtype)
        return Denoised(denoised(x, output, noise, self.prediction))


def load_parts(source: str, *, image_size: int, revision: str | None = None) -> Parts | None:
    """The parts of a latent model, as sampling has them; None where `source` is none, but perhaps a model of pixels.

    Args:
        source: a pipeline folder or hub id; image_size: of the training images in pixels, on which SD3's noise may depend.

    Raises:
        FileNotFoundError, ValueError: a part is missing, cannot be read, or is of a kind that cannot be trained.
    """
    pipeline = find_pipeline(source, revision)
    if pipeline is None:
        return None
    if pipeline.kind == "StableDiffusionPipeline":
        from rad.models.text_to_image.stable_diffusion import StableModel

        stable = StableModel.load(source, revision=revision)
        network, text, prediction = stable.unet, StableText(stable.pipe), stable.prediction_type
        return Parts(
            network,
            "stable",
            stable.base_process,
            prediction,
            stable.autoencoder,
            text,
            source,
            pipeline.revision,
            stable.hash,
        )
    if pipeline.kind == "StableDiffusion3Pipeline":
        from rad.models.text_to_image.flow import FlowModel

        # T5 has five billion weights, was trained in bfloat16, and overflows in float16.
        flow = FlowModel.load(source, revision=revision, size=image_size, t5_dtype=torch.bfloat16)
        network, text = flow.transformer, Stable3Text(flow.pipeline)
        return Parts(
            network,
            "stable3",
            flow.base_process,
            "velocity",
            flow.autoencoder,
            text,
            source,
            pipeline.revision,
            flow.hash,
        )
    if pipeline.kind in ("StableDiffusionXLPipeline", "FluxPipeline"):
        raise ValueError(f"{source} is a {pipeline.kind}: training is of latent diffusion, Stable Diffusion 1, 2 and 3")
    if not is_latent(pipeline):
        return None
    latent = LatentModel.load(source, revision=revision)
    prediction: Any = latent.base.prediction_type
    return Parts(
        latent.unet,
        "latent",
        latent.base_process,
        prediction,
        latent.autoencoder,
        None,
        source,
        pipeline.revision,
        latent.hash,
    )


def load_autoencoder(folder: Path) -> PretrainedAutoencoder:
    """The autoencoder in `folder`, in its vae/ or in its vqvae/."""
    places = [folder, *(folder / name for name in AUTOENCODERS)]
    place = next((place for place in places if (place / "config.json").is_file()), None)
    if place is None:
        raise FileNotFoundError(f"no autoencoder in {folder}: there is no config.json in it, in vae/ or in vqvae/")
    return PretrainedAutoencoder.load(place)


def load_text(folder: Path, network: nn.Module, autoencoder: Autoencoder) -> StableText:
    """The CLIP text model and tokenizer in `folder`, in a pipeline with a new denoiser and its autoencoder.

    Raises:
        FileNotFoundError: a part is missing; ValueError: it cannot be read, or its texts do not fit the denoiser.
    """
    require_transformers()
    from transformers import CLIPTextModel, CLIPTokenizer

    from rad.models.text_to_image.stable_diffusion import scheduler_of, text_pipeline

    encoder = load_encoder(CLIPTextModel, folder / "text_encoder")
    tokenizer = load_tokenizer(CLIPTokenizer, folder / "tokenizer")
    told: Any = encoder.config
    taken: Any = network.config
    if taken["cross_attention_dim"] != told.hidden_size:
        raise ValueError(
            f"the texts of {folder} have {told.hidden_size} channels, and model.unet takes {taken['cross_attention_dim']}: "
            f"set its cross_attention_dim to {told.hidden_size}"
        )
    if tokenizer.model_max_length > told.max_position_embeddings:
        raise ValueError(
            f"the tokenizer in {folder} makes {tokenizer.model_max_length} tokens, and the text model reads "
            f"{told.max_position_embeddings}: set model_max_length in tokenizer_config.json to that"
        )
    if not isinstance(autoencoder, PretrainedAutoencoder) or not isinstance(autoencoder.network, AutoencoderKL):
        raise ValueError(
            "Stable Diffusion, which a model that is told texts is written as, has an AutoencoderKL: train on one"
        )
    return StableText(
        text_pipeline(
            vae=autoencoder.network,
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=network,
            scheduler=scheduler_of(None),
        )
    )
