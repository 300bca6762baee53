"""What a model is made of, for training: the denoiser, its noise, and, frozen, the autoencoder and the text encoders.

The frozen parts are kept out of the LightningModule's tree of modules: they are no part of its checkpoints, its optimiser or the
gradients that processes exchange.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor, nn

from rad.codec import Codec
from rad.conditional import RegionAwareConditionalUNet, patch_conditional
from rad.load import describing, read_json, read_schedule, weights_hash
from rad.lora import Kind
from rad.losses import Prediction
from rad.process import Flow, Noise, Process, Uniform, shifted_sigmas
from rad.step import Estimate
from rad.transformer import RegionAwareTransformer, patch_transformer
from rad.unet import EmbeddingKind, RegionAwareUNet, patch

RegionAwareNetwork = RegionAwareUNet | RegionAwareConditionalUNet | RegionAwareTransformer
AUTOENCODERS = ("vae", "vqvae")


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
        codec: of its latents; `PIXELS` for none.
        text: None for a model without text.
        source, revision, hash: where it came from, and `rad.load.weights_hash` of the denoiser.
    """

    network: nn.Module
    kind: Kind
    own: Process
    prediction: Prediction
    codec: Codec
    text: TextEncoder | None
    source: str
    revision: str | None
    hash: str

    def to(self, device: torch.device | str) -> None:
        """Move what is frozen; the network is moved by its owner."""
        if isinstance(self.codec, Autoencoder):
            self.codec.to(device)
        if self.text is not None:
            self.text.to(device)


class Autoencoder:
    """The codec of a frozen autoencoder of diffusers: latents are (z - shift_factor) * scaling_factor of the mean z."""

    def __init__(self, module: AutoencoderKL | VQModel) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.factor: int = 2 ** (len(module.config["block_out_channels"]) - 1)
        self.channels: int = module.config.get("vq_embed_dim") or module.config["latent_channels"]
        self.scale: float = module.config["scaling_factor"]
        self.shift: float = module.config.get("shift_factor") or 0.0

    def encode(self, pixels: Tensor) -> Tensor:
        encoded = self.module.encode(pixels)
        z = encoded.latents if isinstance(self.module, VQModel) else encoded.latent_dist.mode()
        return (z - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        return self.module.decode(latents / self.scale + self.shift).sample

    def to(self, device: torch.device | str) -> None:
        self.module.to(device)


class StableText:
    """Stable Diffusion 1.x and 2.x: the last hidden states of a CLIP text model, padded to its full length."""

    def __init__(self, tokenizer: Any, encoder: nn.Module) -> None:
        self.tokenizer = tokenizer
        self.encoder: Any = encoder.eval().requires_grad_(False)

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return {"encoder_hidden_states": self.encoder(ids.to(self.encoder.device))[0]}

    def to(self, device: torch.device | str) -> None:
        self.encoder.to(device)


class Stable3Text:
    """Stable Diffusion 3: two CLIP models and, where the folder has it, T5; put together by diffusers' own pipeline."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.encoders: list[Any] = [
            encoder.eval().requires_grad_(False)
            for encoder in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
            if encoder is not None
        ]

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embedded, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, device=self.encoders[0].device, do_classifier_free_guidance=False
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


class ConditionedPrior:
    """A patched network with what a batch is told besides its noise, as a prior of the sampler.

    Args:
        conditions: arguments of the network, such as those of `TextEncoder`, for each batch.
    """

    def __init__(
        self, network: nn.Module, *, prediction: Prediction, channels: int, conditions: Mapping[str, Tensor]
    ) -> None:
        self.network, self.prediction, self.channels, self.conditions = network, prediction, channels, conditions

    def estimate(self, x: Tensor, noise: Noise) -> Estimate:
        times = noise.times.to(x.dtype)
        output = self.network(x, timestep=times, index=noise.index, **self.conditions).sample.to(x.dtype)
        a, s = noise.spread(noise.levels_a.to(x.dtype)), noise.spread(noise.levels_s.to(x.dtype))
        if self.prediction == "epsilon":
            return Estimate((x - s * output) / a)
        return Estimate(x - s * output if self.prediction == "velocity" else a * x - s * output)


# ---- loading -------------------------------------------------------------------------------------


def find_pipeline(source: str | Path, revision: str | None = None) -> tuple[Path, str | None] | None:
    """The local folder of a latent model and its hub commit; None where `source` is none, but perhaps a pixel model.

    Args:
        source: a folder with an autoencoder in vae/ or vqvae/, or a hub id, of which what is needed is fetched.
    """
    folder = Path(source).expanduser()
    if folder.exists():
        return (folder, None) if any((folder / name).is_dir() for name in AUTOENCODERS) else None
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    try:
        index = read_json(Path(hf_hub_download(str(source), "model_index.json", revision=revision)))
    except Exception:  # `rad.load.load_base` says best what is wrong with the name, or finds a model without an index
        return None
    if not any(name in index for name in AUTOENCODERS):
        return None
    # An argument that is None is a part that is not fetched.
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    try:
        fetched = Path(DiffusionPipeline.download(str(source), revision=revision, **unused))
    except Exception as error:  # the hub client raises the errors of whichever HTTP library its version uses
        raise ValueError(
            f"{source!r} could not be fetched from the Hugging Face hub ({type(error).__name__})"
        ) from error
    return fetched, fetched.name  # the hub client names a snapshot's folder by its commit


def load_parts(folder: Path, *, source: str, revision: str | None = None) -> Parts:
    """The parts of a latent model in `folder`, in diffusers' layout; see `Parts`.

    Raises:
        FileNotFoundError, ValueError: a part is missing, cannot be read, or is of a kind that cannot be trained.
    """
    codec = load_autoencoder(folder)
    transformer = (folder / "transformer").is_dir()
    place = folder / ("transformer" if transformer else "unet")
    network = _component(place, (SD3Transformer2DModel,) if transformer else (UNet2DModel, UNet2DConditionModel))
    text: TextEncoder | None = None
    kind: Kind = "latent"
    if isinstance(network, SD3Transformer2DModel):
        kind, text = "stable3", _load_stable3_text(folder, network)
        own, prediction = _read_flow(folder), "velocity"
    else:
        if isinstance(network, UNet2DConditionModel):
            kind, text = "stable", _load_stable_text(folder)
        betas, prediction = read_schedule(folder)
        own = Uniform(betas)
    channels = (network.config["in_channels"], network.config["out_channels"])
    if channels != (codec.channels, codec.channels):
        raise ValueError(
            f"{place} has {channels[0]} input and {channels[1]} output channels, the autoencoder's latents have "
            f"{codec.channels}: give a text-to-image model, not one that was made for inpainting or editing"
        )
    if prediction not in ("epsilon", "v_prediction", "velocity"):
        raise ValueError(f"{source} predicts {prediction!r}; training is of 'epsilon', 'v_prediction' and velocity")
    return Parts(network, kind, own, prediction, codec, text, source, revision, weights_hash(network.state_dict()))


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in `folder`, in its vae/ or in its vqvae/."""
    places = [folder, *(folder / name for name in AUTOENCODERS)]
    place = next((place for place in places if (place / "config.json").is_file()), None)
    if place is None:
        raise FileNotFoundError(f"no autoencoder in {folder}: there is no config.json in it, in vae/ or in vqvae/")
    # A VQModel that says no scaling_factor is older than that setting, and had none: CompVis/ldm-celebahq-256.
    old = "scaling_factor" not in read_json(place / "config.json")
    return Autoencoder(_component(place, (AutoencoderKL, VQModel), **({"scaling_factor": 1.0} if old else {})))


def _component(place: Path, kinds: tuple[Any, ...], **changes: object) -> Any:
    """The network in `place`, whose class is one of `kinds`; float32, in eval mode. `changes` of its settings."""
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place / 'config.json'} is missing: give a whole folder in diffusers' layout")
    name = read_json(place / "config.json").get("_class_name")
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        raise ValueError(f"{place} holds a {name}; allowed are {', '.join(kind.__name__ for kind in kinds)}")
    with describing(place), torch.random.fork_rng():
        return kind.from_pretrained(place, torch_dtype=torch.float32, local_files_only=True, **changes).eval()


