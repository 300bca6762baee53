"""Text-to-image models that are rectified flows: Stable Diffusion 3 and 3.5, and Flux.

With x = (1 - s) x0 + s e the network predicts the velocity v = e - x0, so that x0 = x - s v (Liu et al. 2022, arXiv 2209.03003;
Esser et al. 2024, arXiv 2403.03206). It is told 1000 s, of the very s that x has. Classifier-free guidance (arXiv 2207.12598) is
linear,

    v = v_negative + g (v_prompt - v_negative),

and both branches go through the network as one batch, which counts as one call. Flux is told g instead, for it was distilled so.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import LEAST_SIGNAL, Flow
from rad.diffusion.step import Denoised, denoised
from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.guidance_inputs import Condition
from rad.models.pixel import ready
from rad.models.text_to_image.folders import (
    find_pipeline,
    load_encoder,
    load_network,
    load_tokenizer,
    read_config,
    require_transformers,
)
from rad.models.vae import PretrainedAutoencoder
from rad.models.weights import MOST_STEPS, describing, read_json, weights_hash
from rad.networks.sd3_transformer import patch_transformer

KEPT_TEXTS = 64
"""Encoded prompts that are kept: 5 MB each with SD3, 8 MB with Flux."""


@dataclass(frozen=True)
class Text:
    """Encoded prompts, a row an image: tokens (B,L,D) and one vector (B,P) for the whole; guidance (B,) for who is told it."""

    tokens: Tensor
    pooled: Tensor
    guidance: Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence["Text"]) -> "Text":
        guidance = [row.guidance for row in rows if row.guidance is not None]
        return cls(
            torch.cat([row.tokens for row in rows]),
            torch.cat([row.pooled for row in rows]),
            torch.cat(guidance) if guidance else None,
        )


class Velocity(Protocol):
    """x (B,C,H,W) in float32, times (B,K) and a text for each row -> v (B,C,H,W) in float32.

    index: (B,H,W) which of the times each cell has; None for K = 1.
    """

    def __call__(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None) -> Tensor: ...


class FlowDenoiser:
    """A network that predicts velocities.

    Args:
        text: of the images; negative: of those whose `guidance` (B,) is above 1, in their order; None where there are none.
    """

    def __init__(
        self, velocity: Velocity, text: Text, *, negative: Text | None, guidance: Sequence[float], channels: int
    ) -> None:
        self.velocity, self.channels = velocity, channels
        self.guidance = torch.tensor(guidance, device=text.tokens.device)
        self.guided = (self.guidance > 1).nonzero()[:, 0]
        assert (negative is None) == (len(self.guided) == 0), "a negative text for each guided image"
        self.count, self.text = len(guidance), text if negative is None else Text.of([text, negative])

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """x (B,C,H,W) at levels of a flow."""
        assert len(x) == self.count
        times, index = noise.timesteps.to(x.dtype), noise.index
        if len(self.guided):
            both = None if index is None else torch.cat([index, index[self.guided]])
            inputs = torch.cat([x, x[self.guided]]), torch.cat([times, times[self.guided]])
            every = self.velocity(*inputs, self.text, both)
            v, v_negative = every[: self.count], every[self.count :]
            g = self.guidance[self.guided, None, None, None].to(x.dtype)
            v = v.index_copy(0, self.guided, v_negative + g * (v[self.guided] - v_negative))
        else:
            v = self.velocity(x, times, self.text, index)
        return Denoised(denoised(x, v, noise, "velocity"))


class FlowModel:
    """Stable Diffusion 3 or 3.5 as the inpainter sees it; see `load`.

    Args:
        pipeline: diffusers' pipeline, whose text encoding is used; all of it on one device, its autoencoder in float32.
        scheduler: the content of scheduler_config.json; size: a side of the images in pixels; None: the model's own.

    Raises:
        ValueError: the parts do not fit together, or the size does not.
    """

    guidance = 7.0
    has_base = True

    def __init__(self, pipeline: Any, scheduler: dict[str, Any], *, source: str, size: int | None = None) -> None:
        self.pipeline, self.source = pipeline, source
        self.transformer: Any = pipeline.transformer
        self.autoencoder = PretrainedAutoencoder(pipeline.vae)
        if self.autoencoder.channels != self.latent_channels:
            raise ValueError(
                f"the autoencoder of {source} has {self.autoencoder.channels} channels, its network takes {self.latent_channels}"
            )
        cell = self.autoencoder.factor * self.patch
        side = self.own_size if size is None else size
        if side < cell or side % cell or side > self.largest:
            raise ValueError(
                f"size is {side}; allowed with {source} are multiples of {cell} up to {self.largest}, its own is {self.own_size}"
            )
        self.size = (side, side)
        sigmas = self.sigmas(scheduler, (side // cell) ** 2)
        # The last level is pure noise, which Flow holds below 1; no other may lie there.
        self.base_process = Flow(
            torch.cat([sigmas[:-1][sigmas[:-1] < 1 - LEAST_SIGNAL], sigmas[-1:]]),
            scale=scheduler.get("num_train_timesteps", 1000),
        )
        self._hash: str | None = None
        self.info: AdapterInfo | None = None
        self.peft: PeftModel | None = None
        self._encode_kept = lru_cache(maxsize=KEPT_TEXTS)(self._encode)

    @staticmethod
    def load(
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        t5_dtype: torch.dtype | None = None,
        adapter: Path | None = None,
        info: AdapterInfo | None = None,
    ) -> "FlowModel":
        """From a pipeline folder or hub id.

        Args:
            dtype: of the network's and the text encoders' weights; t5_dtype: of T5's; None: the same.
            adapter: folder of a RAD adapter for SD3's transformer, which is float32 then, as it was in training, and its size
                is the adapter's unless one is given; info: what the adapter says.

        Raises:
            FileNotFoundError: something is missing; ValueError: something does not fit.
        """
        pipeline = find_pipeline(source, revision)
        kinds = {"StableDiffusion3Pipeline": FlowModel, "FluxPipeline": FluxModel}
        if pipeline is None or pipeline.kind not in kinds:
            raise ValueError(f"{source} is no pipeline of {', '.join(kinds)}")
        require_transformers()
        kind, pipeline = kinds[pipeline.kind], pipeline.fetched()
        scheduler = read_json(pipeline.folder / "scheduler" / "scheduler_config.json")
        if scheduler.get("_class_name") != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(f"the scheduler of {source} is no FlowMatchEulerDiscreteScheduler: a flow has that one")
        t5_dtype = t5_dtype or dtype
        if adapter is not None and info is not None:
            size, dtype = info.size[0] if size is None else size, torch.float32
        built = kind._assemble(pipeline.folder, pipeline.parts, dtype, t5_dtype)
        model = kind(built, scheduler, source=str(source), size=size)
        if adapter is not None:
            base_hash = model.hash  # of the network as it is without the adapter
            model.peft, model.info = load_adapter(model._patched(), adapter, base_hash=base_hash), info
        built.to(device)
        return model

    # ---- what SD3 and Flux have each of their own ----------------------------------------------

    @property
    def latent_channels(self) -> int:
        return self.transformer.config["in_channels"]

    @property
    def patch(self) -> int:
        """Cells a side of a token."""
        return self.transformer.config["patch_size"]

    @property
    def own_size(self) -> int:
        return self.transformer.config["sample_size"] * self.autoencoder.factor

    @property
    def largest(self) -> int:
        return self.transformer.config["pos_embed_max_size"] * self.patch * self.autoencoder.factor

    def _patched(self) -> Any:
        """The network, which reads a time for every cell from now on."""
        return patch_transformer(self.transformer)

    @staticmethod
    def _assemble(folder: Path, parts: dict[str, str], dtype: torch.dtype, t5_dtype: torch.dtype) -> Any:
        """diffusers' pipeline of the parts in `folder`; the T5 encoder may be missing."""
        from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

        with_t5 = "text_encoder_3" in parts
        return StableDiffusion3Pipeline(
            transformer=_network(SD3Transformer2DModel, folder / "transformer", dtype),
            scheduler=None,  # pyright: ignore[reportArgumentType]
            vae=PretrainedAutoencoder.load(folder / "vae").network,
            text_encoder=load_encoder(CLIPTextModelWithProjection, folder / "text_encoder", dtype=dtype),  # pyright: ignore
            tokenizer=load_tokenizer(CLIPTokenizer, folder / "tokenizer"),
            text_encoder_2=load_encoder(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype=dtype),  # pyright: ignore
            tokenizer_2=load_tokenizer(CLIPTokenizer, folder / "tokenizer_2"),
            text_encoder_3=load_encoder(T5EncoderModel, folder / "text_encoder_3", dtype=t5_dtype) if with_t5 else None,  # pyright: ignore
            tokenizer_3=load_tokenizer(T5TokenizerFast, folder / "tokenizer_3") if with_t5 else None,  # pyright: ignore
        )

    @staticmethod
    def sigmas(scheduler: dict[str, Any], tokens: int) -> Tensor:
        """The levels that diffusers samples at, (T,) float64, increasing; for images of so many tokens."""
        steps, made = _scheduler(scheduler)
        shifted = {"mu": _mu(scheduler, tokens)} if scheduler.get("use_dynamic_shifting") else {}
        made.set_timesteps(steps, **shifted)
        return made.sigmas[:-1].flip(0).double()

    def _encode(self, prompt: str) -> Text:
        with torch.no_grad():
            tokens, _, pooled, _ = self.pipeline.encode_prompt(
                prompt=[prompt],
                prompt_2=None,
                prompt_3=None,
                device=self.pipeline.device,
                do_classifier_free_guidance=False,
            )
        return Text(tokens.to(self.transformer.dtype), pooled.to(self.transformer.dtype))

    def velocity(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None) -> Tensor:
        """See `Velocity`."""
        output = self.transformer(
            hidden_states=x.to(self.transformer.dtype),
            **({"timestep": times[:, 0]} if index is None else {"timestep": times, "index": index}),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            return_dict=False,
        )[0]
        return output.to(x.dtype)

    # ---- what the inpainter asks for -----------------------------------------------------------

    @property
    def hash(self) -> str:
        """Of the network as it lies in memory; made when it is asked for, since that takes seconds."""
        if self._hash is None:
            self._hash = weights_hash(self.transformer.state_dict())
        return self._hash

    @property
    def has_adapter(self) -> bool:
        return self.peft is not None

    def check(self, conditions: Sequence[Condition]) -> None:
        _require_no_images(conditions, self.source)
        for condition in conditions:
            if condition.negative and condition.guidance is not None and condition.guidance <= 1:
                raise ValueError(
                    f"a negative prompt has no effect with guidance {condition.guidance:g}: raise it above 1"
                )

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        scales = [self._scale(condition) for condition in conditions]
        pairs = list(zip(conditions, scales, strict=True))
        negative = [self._encode_kept(condition.negative) for condition, scale in pairs if scale > 1]
        return FlowDenoiser(
            self.velocity,
            Text.of([self._encode_kept(condition.prompt) for condition in conditions]),
            negative=Text.of(negative) if negative else None,
            guidance=scales,
            channels=self.autoencoder.channels,
        )

    def _scale(self, condition: Condition) -> float:
        return self.guidance if condition.guidance is None else condition.guidance

    def weights(self, *, adapter: bool, differentiated: bool) -> contextlib.AbstractContextManager[None]:
        return ready(self, [self.transformer], adapter=adapter, differentiated=differentiated)


