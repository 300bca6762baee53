"""Z-Image: the network's time is 1 - sigma, and its output is -v. Its texts have different lengths.

diffusers' pipeline writes guidance as v_prompt + w (v_prompt - v_negative). This is g = 1 + w here, as for the other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rad.diffusion.processes import Flow
from rad.models.adapter import Kind
from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import FlowDenoiser, FlowModel, Layout, planned_levels, table_of_levels
from rad.models.text_to_image.prompts import Pipeline, Text

if TYPE_CHECKING:
    from rad.networks.unet import EmbeddingKind


PARTS = {
    "transformer": ("ZImageTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
}
"""Allowed classes of the parts of a pipeline folder."""


class ZImageModel(FlowModel):
    """Z-Image and Z-Image-Turbo; `load_model` loads it."""

    kind: Kind = "z_image"
    guidance = 1.0
    sigmas = staticmethod(table_of_levels)
    plan = staticmethod(planned_levels)
    """That of Z-Image-Turbo. Folders of Z-Image, which needs guidance, look the same."""

    @staticmethod
    def encode(pipeline: Pipeline, prompts: Sequence[str], device: torch.device) -> Text:
        """The second last hidden states of Qwen3; diffusers gives a tensor for each prompt."""
        rows, _ = pipeline.encode_prompt(prompt=prompts, device=device, do_classifier_free_guidance=False)
        ones = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
        mask = pad_sequence(ones, batch_first=True)
        return Text(pad_sequence(rows, batch_first=True), mask=None if bool(mask.all()) else mask)

    @property
    def layout(self) -> Layout:
        config = self.transformer.config
        cells = config["all_patch_size"][0]
        return Layout(config["in_channels"], cells, default=128, largest=min(config["axes_lens"][1:]) * cells)

    def velocity(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None) -> Tensor:
        """The network takes lists: a frame (C,1,H,W) and a text (L,D) for each image."""
        assert index is None
        assert isinstance(self.base_process, Flow)
        texts = zip(text.tokens, text.valid, strict=True)
        outputs = self.sampled_network(adapter=False)(
            list(x.to(text.tokens.dtype)[:, :, None].unbind()),
            1 - times[:, 0] / self.base_process.scale,
            [tokens[valid] for tokens, valid in texts],
            return_dict=False,
        )[0]
        return -torch.stack(outputs)[:, :, 0].to(x.dtype)

    def check(self, conditions: Sequence[Condition]) -> None:
        super().check(conditions)
        self._check_negatives(conditions)

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        return self._guided(conditions, self.velocity)

    def _patched(self, embedding: EmbeddingKind) -> NoReturn:
        self._no_adapters("Z-Image")