def _read_flow(folder: Path) -> Flow:
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("_class_name") != "FlowMatchEulerDiscreteScheduler" or config.get("use_dynamic_shifting"):
        raise ValueError(f"{path} is no FlowMatchEulerDiscreteScheduler with a fixed shift, which SD3's models have")
    with describing(path):
        return Flow(shifted_sigmas(config.get("num_train_timesteps", 1000), shift=config.get("shift", 1.0)))


def _load_stable_text(folder: Path) -> StableText:
    if (folder / "text_encoder_2").is_dir():
        raise ValueError(f"{folder} has two text encoders (SDXL): training is of Stable Diffusion 1.x, 2.x and 3")
    return StableText(_tokenizer(folder / "tokenizer"), _text_model(folder / "text_encoder"))


def _load_stable3_text(folder: Path, network: SD3Transformer2DModel) -> Stable3Text:
    from diffusers import StableDiffusion3Pipeline

    parts: dict[str, Any] = {"transformer": network, "scheduler": None, "vae": None}  # of the first, the config is read
    for end in ("", "_2"):
        parts[f"tokenizer{end}"] = _tokenizer(folder / f"tokenizer{end}")
        parts[f"text_encoder{end}"] = _text_model(folder / f"text_encoder{end}")
    has_t5 = (folder / "text_encoder_3").is_dir()
    parts["tokenizer_3"] = _tokenizer(folder / "tokenizer_3") if has_t5 else None
    # T5 has five billion weights, was trained in bfloat16, and overflows in float16.
    parts["text_encoder_3"] = _text_model(folder / "text_encoder_3").to(torch.bfloat16) if has_t5 else None
    return Stable3Text(StableDiffusion3Pipeline(**parts))


TEXT_MODELS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")


def _text_model(place: Path) -> nn.Module:
    transformers = _transformers()
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place / 'config.json'} is missing: give a whole folder in diffusers' layout")
    named = str((read_json(place / "config.json").get("architectures") or [None])[0])
    if named not in TEXT_MODELS:
        raise ValueError(f"{place} holds a {named}; allowed are {', '.join(TEXT_MODELS)}")
    with describing(place), torch.random.fork_rng():
        return getattr(transformers, named).from_pretrained(place, local_files_only=True).float()


def _tokenizer(place: Path) -> Any:
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is missing: give a whole folder in diffusers' layout")
    with describing(place):
        return _transformers().AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("models that take text need the package transformers: pip install 'rad[text]'") from error
    return transformers
