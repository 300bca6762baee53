"""Stable Diffusion (1, 2 and XL) as a model for inpainting: text, ControlNet, T2I-Adapter, IP-Adapter, LoRA.

The networks are diffusers' and transformers' own, in their own folders; each is built by its class, named here, so that no file
of a model says what is run. The denoiser predicts e (or v = a e - s x0); with classifier-free guidance
(Ho and Salimans 2022, arXiv 2207.12598)

    e = e(negative) + g (e(prompt) - e(negative)),

both in one doubled batch, which counts as one network call.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from rad.diffusion.denoiser import Semantics
from rad.diffusion.levels import NoiseLevel, per_image
from rad.diffusion.processes import Process, Uniform
from rad.diffusion.step import Denoised, Prediction, denoised
from rad.images.codecs import to_tensor
from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.base import INDEX, PIPELINES, read_schedule, scheduler_file
from rad.models.guidance_inputs import Condition
from rad.models.pixel import ready
from rad.models.text_to_image.folders import (
    find_pipeline,
    load_encoder,
    load_network,
    load_tokenizer,
    quietly,
    read_config,
    require_transformers,
)
from rad.models.vae import PretrainedAutoencoder
from rad.models.weights import describing, read_json, weights_hash
from rad.networks.attention import Focus, Layer, cross_attentions, focused, grids, recomputing, shrunk
from rad.networks.unet_condition import patch_conditional

GUIDANCE, GUIDANCE_XL = 7.5, 5.0
"""The guidance where a condition gives none."""


@dataclass(frozen=True)
class Text:
    """A prompt and its negative, encoded: (2,T,C), and (2,P) where the model takes them pooled, negative first; and (T,) 1 where
    the words of the prompt stand, 0 for where it begins and ends."""

    tokens: Tensor
    pooled: Tensor | None
    words: Tensor


@dataclass(frozen=True)
class Branch:
    """What the network is told of a batch, for the prompts or for the negative ones.

    Args:
        text: (B,T,C); pooled: (B,P) or None; styles: of each IP-Adapter (B,1,...).
    """

    text: Tensor
    pooled: Tensor | None
    styles: list[Tensor]

    def then(self, other: "Branch") -> "Branch":
        """Both in one batch."""
        pooled = None if self.pooled is None or other.pooled is None else torch.cat([self.pooled, other.pooled])
        styles = [torch.cat(pair) for pair in zip(self.styles, other.styles, strict=True)]
        return Branch(torch.cat([self.text, other.text]), pooled, styles)


@dataclass(eq=False)
class StableDiffusionDenoiser:
    """The denoiser for a batch of conditions; a `TextDenoiser`. Estimates are not clipped, as latents have no range.

    Args:
        model: the networks.
        prompt, negative: what they are told; words: (B,T) 1 where the words of the prompt stand.
        guidance: (B,).
        control: pixels (B,3,H,W) in [0,1] for the ControlNet, and their scales (B,); None: none.
        features: of the T2I-Adapter, times their scales; None: none.
        style: (B,) scales of the IP-Adapter; None: none.
        inside: where text acts, as in `rad.networks.attention.Focus`; None: everywhere.
    """

    model: "StableModel"
    prompt: Branch
    negative: Branch
    words: Tensor
    guidance: Tensor
    control: tuple[Tensor, Tensor] | None = None
    features: list[Tensor] | None = None
    style: Tensor | None = None
    inside: dict[int, Tensor] | None = None
    channels: int = 4

    def denoise(self, x: Tensor, noise: NoiseLevel) -> Denoised:
        """x (B,c,h,w); the prompt alone where no image of the batch has a guidance above 1."""
        if not bool((self.guidance > 1).any()):
            return self._x0(x, self._predict(x, noise, self.prompt, Focus(self.inside, style=self.style)), noise)
        twice = Focus(
            None if self.inside is None else {cells: _rows(where, 2) for cells, where in self.inside.items()},
            style=None if self.style is None else _rows(self.style, 2),
        )
        unwanted, wanted = self._predict(x, noise, self.negative.then(self.prompt), twice).chunk(2)
        guidance = per_image(self.guidance)
        return self._x0(x, torch.where(guidance > 1, unwanted + guidance * (wanted - unwanted), wanted), noise)

    def bounded(self, hole: Tensor) -> "StableDiffusionDenoiser":
        free = (hole.flatten(1).amax(1) == 0) | (self.words.amax(1) == 0)
        inside = {
            size[0] * size[1]: shrunk(hole, size).flatten(1) | free[:, None]
            for size in grids((hole.shape[2], hole.shape[3]), self.model.depths)
        }
        return replace(self, inside=inside)

    def semantic(self, x: Tensor, noise: NoiseLevel, *, fine: bool) -> Semantics:
        shallowest = min(layer.depth for layer in self.model.layers) + (0 if fine else 1)
        focus = Focus(self.inside, self.words, shallowest, self.style)
        predicted = self._predict(x, noise, self.prompt, focus)
        sizes = {size[0] * size[1]: size for size in grids((x.shape[2], x.shape[3]), self.model.depths)}
        shares = [kept.unflatten(1, sizes[kept.shape[1]]) for kept in focus.kept]
        return Semantics(self._x0(x, predicted, noise), shares)

    def _predict(self, x: Tensor, noise: NoiseLevel, branch: Branch, focus: Focus) -> Tensor:
        """The network's output, (n B,c,h,w) for the n B rows of `branch`."""
        copies, model = len(branch.text) // len(x), self.model
        rows = functools.partial(_rows, copies=copies)
        x, times = rows(x), rows(noise.timesteps.to(x.dtype))
        noisiest = times.amax(1)
        added: dict[str, Any] = {}
        if branch.pooled is not None:
            added = {"text_embeds": branch.pooled, "time_ids": model.time_ids.expand(len(x), -1)}
        told: dict[str, Any] = {}
        if self.control is not None:
            pixels, scale = self.control
            down, middle = model.controlnet(
                x,
                noisiest,
                encoder_hidden_states=branch.text,
                controlnet_cond=rows(pixels),
                added_cond_kwargs=added or None,
                return_dict=False,
            )
            scale = per_image(rows(scale))
            told["down_block_additional_residuals"] = [scale * one for one in down]
            told["mid_block_additional_residual"] = scale * middle
        if self.features is not None:  # a fresh list, for the UNet takes it apart
            told["down_intrablock_additional_residuals"] = [rows(one) for one in self.features]
        if branch.styles:
            added = {**added, "image_embeds": branch.styles}
        plain = focus.inside is None and focus.tokens is None and not branch.styles
        with contextlib.nullcontext() if plain else focused(model.layers, focus):
            told.update(encoder_hidden_states=branch.text, added_cond_kwargs=added or None)
            if noise.index is None:
                return model.unet(x, noisiest, **told).sample.to(x.dtype)
            return model.unet(x, times, index=rows(noise.index), **told).sample.to(x.dtype)

    def _x0(self, x: Tensor, predicted: Tensor, noise: NoiseLevel) -> Denoised:
        return Denoised(denoised(x, predicted, noise, self.model.prediction_type))


