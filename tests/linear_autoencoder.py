"""A linear autoencoder with latents of one channel, for which the results of methods can be computed by hand."""

import torch.nn.functional as F
from torch import Tensor


class LinearAutoencoder:
    """Latents are twice the mean grey of 2x2 pixels. Decoded pixels of a cell are equal, so Enc(Dec(z)) = z exactly.

    Args:
        blur: in [0,1], weight of the 3x3 mean in each pixel, in encoding and decoding, which couples neighbouring cells.
    """

    factor = 2
    channels = 1

    def __init__(self, blur: float = 0.0) -> None:
        self.blur = blur

    def encode(self, pixels: Tensor) -> Tensor:
        return 2 * F.avg_pool2d(self._blurred(pixels).mean(1, keepdim=True), 2)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = latents.repeat_interleave(2, 2).repeat_interleave(2, 3) / 2
        return self._blurred(pixels).expand(-1, 3, -1, -1)

    def _blurred(self, image: Tensor) -> Tensor:
        around = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return (1 - self.blur) * image + self.blur * around if self.blur else image
