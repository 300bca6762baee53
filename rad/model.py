"""A model as the inpainter sees it: its pictures' size, its noise, what its denoiser works on, and its two sets of weights."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from peft import PeftModel
from PIL import Image
from torch import Tensor, nn

from rad.load import Base
from rad.lora import AdapterInfo, merged
from rad.prior import Prior, UNetPrior
from rad.process import Process, Uniform
from rad.sampler import Task
from rad.unet import RegionAwareUNet

_SMOOTH = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Condition:
    """What a picture is to be filled with, for models that take text.

    Args:
        prompt: what to show; negative: what not to.
        guidance: how much the prompt counts (classifier-free guidance, arXiv 2207.12598): 1 and less: as it is, without the
            second call; None: the model's own.
        control_image: of the whole picture, as the model's ControlNet wants it (edges white on black, depth, ...); None: none.
        adapter_image: the same for its T2I-Adapter.
        style_image: a picture of any size that the filling is to be like, for its IP-Adapter.
        control_scale, adapter_scale, style_scale: how much each counts; 0: as if it were not there.
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

    def resized(self, size: tuple[int, int]) -> "Condition":
        """With the images of the whole picture in its (width, height)."""
        return self._changed(lambda image: image if image.size == size else image.resize(size, _SMOOTH))

    def cut(self, box: tuple[int, int, int, int]) -> "Condition":
        """With the images of the whole picture as a window (top, left, bottom, right) sees them; black outside."""
        top, left, bottom, right = box
        return self._changed(lambda image: image.crop((left, top, right, bottom)))

    def _changed(self, change: Callable[[Image.Image], Image.Image]) -> "Condition":
        control, adapter = self.control_image, self.adapter_image
        if control is None and adapter is None:
            return self
        return replace(
            self,
            control_image=None if control is None else change(control),
            adapter_image=None if adapter is None else change(adapter),
        )


PLAIN = Condition()


class Model(Protocol):
    """What an `Inpainter` needs.

    Attributes:
        source: where the pretrained weights came from.
        size: (height, width) of its pictures in pixels.
        own: the noise process of the pretrained weights.
        info: of the adapter; None for a base model.
        has_base: whether the pretrained weights are there, for zero-shot methods; has_adapter: whether RAD's are.
    """

    source: str
    size: tuple[int, int]
    own: Process
    info: AdapterInfo | None

    @property
    def hash(self) -> str:
        """`rad.load.weights_hash` of the denoiser."""
        ...

    @property
    def has_base(self) -> bool: ...
    @property
    def has_adapter(self) -> bool: ...

    def task(self, pixels: Tensor, hole: Tensor) -> Task:
        """pixels (B,3,H,W) in [-1,1] and hole (B,1,H,W), on the model's device, of its size."""
        ...

    def prior(self, conditions: Sequence[Condition], *, adapter: bool) -> Prior:
        """The denoiser for a batch with these conditions, with the adapter or as it was pretrained.

        Raises ValueError for conditions that the model does not take."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """What the denoiser works on -> (B,3,H,W) in [-1,1]."""
        ...

    def weights(self, *, adapter: bool, differentiated: bool) -> contextlib.AbstractContextManager[None]:
        """Within it `prior` may be called: with the adapter, or as pretrained; and the network may be differentiated."""
        ...


CHECKPOINTED_SIZE = 128
"""From this size of the model's images on, methods that differentiate the network recompute its activations."""


class PixelModel:
    """A UNet on pixels, for RAD (adapter on) and for the zero-shot methods (adapter off): one set of weights for both.

    Args:
        unet: the patched network; peft: the same with its adapter, or None.
        base: where the network came from, with its schedule.
        info: what the adapter was trained for; with no `peft`: all weights were.
    """

    def __init__(
        self, unet: RegionAwareUNet, base: Base, *, peft: PeftModel | None = None, info: AdapterInfo | None = None
    ) -> None:
        if unet.config["in_channels"] != 3 or unet.config["num_class_embeds"] is not None:
            raise ValueError(f"{base.source} is not a model of RGB pictures without classes, which inpainting needs")
        self.unet: nn.Module = unet.eval()
        self.peft, self.info, self.base = peft, info, base
        self.source, self.hash = base.source, base.hash
        self.own: Process = Uniform(base.betas)
        self.size = size_of(unet, info)

    @property
    def has_base(self) -> bool:
        return self.info is None or self.peft is not None

    @property
    def has_adapter(self) -> bool:
        return self.info is not None

    def task(self, pixels: Tensor, hole: Tensor) -> Task:
        return Task.of(pixels, hole)

    def prior(self, conditions: Sequence[Condition], *, adapter: bool) -> UNetPrior:
        if any(condition != PLAIN for condition in conditions):
            raise ValueError(f"{self.source} takes no text: leave the prompt out, or use a text-to-image model")
        info = self.info if adapter else None
        return UNetPrior(
            self.unet,
            prediction_type=self.base.prediction_type,  # pyright: ignore[reportArgumentType]
            learned_variance=info is None or info.learned_variance,
        )

    def decode(self, x: Tensor) -> Tensor:
        return x

    @contextlib.contextmanager
    def weights(self, *, adapter: bool, differentiated: bool) -> Iterator[None]:
        """A large network that is differentiated keeps few activations and computes the others again."""
        network: Any = self.unet
        checkpointed = differentiated and min(self.size) >= CHECKPOINTED_SIZE
        if checkpointed:
            network.enable_gradient_checkpointing()
        try:
            with adapted(self.peft, adapter=adapter):
                yield
        finally:
            if checkpointed:
                network.disable_gradient_checkpointing()


@contextlib.contextmanager
def adapted(peft: PeftModel | None, *, adapter: bool) -> Iterator[None]:
    """RAD runs with the adapter merged, a zero-shot method with it off: the network of the base model."""
    if peft is None:
        yield
        return
    try:
        with merged(peft) if adapter else peft.disable_adapter():
            yield
    finally:
        peft.requires_grad_(False)  # peft makes a layer that it switches on trainable


def size_of(unet: RegionAwareUNet, info: AdapterInfo | None) -> tuple[int, int]:
    size = unet.config["sample_size"] if info is None else info.size
    if size is None:
        raise ValueError("the base model does not say its image size: set sample_size in its config.json")
    height, width = (size, size) if isinstance(size, int) else size
    halved = len(unet.config["block_out_channels"]) - 1
    if height % 2**halved or width % 2**halved:
        raise ValueError(f"the model's images are {width}x{height}, which its network cannot halve {halved} times")
    return height, width