class StableModel:
    """A `rad.models.guidance_inputs.Model`; see `load`.

    Args:
        pipe: a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`, on `device`, in float32.
        betas: (T,) of its training; prediction_type: "epsilon" or "v_prediction".
        controlnet, adapter: a `ControlNetModel` and a `T2IAdapter`; None: none.
        peft: the UNet, patched, with a RAD adapter, and what `info` says of that; None: none.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        source: str,
        device: torch.device,
        betas: Tensor,
        prediction_type: Prediction = "epsilon",
        controlnet: Any = None,
        adapter: Any = None,
        info: AdapterInfo | None = None,
        peft: PeftModel | None = None,
    ) -> None:
        self.pipe, self.unet, self.controlnet, self.adapter = pipe, pipe.unet, controlnet, adapter
        self.source, self.device = source, device
        self.prediction_type: Prediction = prediction_type
        self.info, self.peft = info, peft
        self._hash = None if info is None else info.base_hash
        self.autoencoder = PretrainedAutoencoder(pipe.vae)
        if self.unet.config["in_channels"] != self.autoencoder.channels:
            raise ValueError(
                f"{source} has a network of {self.unet.config['in_channels']} channels and latents of "
                f"{self.autoencoder.channels}: "
                "it was trained for inpainting or editing; take the plain text-to-image model"
            )
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"{source} predicts {prediction_type!r}; allowed are 'epsilon' and 'v_prediction'")
        encoders = (pipe.text_encoder, getattr(pipe, "text_encoder_2", None), getattr(pipe, "image_encoder", None))
        for module in (self.unet, controlnet, adapter, *encoders):
            if module is not None:
                module.eval().requires_grad_(False)
        self.large = hasattr(pipe, "text_encoder_2")
        self.layers: list[Layer] = cross_attentions(self.unet)
        self.depths = len(self.unet.config["block_out_channels"])
        self.base_process: Process = Uniform(betas)
        side = self.unet.config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        self.size = (height * self.autoencoder.factor, width * self.autoencoder.factor) if info is None else info.size
        self.has_style = self.unet.config.encoder_hid_dim_type == "ip_image_proj"
        # original height and width, crop's top and left, wanted height and width (arXiv 2307.01952, section 2.2)
        self.time_ids = torch.tensor([[*self.size, 0, 0, *self.size]], dtype=torch.float32, device=device)
        self._text = functools.lru_cache(maxsize=64)(self._encode)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        controlnet: str | Path | None = None,
        t2i_adapter: str | Path | None = None,
        ip_adapter: str | Path | None = None,
        loras: Sequence[tuple[str | Path, float]] = (),
        adapter: Path | None = None,
        info: AdapterInfo | None = None,
    ) -> "StableModel":
        """A model from a diffusers folder or hub id "organisation/name". DreamBooth checkpoints are models like any other.

        Args:
            source: of a StableDiffusionPipeline or StableDiffusionXLPipeline, with weights as safetensors.
            controlnet, t2i_adapter: diffusers folders.
            ip_adapter: a .safetensors file, beside a folder `image_encoder`.
            loras: .safetensors files, or folders with one, and the weight of each.
            adapter: folder of a RAD adapter for its UNet; info: what the adapter says.

        Raises:
            FileNotFoundError: something is missing; ValueError: something cannot be read or does not fit.
        """
        require_transformers()
        folder = Path(source).expanduser()
        if folder.is_file():
            raise ValueError(
                f"{source} is a single file: make a folder of it with diffusers' "
                "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
            )
        pipeline = find_pipeline(source, revision)
        if pipeline is None or pipeline.kind not in PIPELINES:
            kind = "no pipeline of diffusers" if pipeline is None else pipeline.kind
            raise ValueError(f"{source} is no {' or '.join(PIPELINES)}, but {kind}")
        if adapter is not None and loras:
            raise ValueError(f"loras change the weights that {adapter} was trained on: leave them out")
        folder = pipeline.fetched().folder
        betas, predicts = read_schedule(folder)
        prediction_type: Any = predicts
        with quietly():
            pipe = _pipeline(folder, large=pipeline.kind == PIPELINES[1])
            peft = None
            if adapter is not None:
                base_hash = weights_hash(pipe.unet.state_dict())
                peft = load_adapter(patch_conditional(pipe.unet), adapter, base_hash=base_hash)
            for number, (path, _) in enumerate(loras):
                _load_lora(pipe, Path(path), f"lora{number}")
            if loras:
                pipe.set_adapters([f"lora{n}" for n in range(len(loras))], [float(weight) for _, weight in loras])
            if ip_adapter is not None:
                _load_ip_adapter(pipe, Path(ip_adapter))
            extras = [
                None if path is None else _network(kind, Path(path)).to(device)
                for kind, path in (("ControlNetModel", controlnet), ("T2IAdapter", t2i_adapter))
            ]
            pipe.to(device)
        return cls(
            pipe,
            source=str(source),
            device=torch.device(device),
            betas=betas,
            prediction_type=prediction_type,
            controlnet=extras[0],
            adapter=extras[1],
            info=None if adapter is None else info,
            peft=peft,
        )

    @property
    def hash(self) -> str:
        """Of the denoiser as it is used, with its LoRAs; found at the first call, for it reads all weights."""
        if self._hash is None:
            self._hash = weights_hash(self.unet.state_dict())
        return self._hash

    @property
    def has_base(self) -> bool:
        return True

    @property
    def has_adapter(self) -> bool:
        return self.peft is not None

    @torch.no_grad()
    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> StableDiffusionDenoiser:
        """The text of equal conditions is encoded once."""
        self.check(conditions)
        texts = [self._text(condition.prompt, condition.negative) for condition in conditions]
        styles, scales = self._styles(conditions)
        branches = []
        for row in (0, 1):
            pooled = [text.pooled[row] for text in texts if text.pooled is not None]
            tokens = torch.stack([text.tokens[row] for text in texts])
            branches.append(Branch(tokens, torch.stack(pooled) if pooled else None, [one[row] for one in styles]))
        given = [condition.guidance for condition in conditions]
        default = GUIDANCE_XL if self.large else GUIDANCE
        return StableDiffusionDenoiser(
            self,
            prompt=branches[1],
            negative=branches[0],
            words=torch.stack([text.words for text in texts]),
            guidance=self._numbers([default if one is None else one for one in given]),
            control=self._control(conditions),
            features=self._features(conditions),
            style=scales,
            channels=self.autoencoder.channels,
        )

    def weights(self, *, adapter: bool, differentiated: bool) -> contextlib.AbstractContextManager[None]:
        networks = [network for network in (self.unet, self.controlnet) if network is not None]
        again = recomputing(self.layers)
        return ready(self, networks, adapter=adapter, differentiated=differentiated, recompute=again)

    def check(self, conditions: Sequence[Condition]) -> None:
        for condition in conditions:
            for image, there, what in (
                (condition.control_image, self.controlnet is not None, "a ControlNet"),
                (condition.adapter_image, self.adapter is not None, "a T2I-Adapter"),
                (condition.style_image, self.has_style, "an IP-Adapter"),
            ):
                if image is not None and not there:
                    raise ValueError(f"an image is given for {what}, and {self.source} was loaded without one")

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return torch.tensor([float(value) for value in values], device=self.device)

    def _encode(self, prompt: str, negative: str) -> Text:
        given = {"device": self.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        if self.large:  # which has zeros for an empty negative prompt, if it was trained so
            made = self.pipe.encode_prompt(prompt=prompt, negative_prompt=negative or None, **given)
        else:
            made = self.pipe.encode_prompt(prompt=prompt, negative_prompt=negative, **given)
        pooled = torch.cat([made[3], made[2]]) if self.large else None
        tokenizer = self.pipe.tokenizer
        length = made[0].shape[1]
        numbers: list[int] = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
        words = torch.zeros(length, device=self.device)
        words[1 : numbers.index(tokenizer.eos_token_id)] = 1
        return Text(torch.cat([made[1], made[0]]), pooled, words)

    def _pixels(self, images: Sequence[Image.Image | None], channels: int) -> Tensor:
        """(B,channels,H,W) in [0,1], of the model's size; black where there is none."""
        height, width = self.size
        rows = []
        for image in images:
            image = image or Image.new("RGB", (width, height))
            one = to_tensor(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
            rows.append(one.mean(0, keepdim=True) if channels == 1 else one)
        return torch.stack(rows).to(self.device)

    def _control(self, conditions: Sequence[Condition]) -> tuple[Tensor, Tensor] | None:
        images = [condition.control_image for condition in conditions]
        scales = _scales(images, [condition.control_scale for condition in conditions])
        return (self._pixels(images, 3), self._numbers(scales)) if any(scales) else None

    def _features(self, conditions: Sequence[Condition]) -> list[Tensor] | None:
        images = [condition.adapter_image for condition in conditions]
        scales = _scales(images, [condition.adapter_scale for condition in conditions])
        if not any(scales):
            return None
        scale = per_image(self._numbers(scales))
        made = self.adapter(self._pixels(images, self.adapter.config["in_channels"]))
        return [scale * one for one in made]

    def _styles(self, conditions: Sequence[Condition]) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Of each IP-Adapter the tokens (negative, positive), each (B,1,...); and the scales (B,), None where all are 0."""
        if not self.has_style:
            return [], None
        images = [condition.style_image for condition in conditions]
        scales = _scales(images, [condition.style_scale for condition in conditions])
        shown = [image.convert("RGB") if image is not None else Image.new("RGB", (32, 32)) for image in images]
        made = [self.pipe.prepare_ip_adapter_image_embeds([one], None, self.device, 1, True) for one in shown]
        tokens = []
        for parts in zip(*made, strict=True):
            tokens.append((torch.cat([part[:1] for part in parts]), torch.cat([part[1:] for part in parts])))
        return tokens, self._numbers(scales) if any(scales) else None


def _rows(values: Tensor, copies: int) -> Tensor:
    return torch.cat([values] * copies)


def _scales(images: Sequence[Image.Image | None], scales: Sequence[float]) -> list[float]:
    return [0.0 if image is None else float(scale) for image, scale in zip(images, scales, strict=True)]


def _network(kind: str, folder: Path) -> Any:
    """The network of class `kind` of diffusers in a folder, in float32."""
    import diffusers

    return load_network(getattr(diffusers, kind), folder, read_config(folder, (kind,)))


def scheduler_of(path: Path | None) -> Any:
    """diffusers' scheduler of a scheduler_config.json, of DDPM's noise for None, for a pipeline that is written again.

    Sampling has steps of its own.
    """
    from diffusers import DDIMScheduler

    if path is None:
        return DDIMScheduler(clip_sample=False, steps_offset=1)
    with describing(path):
        return DDIMScheduler.from_config(read_json(path))


def text_pipeline(**parts: Any) -> Any:
    """diffusers' pipeline of Stable Diffusion 1 and 2 around vae, text_encoder, tokenizer, unet and scheduler."""
    from diffusers import StableDiffusionPipeline

    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **unused)


