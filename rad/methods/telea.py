"""Telea's inpainting: pixels are filled from the border inwards, by the fast marching method. Uses no network.

An Image Inpainting Technique Based on the Fast Marching Method (Telea 2004, J. Graphics Tools 9(1)), in OpenCV's implementation
`cv2.inpaint`. Needs the extra `opencv`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rad.methods.mean import Mean
from rad.resources import pip_install
from rad.sampling.method import setting
from rad.sampling.state import RunContext


@dataclass(frozen=True)
class Telea(Mean):
    """Fills pixels with a hole value above 0; without known pixels the fill is mid-grey. Latent models encode the result.

    OpenCV fills images of 8 bits, so the fill is rounded to 256 values; known pixels are not. Its Telea reads pixels of the hole
    near the border. They are the mean of the known pixels here, so the hole's content has no effect.
    """

    paper = "Telea 2004, in OpenCV"
    algorithm: ClassVar[Literal["INPAINT_TELEA", "INPAINT_NS"]] = "INPAINT_TELEA"

    radius: int = setting(3, "pixels around a pixel that its fill depends on; 3 in OpenCV's examples", low=1, high=100)

    def check(self) -> None:
        try:
            import cv2  # noqa: F401
        except ImportError:
            raise ValueError(f"method {self.name!r} needs OpenCV: {pip_install('opencv')}") from None

    def run(self, run: RunContext) -> Tensor:
        task = run.task
        images = [self.filled(*pair) for pair in zip(task.image.cpu(), task.image_hole[:, 0].cpu() > 0, strict=True)]
        return torch.lerp(task.known, task.autoencoder.encode(torch.stack(images).to(task.known)), task.hole)

    def filled(self, image: Tensor, hole: Tensor) -> Tensor:
        """The image (C,H,W) in [-1,1], with each channel filled where hole (H,W) is true."""
        import cv2

        if bool(hole.all()):
            return torch.zeros_like(image)
        image_or_mean = torch.where(hole, image[:, ~hole].mean(1)[:, None, None], image)
        levels = ((image_or_mean.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        mask, flag = hole.to(torch.uint8).numpy(), getattr(cv2, self.algorithm)
        fills = [torch.from_numpy(cv2.inpaint(channel, mask, self.radius, flag)) for channel in levels]
        return torch.where(hole, torch.stack(fills).to(image.dtype) / 127.5 - 1, image)
