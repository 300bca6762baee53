"""Qwen-Image: tokens of 2x2 latent cells, an autoencoder for videos, and guidance that keeps the norm of each token.

With v_c = v_negative + g (v_prompt - v_negative), diffusers' pipeline takes for each token

    v = v_c |v_prompt| / |v_c|,

where |.| is the norm over the channels of the token.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from rad.diffusion.processes import Flow
from rad.models.adapter import Kind
from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import (
    CELLS,
    FlowDenoiser,
    FlowModel,
    Layout,
    from_tokens,
    linear_guidance,
    planned_levels,
    table_of_levels,
    to_tokens,
)
from rad.models.text_to_image.prompts import Pipeline, Text
from rad.models.vae import PretrainedAutoencoder

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

    from rad.networks.unet import EmbeddingKind

LONGEST = 512
"""Most tokens of a prompt, the pipeline's own."""

EMPTY = " "
"""Stands for an empty negative prompt, as in the examples of the model's authors."""


PARTS = {
    "transformer": ("QwenImageTransformer2DModel",),
    "vae": ("AutoencoderKLQwenImage",),
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
}
"""Allowed classes of the parts of a pipeline folder."""


class QwenAutoencoder(PretrainedAutoencoder):
    """diffusers' AutoencoderKLQwenImage on single frames; its latents have a mean and a scale for each channel."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.float().eval().requires_grad_(False)
        config = self.network.config
        if config["input_channels"] != 3:
            raise ValueError(
                f"the autoencoder takes {config['input_channels']} channels; only RGB images can be filled"
            )
        self.factor, self.channels = 2 ** len(config["temperal_downsample"]), config["z_dim"]
        self.scale, self.shift = 1.0, 0.0
        self.mean, self.std = (torch.tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
        self._calls = threading.Lock()  # the network keeps features of a call in itself

    @functools.cached_property
    def hash(self) -> str:
        return f"{super().hash} {self.mean.tolist()} {self.std.tolist()}"

    def encode(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False), self._calls:
            z = self.network.encode(pixels.float()[:, :, None]).latent_dist.mode()[:, :, 0]
        return (z - self.mean.to(z.device)) / self.std.to(z.device)

    def decode(self, latents: Tensor) -> Tensor:
        z = latents.float() * self.std.to(latents.device) + self.mean.to(latents.device)
        with torch.autocast(latents.device.type, enabled=False), self._calls:
            return self.network.decode(z[:, :, None]).sample[:, :, 0]


class QwenImageModel(FlowModel):
    """Qwen-Image; `load_model` loads it."""

    kind: Kind = "qwen_image"
    guidance = 4.0
    coder = QwenAutoencoder
    sigmas = staticmethod(table_of_levels)
    plan = staticmethod(planned_levels)

    @staticmethod
    def encode(pipeline: Pipeline, prompts: Sequence[str], device: torch.device) -> Text:
        """The last hidden states of Qwen2.5-VL, without those of the system prompt."""
        tokens, mask = pipeline.encode_prompt(prompt=prompts, device=device, max_sequence_length=LONGEST)
        return Text(tokens, mask=None if mask is None else mask.bool())

    @property
    def layout(self) -> Layout:
        return Layout(self.transformer.config["in_channels"] // CELLS**2, CELLS, default=128, largest=1024)

    def velocity(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None) -> Tensor:
        """The tokens are those of diffusers' pipeline: 2x2 cells of all channels, row by row."""
        assert index is None
        assert isinstance(self.base_process, Flow)
        output = self.sampled_network(adapter=False)(
            hidden_states=to_tokens(x).to(text.tokens.dtype),
            timestep=times[:, 0] / self.base_process.scale,
            encoder_hidden_states=text.tokens,
            encoder_hidden_states_mask=text.mask,
            img_shapes=[[(1, x.shape[2] // CELLS, x.shape[3] // CELLS)]] * len(x),
            return_dict=False,
        )[0]
        return from_tokens(output, x.shape[2] // CELLS).to(x.dtype)

    def check(self, conditions: Sequence[Condition]) -> None:
        super().check(conditions)
        self._check_negatives(conditions)

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        return self._guided(conditions, self.velocity, combine=norm_keeping_guidance, empty=EMPTY)

    def _patched(self, embedding: EmbeddingKind) -> NoReturn:
        self._no_adapters("Qwen-Image")


def norm_keeping_guidance(prompt: Tensor, negative: Tensor, scale: Tensor) -> Tensor:
    """See `rad.models.text_to_image.flow.Combine` and the equation above."""
    guided, rows = to_tokens(linear_guidance(prompt, negative, scale)), prompt.shape[2] // CELLS
    norm = to_tokens(prompt).norm(dim=-1, keepdim=True)
    return from_tokens(guided * (norm / guided.norm(dim=-1, keepdim=True)), rows)


def with_positions(network: QwenImageTransformer2DModel) -> QwenImageTransformer2DModel:
    """The transformer with its table of positions, which is no weight: loading leaves it empty."""
    old = network.pos_embed
    if old.pos_freqs.is_meta:
        network.pos_embed = type(old)(theta=old.theta, axes_dim=old.axes_dim, scale_rope=old.scale_rope)
    return network
