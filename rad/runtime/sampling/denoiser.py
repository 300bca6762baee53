"""The denoiser: x and its noise levels to an estimate of the clean image, by a network."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rad.runtime.sampling.process import Floats, NoiseLevel
from rad.runtime.sampling.steps import Denoised, Prediction, denoised


class Network(Protocol):
    """A noise network whose pixels have one of K noise levels each."""

    def __call__(self, sample: Floats, timesteps: Floats, levels: Floats) -> Floats:
        """The output (B,C or 2C,H,W), all float32.

        Args:
            sample: (B,C,H,W); timesteps: (B,K).
            levels: (B,K,H,W), 1 where a pixel has level k, else 0.
        """
        ...


@dataclass(frozen=True)
class Denoiser:
    """The estimate of the clean image from a network's output, as `rad.diffusion.UNetDenoiser`.

    Args:
        prediction: "epsilon", "sample" or "v_prediction".
        clip: clamp x0 to [-1,1]. learned_variance: whether further output channels are a learned variance.
    """

    network: Network
    prediction: Prediction
    channels: int = 3
    clip: bool = True
    learned_variance: bool = True

    def __call__(self, x: Floats, noise: NoiseLevel, levels: Floats) -> tuple[Denoised, Floats]:
        """The estimate at x (B,C,H,W), and the network's output. `levels`: indicator maps of `noise`."""
        output = self.network(x, noise.timesteps.astype(np.float32), levels)
        x0 = denoised(x, output[:, : self.channels], noise, self.prediction)
        if self.clip:
            x0 = np.clip(x0, -1, 1)
        learned = self.learned_variance and output.shape[1] == 2 * self.channels
        return Denoised(x0, (output[:, self.channels :] + 1) / 2 if learned else None), output
