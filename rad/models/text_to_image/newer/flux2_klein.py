"""FLUX.2 [klein]: latents that batch-norm statistics normalise, for each channel of a token of 2x2 cells."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from rad.diffusion.processes import Flow
from rad.models.adapter import AdapterInfo, Kind
from rad.models.loaded_model import Condition, Origin
from rad.models.text_to_image.flow import (
    CELLS,
    FlowDenoiser,
    FlowModel,
    Layout,
    from_tokens,
    scheduled_sigmas,
    to_tokens,
    token_places,
)
from rad.models.text_to_image.prompts import Pipeline, Text
from rad.models.vae import PretrainedAutoencoder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    from rad.networks.unet import EmbeddingKind

TABLE_STEPS = 200
"""Steps whose shift the table of noise levels has: the upper end of the fit behind diffusers' `compute_empirical_mu`."""


PARTS = {
    "transformer": ("Flux2Transformer2DModel",),
    "vae": ("AutoencoderKLFlux2",),
    "text_encoder": ("Qwen3ForCausalLM",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
}
"""Allowed classes of the parts of a pipeline folder."""


class Flux2Autoencoder(PretrainedAutoencoder):
    """diffusers' AutoencoderKLFlux2. Its latents are kept as cells; their statistics belong to tokens of 2x2 cells."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.float().eval().requires_grad_(False)
        config = self.network.config
        if config["in_channels"] != 3 or tuple(config["patch_size"]) != (CELLS, CELLS):
            raise ValueError(
                f"the autoencoder takes {config['in_channels']} channels and has tokens of {config['patch_size']} cells; "
                "expected are RGB images and (2, 2)"
            )
        self.factor, self.channels = 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"]
        self.scale, self.shift = 1.0, 0.0

    def encode(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            z = self.network.encode(pixels.float()).latent_dist.mode()
            mean, std = self._statistics()
            return from_tokens((to_tokens(z) - mean) / std, z.shape[2] // CELLS)

    def decode(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            mean, std = self._statistics()
            z = from_tokens(to_tokens(latents.float()) * std + mean, latents.shape[2] // CELLS)
            return self.network.decode(z).sample

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (4C,) of a token."""
        norm = self.network.bn
        return norm.running_mean, torch.sqrt(norm.running_var + self.network.config["batch_norm_eps"])


class Flux2KleinModel(FlowModel):
    """FLUX.2 [klein], distilled or base; `load_model` loads it."""

    kind: Kind = "flux2_klein"
    coder = Flux2Autoencoder

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        origin: Origin,
        *,
        scheduler: FlowMatchEulerDiscreteScheduler,
        size: int | None = None,
        info: AdapterInfo | None = None,
    ) -> None:
        super().__init__(pipeline, origin, scheduler=scheduler, size=size, info=info)
        self.distilled = bool(pipeline.config["is_distilled"])
        self.guidance = 1.0 if self.distilled else 4.0

    @staticmethod
    def encode(pipeline: Pipeline, prompts: Sequence[str], device: torch.device) -> Text:
        """Hidden states of three layers of Qwen3, one after another."""
        tokens, _ = pipeline.encode_prompt(prompt=prompts, device=device)
        return Text(tokens)

    @property
    def layout(self) -> Layout:
        return Layout(self.transformer.config["in_channels"] // CELLS**2, CELLS, default=128, largest=512)

    @staticmethod
    def sigmas(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Tensor:
        shift = _shift(tokens, TABLE_STEPS)
        return scheduled_sigmas(scheduler, shift, scheduler.config["num_train_timesteps"])

    @staticmethod
    def plan(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Callable[[int], Tensor]:
        return functools.partial(_planned, scheduler, tokens)

    def velocity(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None) -> Tensor:
        """The tokens are those of diffusers' pipeline: 2x2 cells of all channels, row by row."""
        assert index is None
        assert isinstance(self.base_process, Flow)
        rows, columns, length = x.shape[2] // CELLS, x.shape[3] // CELLS, text.tokens.shape[1]
        places = token_places(rows, columns, axes=4, device=x.device)
        words = torch.zeros(length, 4, device=x.device, dtype=torch.int64)
        words[:, 3] = torch.arange(length, device=x.device)
        output = self.sampled_network(adapter=False)(
            hidden_states=to_tokens(x).to(text.tokens.dtype),
            timestep=times[:, 0] / self.base_process.scale,
            guidance=None,
            encoder_hidden_states=text.tokens,
            txt_ids=words.expand(len(x), -1, -1),
            img_ids=places.expand(len(x), -1, -1),
            return_dict=False,
        )[0]
        return from_tokens(output, rows).to(x.dtype)

    def check(self, conditions: Sequence[Condition]) -> None:
        super().check(conditions)
        for condition in conditions:
            if self.distilled and (condition.negative or condition.guidance not in (None, 1.0)):
                raise ValueError(
                    f"{self.source} is distilled: it takes no negative prompt and no guidance: leave them out"
                )
        self._check_negatives(conditions)

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        return self._guided(conditions, self.velocity)

    def _patched(self, embedding: EmbeddingKind) -> NoReturn:
        self._no_adapters("FLUX.2 [klein]")


def _shift(tokens: int, steps: int) -> float:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return compute_empirical_mu(tokens, steps)


def _planned(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int, steps: int) -> Tensor:
    return scheduled_sigmas(scheduler, _shift(tokens, steps), steps)