class FluxModel(FlowModel):
    """Flux: tokens of 2x2 cells, and a guidance that the network is told (dev), or none at all (schnell)."""

    guidance = 3.5

    @property
    def latent_channels(self) -> int:
        return self.transformer.config["in_channels"] // 4

    @property
    def patch(self) -> int:
        return 2

    @property
    def own_size(self) -> int:
        return 128 * self.autoencoder.factor

    @property
    def largest(self) -> int:
        return 512 * self.autoencoder.factor

    def _patched(self) -> Any:
        raise ValueError(f"{self.source} is Flux, for which there are no RAD adapters")

    @staticmethod
    def _assemble(folder: Path, parts: dict[str, str], dtype: torch.dtype, t5_dtype: torch.dtype) -> Any:
        from diffusers import FluxPipeline, FluxTransformer2DModel
        from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

        return FluxPipeline(
            transformer=_network(FluxTransformer2DModel, folder / "transformer", dtype),
            scheduler=None,  # pyright: ignore[reportArgumentType]
            vae=PretrainedAutoencoder.load(folder / "vae").network,
            text_encoder=load_encoder(CLIPTextModel, folder / "text_encoder", dtype=dtype),  # pyright: ignore
            tokenizer=load_tokenizer(CLIPTokenizer, folder / "tokenizer"),
            text_encoder_2=load_encoder(T5EncoderModel, folder / "text_encoder_2", dtype=t5_dtype),  # pyright: ignore
            tokenizer_2=load_tokenizer(T5TokenizerFast, folder / "tokenizer_2"),
        )

    @staticmethod
    def sigmas(scheduler: dict[str, Any], tokens: int) -> Tensor:
        steps, made = _scheduler(scheduler)
        made.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=_mu(scheduler, tokens))
        return made.sigmas[:-1].flip(0).double()

    def check(self, conditions: Sequence[Condition]) -> None:
        _require_no_images(conditions, self.source)
        for condition in conditions:
            if condition.negative:
                raise ValueError(f"{self.source} takes no negative prompt: Flux is told its guidance, with one prompt")
            if condition.guidance is not None and not self.transformer.config["guidance_embeds"]:
                raise ValueError(f"{self.source} takes no guidance: leave it out")

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> FlowDenoiser:
        self.check(conditions)
        text = Text.of([self._encode_kept(condition.prompt) for condition in conditions])
        if self.transformer.config["guidance_embeds"]:
            scales = [self._scale(condition) for condition in conditions]
            text = Text(text.tokens, text.pooled, torch.tensor(scales, device=text.tokens.device))
        channels, without = self.autoencoder.channels, [0.0] * len(conditions)
        return FlowDenoiser(self.velocity, text, negative=None, guidance=without, channels=channels)

    def _encode(self, prompt: str) -> Text:
        with torch.no_grad():
            tokens, pooled, _ = self.pipeline.encode_prompt(prompt=[prompt], device=self.pipeline.device)
        return Text(tokens.to(self.transformer.dtype), pooled.to(self.transformer.dtype))

    def velocity(self, x: Tensor, times: Tensor, text: Text, index: Tensor | None = None) -> Tensor:
        """See `Velocity`. The tokens are those of diffusers' pipeline: 2x2 cells of all channels, row by row."""
        assert index is None
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        tokens = x.unflatten(3, (columns, 2)).unflatten(2, (rows, 2)).permute(0, 2, 4, 1, 3, 5)
        where = torch.zeros(rows, columns, 3, device=x.device, dtype=text.tokens.dtype)
        where[..., 1] += torch.arange(rows, device=x.device)[:, None]
        where[..., 2] += torch.arange(columns, device=x.device)
        output = self.transformer(
            hidden_states=tokens.flatten(3).flatten(1, 2).to(self.transformer.dtype),
            timestep=times[:, 0] / self.base_process.scale,
            guidance=text.guidance,
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            txt_ids=torch.zeros(text.tokens.shape[1], 3, device=x.device, dtype=text.tokens.dtype),
            img_ids=where.flatten(0, 1),
            return_dict=False,
        )[0]
        cells = output.unflatten(1, (rows, columns)).unflatten(3, (x.shape[1], 2, 2)).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(x.shape).to(x.dtype)