def _pipeline(folder: Path, *, large: bool) -> Any:
    import transformers
    from diffusers import StableDiffusionXLPipeline

    parts: dict[str, Any] = {
        "vae": _network("AutoencoderKL", folder / "vae"),
        "text_encoder": load_encoder(transformers.CLIPTextModel, folder / "text_encoder"),
        "tokenizer": load_tokenizer(transformers.CLIPTokenizer, folder / "tokenizer"),
        "unet": _network("UNet2DConditionModel", folder / "unet"),
        "scheduler": scheduler_of(scheduler_file(folder)),
    }
    with describing(folder):
        if not large:
            return text_pipeline(**parts)
        second: Any = load_encoder(transformers.CLIPTextModelWithProjection, folder / "text_encoder_2")
        return StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=second,
            tokenizer_2=load_tokenizer(transformers.CLIPTokenizer, folder / "tokenizer_2"),
            force_zeros_for_empty_prompt=bool(read_json(folder / INDEX).get("force_zeros_for_empty_prompt", True)),
            add_watermarker=False,
        )


def _the_file(path: Path, what: str) -> Path:
    """A .safetensors, or the only one of a folder."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} .safetensors: give the file of the {what}")
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}: give its .safetensors file")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the weights of a {what} are read as .safetensors alone")
    return path


def _load_lora(pipe: Any, path: Path, name: str) -> None:
    file = _the_file(path, "LoRA")
    with describing(file):
        pipe.load_lora_weights(
            str(file.parent),
            weight_name=file.name,
            adapter_name=name,
            use_safetensors=True,
            local_files_only=True,
        )
    if not any(name in names for names in pipe.get_list_adapters().values()):
        raise ValueError(f"{file} changes nothing of this model: it is a LoRA of another one")


def _load_ip_adapter(pipe: Any, path: Path) -> None:
    import transformers

    file = _the_file(path, "IP-Adapter")
    encoder = load_encoder(transformers.CLIPVisionModelWithProjection, file.parent / "image_encoder")
    pipe.register_modules(image_encoder=encoder)
    with describing(file):
        pipe.load_ip_adapter(
            str(file.parent),
            subfolder="",
            weight_name=file.name,
            image_encoder_folder=None,
            local_files_only=True,
        )
