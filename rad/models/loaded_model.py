"""A loaded model, for sampling and for training; and the prompts and images that guide its sampling."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.processes import Process
from rad.diffusion.step import Prediction
from rad.models.adapter import AdapterInfo, Kind, load_adapter
from rad.models.lora import merge, twin
from rad.models.settings.preferred import NOTHING, Preferred
from rad.models.text_to_image.folders import quietly
from rad.models.vae import IDENTITY, Autoencoder, Cache, PretrainedAutoencoder
from rad.models.weights import describing, weights_hash
from rad.modes import Evaluation
from rad.networks.compiled import CompiledNetwork, CompileMode
from rad.networks.sd3_transformer import RegionAwareTransformer
from rad.networks.unet import EmbeddingKind, RegionAwareUNet
from rad.networks.unet_condition import RegionAwareConditionalUNet

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
    from diffusers.models.controlnets.controlnet import ControlNetModel

    from rad.models.text_to_image.prompts import PromptEncoder, Text

    Network = UNet2DModel | UNet2DConditionModel | SD3Transformer2DModel | FluxTransformer2DModel

RegionAwareNetwork = RegionAwareUNet | RegionAwareConditionalUNet | RegionAwareTransformer

CHECKPOINTED_SIZE = 128
"""Network inputs of at least this side use gradient checkpointing where they are differentiated; latents: half of it."""

_SMOOTH = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Condition:
    """Guidance of one image, for text-to-image models.

    Args:
        prompt: what to show; negative: what to avoid.
        guidance: scale of classifier-free guidance (arXiv 2207.12598); up to 1: the prompt alone; None: the model's default.
        control_image, adapter_image: the whole image as the ControlNet or the T2I-Adapter expects it (edges, depth, ...).
        style_image: reference image of any size for the IP-Adapter.
        control_scale, adapter_scale, style_scale: weight of each image; 0 disables it.

    Raises ValueError for a number that is not finite.
    """

    prompt: str = ""
    negative: str = ""
    guidance: float | None = None
    control_image: Image.Image | None = None
    control_scale: float = 1.0
    adapter_image: Image.Image | None = None
    adapter_scale: float = 1.0
    style_image: Image.Image | None = None
    style_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("guidance", "control_scale", "adapter_scale", "style_scale"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; give a finite number")

    @property
    def images(self) -> tuple[Image.Image | None, ...]:
        return self.control_image, self.adapter_image, self.style_image

    def resized(self, size: tuple[int, int]) -> Condition:
        """With control and adapter image resized to (width, height)."""
        return self._changed(lambda image: image if image.size == size else image.resize(size, _SMOOTH))

    def cut(self, box: tuple[int, int, int, int]) -> Condition:
        """With control and adapter image cut to the window (top, left, bottom, right); black outside the image."""
        top, left, bottom, right = box
        return self._changed(lambda image: image.crop((left, top, right, bottom)))

    def _changed(self, change: Callable[[Image.Image], Image.Image]) -> Condition:
        control, adapter = self.control_image, self.adapter_image
        if control is None and adapter is None:
            return self
        return replace(
            self,
            control_image=None if control is None else change(control),
            adapter_image=None if adapter is None else change(adapter),
        )


PLAIN = Condition()


@dataclass(frozen=True)
class Origin:
    """Provenance of base weights: folder, file or hub id; hub commit; hash, where it is known already."""

    source: str
    revision: str | None = None
    hash: str | None = None


class LoadedModel(ABC):
    """A model in memory: the denoiser network, its noise process, and the frozen autoencoder and text encoders.

    Example:
        model = load_model("checkpoints/base-nature32")
        estimate = model.denoiser([PLAIN], adapter=False).denoise(x, model.base_process.noise(t))

    Sampling changes nothing in a model, so that threads can share it.

    Attributes:
        network: the denoiser network, without RAD's adapter; training patches and adapts it in place.
        adapted: a second network with the adapter in its weights, which shares all other weights; None without an adapter.
        autoencoder (Autoencoder): between pixels and the network's input; `IDENTITY` for pixel models.
        base_process (Process): noise process of the pretrained network.
        prediction (Prediction): what the pretrained network predicts.
        size (tuple[int, int]): (height, width) of the images in pixels, multiples of side_multiple.
        info (AdapterInfo | None): of the adapter, or of per-pixel training of all weights; None for a base model.
        text (PromptEncoder | None): None for a model without text.
    """

    kind: Kind
    """The entry `kind` of an adapter's rad_config.json."""
    whole_processes: tuple[str, ...] = ()
    """Processes for which all weights may be trained; an adapter may be trained for each."""
    largest_side: float = math.inf
    """Limit of the sides of an image, in pixels."""
    for_inpainting: bool = False
    """Whether the network was trained for inpainting: its denoisers are `InpaintingDenoiser`s, for method `inpainting_model`."""

    def __init__(
        self,
        network: Network,
        origin: Origin,
        *,
        base_process: Process,
        prediction: Prediction,
        autoencoder: Autoencoder,
        size: tuple[int, int],
        side_multiple: int,
        info: AdapterInfo | None = None,
        text: PromptEncoder | None = None,
    ) -> None:
        self.network: Network = network.eval().requires_grad_(False)
        self.source, self.revision, self._hash = origin.source, origin.revision, origin.hash
        self.base_process, self.autoencoder = base_process, autoencoder
        self.size, self.side_multiple = size, side_multiple
        self.prediction: Prediction = prediction
        self.info, self.text = info, text
        self.adapted: Network | None = None
        self._compiled: dict[bool, CompiledNetwork] = {}
        self._evaluation = Evaluation()
        self._pinned, self._kept = "", dict[str, Tensor]()
        height, width = size
        if height % side_multiple or width % side_multiple:
            raise ValueError(
                f"images for {self.source} are {width}x{height}; their sides must be multiples of {side_multiple}"
            )

    @property
    def hash(self) -> str:
        """`rad.models.weights.weights_hash` of the base network with its LoRAs, without RAD's adapter."""
        if self._hash is None:
            self._hash = weights_hash(self._kept or self.network.state_dict())
        return self._hash

    @property
    def has_base(self) -> bool:
        """Whether zero-shot methods can run."""
        return not self.for_inpainting and (self.info is None or self.adapted is not None or self.info.unconditional)

    @property
    def has_adapter(self) -> bool:
        """Whether methods for per-pixel noise can run."""
        return self.info is not None

    @property
    def preferred(self) -> Preferred:
        """The settings for sampling in rad_config.json, for windows of the model's size; none for a base model."""
        return NOTHING if self.info is None else self.info.preferred(self.size)

    # ---- sampling -------------------------------------------------------------------------------

    @abstractmethod
    def check(self, conditions: Sequence[Condition]) -> None:
        """Raise ValueError for conditions that the model does not take, or that have no effect."""

    @abstractmethod
    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> Denoiser:
        """The denoiser of a batch, with or without the adapter. Raises ValueError as `check`."""

    def sampled_network(self, *, adapter: bool) -> Network:
        """The network with or without RAD's adapter; a model that was trained as a whole has one for both."""
        plain = self._plain_network(adapter=adapter)
        return cast("Network", self._compiled[plain is self.adapted]) if self._compiled else plain

    def _plain_network(self, *, adapter: bool) -> Network:
        return self.adapted if adapter and self.adapted is not None else self.network

    def compiled(self, mode: CompileMode) -> LoadedModel:
        """A view of the model whose denoisers call compiled networks. It shares all weights; this model stays as it is."""
        view = copy.copy(self)
        view._compiled = {network is self.adapted: CompiledNetwork(network, mode) for network in self._networks()}
        return view

    def convert_to_channels_last(self) -> None:
        """Convert the convolutions of the network to the memory format channels_last, in place. Raises ValueError without any."""
        if not any(isinstance(module, nn.Conv2d) for module in self.network.modules() if module is not self.network):
            raise ValueError(f"channels_last has no effect: the network of {self.source} has no convolutions")
        for network in self._networks():
            nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)

    def add_adapter(self, folder: Path) -> None:
        """Load the RAD adapter of `folder` into `adapted`. Raises as `rad.models.adapter.load_adapter`."""
        base_hash = self.hash
        peft = load_adapter(twin(self.region_aware_network()), folder, base_hash=base_hash)
        with describing(folder):
            self.adapted = cast("Network", merge(peft))

    def checkpoint_gradients(self) -> None:
        """Recompute activations of large networks in backward passes, to save memory. Other calls stay as they are."""
        least = CHECKPOINTED_SIZE if self.autoencoder is IDENTITY else CHECKPOINTED_SIZE // 2
        if min(self.size) // self.autoencoder.factor >= least:
            for network in self._differentiated():  # eval mode draws no random numbers, whose state needs no copy
                network.enable_gradient_checkpointing(
                    functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
                )

    def in_evaluation(self) -> AbstractContextManager[None]:
        """Context with all networks in evaluation mode. Training modes return when no call is within it."""
        return self._evaluation(self._modules())

    def pin(self, reason: str, *, keep: bool = False) -> None:
        """Refuse later moves to a device; `reason` completes the error. `keep`: the present weights, for `hash`."""
        self._pinned, self._kept = reason, dict(self.network.state_dict()) if keep else {}

    def to(self, device: torch.device | str) -> None:
        """Move all networks. Raises ValueError for a model whose weights are offloaded or quantised."""
        if self._pinned:
            raise ValueError(f"{self.source} cannot be moved to {str(device)!r}, as {self._pinned}: load it again")
        for module in self._modules():
            module.to(device)
        if self.text is not None:
            self.text.forget()

    def _modules(self) -> list[nn.Module]:
        return [*self._networks(), *self.frozen_modules()]

    def _networks(self) -> list[Network]:
        return [self.network] if self.adapted is None else [self.network, self.adapted]

    def _differentiated(self) -> Sequence[Network | ControlNetModel]:
        return self._networks()

    # ---- training -------------------------------------------------------------------------------

    @property
    def takes_text(self) -> bool:
        return self.text is not None

    @property
    def learns_variance(self) -> bool:
        """Whether the variational term can train the network's variance."""
        return False

    @property
    def output_channels(self) -> tuple[int, ...]:
        """Allowed numbers of output channels in training."""
        return (self.autoencoder.channels,)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode a batch of prompts in the network's dtype, outside autocast, without warnings about truncated prompts."""
        assert self.text is not None
        with quietly(), torch.autocast(self.text.device.type, enabled=False):
            return self.text(prompts).to(self.network.dtype)

    def encode_prompts(self, prompts: Sequence[str], *, cache: Cache | None = None) -> dict[str, Tensor]:
        """The network's arguments for a batch of prompts; empty for a model without text.

        With a cache, each prompt is encoded alone, which differs from a batch by rounding.
        """
        if self.text is None:
            return {}
        if cache is None:
            return self.encode_text(prompts).arguments()
        with quietly(), torch.autocast(self.text.device.type, enabled=False):
            return self.text.cached(prompts, cache).to(self.network.dtype).arguments()

    def region_aware_network(self, *, embedding: EmbeddingKind = "factorised") -> RegionAwareNetwork:
        """Patch the network in place for per-pixel timesteps. Raises ValueError for networks without support."""
        _ = self.hash  # an adapter renames weights later
        return self._patched(embedding)

    def use_surroundings(self) -> None:
        """Make the network's output relative to the known pixels around each hole, see `rad.networks.surroundings`.

        Raises ValueError for models that are not pixel models with v-prediction.
        """
        raise ValueError(
            f"{self.source}: outputs relative to the surroundings are for pixel models with 'v_prediction'"
        )

    @abstractmethod
    def _patched(self, embedding: EmbeddingKind) -> RegionAwareNetwork: ...

    def require_sides(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise ValueError for sizes (height, width) of training images that the network does not take."""
        multiple, largest = self.side_multiple, self.largest_side
        for size in sizes:
            if max(size) > largest or any(side % multiple for side in size):
                limit = "" if largest == math.inf else f" of at most {largest:g}"
                raise ValueError(
                    f"data.buckets has {size[0]}x{size[1]} (height x width); {self.source} takes sides{limit} that are "
                    f"multiples of {multiple}: give data.buckets a list of such sizes, or change data.size"
                )

    def require_trainable(self, process: str, *, whole: bool) -> None:
        """Raise ValueError for a network that `process` cannot train; `whole`: without an adapter, all its weights."""
        if self.prediction not in ("epsilon", "v_prediction", "velocity"):
            raise ValueError(
                f"{self.source} predicts {self.prediction!r}; training is of networks that predict 'epsilon' or 'v_prediction'"
            )
        config, channels, outputs = self.network.config, self.autoencoder.channels, self.output_channels
        classes = config.get("num_class_embeds")
        if config["in_channels"] != channels or config["out_channels"] not in outputs or classes is not None:
            inputs = "RGB images" if self.autoencoder is IDENTITY else "these latents"
            raise ValueError(
                f"the network has {config['in_channels']} input and {config['out_channels']} output channels and "
                f"{classes or 'no'} classes; training is of {inputs}: {channels}, and "
                f"{' or '.join(map(str, outputs))}, without classes"
            )
        if whole and process not in self.whole_processes:
            if not self.whole_processes:
                raise ValueError(
                    f"of {self.source} an adapter is trained, not all of it: set model.lora, and process.kind 'region_aware'"
                )
            allowed = " or ".join(f"process.kind {name!r}" for name in self.whole_processes)
            choice = f"set {allowed}" if self.source == "scratch" else f"set model.lora, or {allowed}"
            raise ValueError(f"all weights of a text-to-image model are trained for one level an image alone: {choice}")

    def frozen_modules(self) -> list[nn.Module]:
        """Networks that training leaves as they are: autoencoder and text encoders."""
        autoencoder = self.autoencoder
        modules: list[nn.Module] = [autoencoder.network] if isinstance(autoencoder, PretrainedAutoencoder) else []
        return modules + ([] if self.text is None else self.text.encoders)

    @abstractmethod
    def training_denoiser(self, prompts: Sequence[str], *, learned_variance: bool) -> Denoiser:
        """The denoiser of the network in training, with one prompt for each image; models without text ignore them."""

    def save_trained(self, folder: Path, *, adapter: bool = False, region_aware: bool = False) -> None:
        """Write a diffusers folder of a model that is trained as a whole, see `whole_processes`.

        `adapter`: of the network with the adapter in its weights; `region_aware`: see `rad.models.base.save_base`.
        """
        raise NotImplementedError(f"{self.source} is not trained as a whole")


def with_adapted(model: LoadedModel, network: nn.Module) -> LoadedModel:
    """A view of the model with another network for `adapted`. It shares all else; `model` stays as it is."""
    view = copy.copy(model)
    view.adapted, view._compiled = cast("Network", network), {}
    return view


def scaled_size(cells: int | Sequence[int] | None, factor: int) -> tuple[int, int]:
    """(height, width) in pixels of a network's sample_size. Raises ValueError for None."""
    if cells is None:
        raise ValueError("the base model does not give its image size: set sample_size in its config.json")
    height, width = (cells, cells) if isinstance(cells, int) else cells
    return height * factor, width * factor
