"""A diffusers UNet as the noise or image estimate that other libraries expect, whatever it predicts itself."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Estimator(Protocol):
    """Estimates of a noisy image x = a x0 + s e, with a^2 = alphas_cumprod[t], s^2 = 1 - a^2, x0 in [-1,1].

    `alphas_cumprod`: (T,) float64.
    """

    alphas_cumprod: Tensor

    def x0(self, x: Tensor, t: int) -> Tensor:
        """E[x0 | x] for x (B,3,H,W) at timestep t."""
        ...


class Network:
    """An unconditional `UNet2DModel` with the scheduler's schedule and prediction type; x0 is clamped to [-1,1].

    With v = a e - s x0: x0 = a x - s v (Salimans, Ho 2022, arXiv 2202.00512, appendix D).

    Args:
        folder: a diffusers model with `unet` and `scheduler`, such as checkpoints/photos.

    Raises ValueError for a folder without a base model, and for an unknown prediction type.
    """

    def __init__(self, folder: str | Path) -> None:
        from diffusers import DDPMScheduler, UNet2DModel

        if not (Path(folder) / "unet").is_dir():
            raise ValueError(f"{folder} has no folder unet: give a base model in diffusers' format")
        self.unet = UNet2DModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32).eval()
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.prediction = scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type is {self.prediction}; allowed are epsilon, v_prediction and sample")
        self.alphas_cumprod = scheduler.alphas_cumprod.double()

    def x0(self, x: Tensor, t: int) -> Tensor:
        with torch.inference_mode():
            output = self.unet(x, t).sample[:, : x.shape[1]]
        a, s = levels(self.alphas_cumprod, t)
        if self.prediction == "epsilon":
            output = (x - s * output) / a
        elif self.prediction == "v_prediction":
            output = a * x - s * output
        return output.clamp(-1, 1)


def levels(alphas_cumprod: Tensor, t: int) -> tuple[float, float]:
    """(a, s) at timestep t."""
    return float(alphas_cumprod[t].sqrt()), float((1 - alphas_cumprod[t]).sqrt())


def epsilon(estimator: Estimator, x: Tensor, t: int) -> Tensor:
    """The noise e = (x - a x0) / s that belongs to the estimate of x0; what an "epsilon" network predicts."""
    a, s = levels(estimator.alphas_cumprod, t)
    return (x - a * estimator.x0(x, t)) / s


def sigmas(alphas_cumprod: Tensor) -> Tensor:
    """(T,) noise levels of images in [0,1] without scaling, x0 + sigma e: half of s / a."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt() / 2


def denoise(estimator: Estimator, x: Tensor, sigma: float) -> Tensor:
    """The clean image in [0,1] for x = x0 + sigma e (B,3,H,W), at the timestep of the nearest noise level."""
    t = int((sigmas(estimator.alphas_cumprod).log() - torch.tensor(sigma, dtype=torch.float64).log()).abs().argmin())
    a, _ = levels(estimator.alphas_cumprod, t)
    return (estimator.x0(a * (2 * x - 1), t) + 1) / 2