def _require_no_images(conditions: Sequence[Condition], source: str) -> None:
    for condition in conditions:
        if any((condition.control_image, condition.adapter_image, condition.style_image)):
            raise ValueError(f"{source} takes no images beside the image: leave them out, or use Stable Diffusion")


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    return load_network(kind, folder, read_config(folder, (kind.__name__,)), dtype=dtype)


def _scheduler(config: dict[str, Any]) -> tuple[int, Any]:
    """How many levels it was trained at, and diffusers' scheduler itself."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    steps = config.get("num_train_timesteps", 1000)
    if not (isinstance(steps, int) and 1 <= steps <= MOST_STEPS):
        raise ValueError(f"num_train_timesteps is {steps!r}: allowed are 1 to {MOST_STEPS}")
    with describing(Path("scheduler", "scheduler_config.json")):
        return steps, FlowMatchEulerDiscreteScheduler.from_config(config)


def _mu(config: dict[str, Any], tokens: int) -> float:
    """How far the levels of an image are shifted, linear in the number of its tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = {
        "base_image_seq_len": ("base_seq_len", 256),
        "max_image_seq_len": ("max_seq_len", 4096),
        "base_shift": ("base_shift", 0.5),
        "max_shift": ("max_shift", 1.15),
    }
    return calculate_shift(tokens, **{ours: config.get(theirs, default) for theirs, (ours, default) in names.items()})
