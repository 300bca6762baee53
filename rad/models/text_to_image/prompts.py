"""Prompts as tensors, by the text encoders of a diffusers pipeline: one function for each family of models."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rad.models.weights import weights_hash

if TYPE_CHECKING:
    from rad.models.vae import Cache

Pipeline = Any
"""A pipeline of diffusers; its annotations of `encode_prompt` are too narrow."""

KEPT_PROMPTS = 64
"""Size of the cache of single prompts; a prompt takes 5 MB with SD3 and 8 MB with Flux."""

ENCODING = threading.Lock()
"""Held while a tokenizer is in use: it changes its own settings during a call, so threads take turns."""


@dataclass(frozen=True)
class Text:
    """Encoded prompts, one row an image.

    Args:
        tokens: (B,L,D); pooled: (B,P), of the whole prompt, for models that take it.
        mask: (B,L) bool, False for padding; None: all tokens are valid.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def cat(cls, rows: Sequence[Text]) -> Text:
        """Texts of several batches as one batch; shorter texts are padded with masked zeros."""
        pooled = [row.pooled for row in rows if row.pooled is not None]
        length = max(row.tokens.shape[1] for row in rows)
        whole = all(row.mask is None and row.tokens.shape[1] == length for row in rows)
        mask = None if whole else torch.cat([pad(row.valid, (0, length - row.valid.shape[1])) for row in rows])
        tokens = torch.cat([pad(row.tokens, (0, 0, 0, length - row.tokens.shape[1])) for row in rows])
        return cls(tokens, torch.cat(pooled) if pooled else None, mask)

    @property
    def valid(self) -> Tensor:
        """(B,L) bool, False for padding."""
        return torch.ones_like(self.tokens[..., 0], dtype=torch.bool) if self.mask is None else self.mask

    def to(self, dtype: torch.dtype) -> Text:
        return Text(self.tokens.to(dtype), None if self.pooled is None else self.pooled.to(dtype), self.mask)

    def zeros(self) -> Text:
        return Text(torch.zeros_like(self.tokens), None if self.pooled is None else torch.zeros_like(self.pooled))

    def arguments(self) -> dict[str, Tensor]:
        """As keyword arguments of the network of Stable Diffusion 1, 2 and 3."""
        pooled = {} if self.pooled is None else {"pooled_projections": self.pooled}
        return {"encoder_hidden_states": self.tokens, **pooled}


class PromptEncoder:
    """The text encoders of a pipeline; `encode` is one of the functions below."""

    def __init__(self, pipeline: Pipeline, encode: Callable[[Pipeline, Sequence[str], torch.device], Text]) -> None:
        self.pipeline, self._encode = pipeline, encode
        parts = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
        self.encoders: list[nn.Module] = [part for part in parts if part is not None]
        self.place: torch.device | None = None
        """Where encoders compute whose weights are kept elsewhere; None: where their weights are."""
        self.single = functools.lru_cache(maxsize=KEPT_PROMPTS)(lambda prompt: self([prompt]))
        """Encode one prompt, (1,L,D); results are cached."""

    @property
    def device(self) -> torch.device:
        return next(self.encoders[0].parameters()).device if self.place is None else self.place

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Text:
        with ENCODING:
            return self._encode(self.pipeline, list(prompts), self.device)

    def cached(self, prompts: Sequence[str], cache: Cache) -> Text:
        """Prompts that are encoded one by one, at their first use."""
        device, rows = self.device, []
        for prompt in prompts:
            key = f"text {self.hash} {device.type} {prompt}"
            rows.append(Text(*(part.to(device) for part in cache(key, functools.partial(self._parts, prompt)))))
        return Text.cat(rows)

    def _parts(self, prompt: str) -> list[Tensor]:
        text = self([prompt])
        return [text.tokens] if text.pooled is None else [text.tokens, text.pooled]

    @functools.cached_property
    def hash(self) -> str:
        """Of the weights, tokenizers and settings that embeddings depend on; computed once."""
        weights = [f"{weights_hash(part.state_dict())} {part.dtype}" for part in self.encoders]
        names = ("tokenizer", "tokenizer_2", "tokenizer_3")
        tokenizers = [part for name in names if (part := getattr(self.pipeline, name, None)) is not None]
        vocabularies = [(sorted(part.get_vocab().items()), part.model_max_length) for part in tokenizers]
        digest = hashlib.sha256(repr((weights, vocabularies)).encode()).hexdigest()
        return f"{self._encode.__name__} {digest}"

    def forget(self) -> None:
        """Empty the cache, for example after a move to another device."""
        self.single.cache_clear()


def encode_stable_diffusion(pipeline: Pipeline, prompts: Sequence[str], device: torch.device) -> Text:
    """Stable Diffusion 1 and 2: the last hidden states of a CLIP text model, padded to its full length."""
    tokens, _ = pipeline.encode_prompt(
        prompt=prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return Text(tokens)


def encode_xl(pipeline: Pipeline, prompts: Sequence[str], device: torch.device) -> Text:
    """Stable Diffusion XL: hidden states of two CLIP models, and the second one's pooled output."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt=prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return Text(tokens, pooled)


def encode_sd3(pipeline: Pipeline, prompts: Sequence[str], device: torch.device) -> Text:
    """Stable Diffusion 3: two CLIP models and, where the folder has it, T5."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt=prompts, prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False
    )
    return Text(tokens, pooled)


def encode_flux(pipeline: Pipeline, prompts: Sequence[str], device: torch.device) -> Text:
    """Flux: the tokens of T5, and the pooled output of a CLIP model."""
    tokens, pooled, _ = pipeline.encode_prompt(prompt=prompts, device=device)
    return Text(tokens, pooled)
