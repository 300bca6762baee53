"""The interface of a loaded model, and the prompts and images that guide it."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.processes import Process
from rad.models.adapter import AdapterInfo
from rad.models.vae import Autoencoder

_SMOOTH = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Condition:
    """What an image is to be filled with, for models that take text.

    Args:
        prompt: what to show; negative: what not to.
        guidance: how much the prompt counts (classifier-free guidance, arXiv 2207.12598): 1 and less: as it is, without the
            second call; None: the model's own.
        control_image: of the whole image, as the model's ControlNet wants it (edges white on black, depth, ...); None: none.
        adapter_image: the same for its T2I-Adapter.
        style_image: an image of any size that the filling is to be like, for its IP-Adapter.
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
        """With the images of the whole image in its (width, height)."""
        return self._changed(lambda image: image if image.size == size else image.resize(size, _SMOOTH))

    def cut(self, box: tuple[int, int, int, int]) -> "Condition":
        """With the images of the whole image as a window (top, left, bottom, right) sees them; black outside."""
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
        size: (height, width) of its images in pixels.
        autoencoder: between pixels and what the denoiser works on; `IDENTITY` if these are the same.
        base_process: the noise process of the pretrained weights.
        info: of the adapter; None for a base model.
        has_base: whether the pretrained weights are there, for zero-shot methods; has_adapter: whether RAD's are.
    """

    @property
    def source(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def autoencoder(self) -> Autoencoder: ...
    @property
    def base_process(self) -> Process: ...
    @property
    def info(self) -> AdapterInfo | None: ...
    @property
    def hash(self) -> str:
        """`rad.models.weights.weights_hash` of the denoiser."""
        ...

    @property
    def has_base(self) -> bool: ...
    @property
    def has_adapter(self) -> bool: ...

    def check(self, conditions: Sequence[Condition]) -> None:
        """Raises ValueError for conditions that the model does not take, or that would change nothing."""
        ...

    def denoiser(self, conditions: Sequence[Condition], *, adapter: bool) -> Denoiser:
        """The denoiser for a batch with these conditions, with the adapter or as it was pretrained.

        Raises ValueError as `check`."""
        ...

    def weights(self, *, adapter: bool, differentiated: bool) -> contextlib.AbstractContextManager[None]:
        """Within it `denoiser` may be called: with the adapter, or as pretrained; and the network may be differentiated."""
        ...
