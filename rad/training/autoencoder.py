"""The LightningModule that trains an autoencoder for latent models from scratch: diffusers' AutoencoderKL on photographs.

    loss = mean |x - D(z)| + perceptual_weight d(x, D(z)) + kl_weight KL(N(mean, std^2) || N(0,1)) / (3 H W),   z = mean + std e

as in Rombach et al. 2022 (arXiv 2112.10752, section 3.1 and appendix G), without their adversarial loss; fine texture is
therefore smoother. The KL sum over the latents is divided by the number of image values, which keeps their relative weight.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import AutoencoderKL
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from rad.modes import float32_modes
from rad.rng import generator
from rad.training.module import Batch, TrainingModule
from rad.training.schedules import Schedule

if TYPE_CHECKING:
    from rad.evaluation.features import FeatureNet

MEASURED = 256
"""Number of training images from which the scale of the latents is measured."""

SCHEDULE = Schedule()


@dataclass(frozen=True)
class Reconstruction:
    """Each (B,): mean |x - D(z)|; perceptual distance; KL / (3 H W); their weighted sum; and D(z) (B,3,H,W)."""

    l1: Tensor
    distance: Tensor
    kl: Tensor
    total: Tensor
    image: Tensor


class AutoencoderTraining(TrainingModule):
    """Trains an AutoencoderKL. `Checkpoint` writes diffusers folders for `model.scratch.autoencoder` of `Diffusion`.

    Args:
        autoencoder: fields of diffusers' AutoencoderKL; its scaling_factor is measured, see `scaling_factor`.
        kl_weight: weight of the KL term, which only limits the size of the latents; larger values blur.
        perceptual: feature network as for `rad.evaluation.features.feature_net`, which evaluation should then avoid; null: none.
        perceptual_weight: weight of its distance.
        image_size: side of the training images in pixels.
        optimizer, schedule, lr_scheduler: as for `rad.training.diffusion.Diffusion`.
        seed: seed of the weights and of the draws from the posterior.
    """

    autoencoder: AutoencoderKL  # created in `configure_model`

    def __init__(
        self,
        autoencoder: dict[str, Any],
        kl_weight: float = 1e-6,
        perceptual: str | None = None,
        perceptual_weight: float = 1.0,
        image_size: int = 64,
        optimizer: OptimizerCallable = lambda weights: torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0),
        schedule: Schedule = SCHEDULE,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, schedule, lr_scheduler, seed=seed, means=("loss", "l1", "distance", "kl", "psnr"))
        self.save_hyperparameters(logger=False, ignore=self.not_saved)
        if not (0 <= kl_weight < math.inf and 0 <= perceptual_weight < math.inf):
            raise ValueError(f"kl_weight is {kl_weight} and perceptual_weight {perceptual_weight}; both must be >= 0")
        self.fields = {**autoencoder, "sample_size": image_size}
        _require_images(self.fields, image_size)
        self.kl_weight, self.perceptual, self.perceptual_weight = kl_weight, perceptual, perceptual_weight
        self.image_size = image_size
        self._features: FeatureNet | None = None
        self._features_device = torch.device("meta")

    def configure_model(self) -> None:
        """Create the autoencoder once, and load the feature network."""
        self._load_features()
        if not hasattr(self, "autoencoder"):
            with float32_modes(), torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self.autoencoder = AutoencoderKL(**self.fields).train()

    def on_fit_start(self) -> None:
        self._load_features()

    def on_validation_start(self) -> None:
        self._load_features()

    def _load_features(self) -> None:
        from rad.evaluation.features import feature_net

        if self.perceptual is not None and self._features_device != self.device:
            with float32_modes(), torch.random.fork_rng():
                self._features, self._features_device = feature_net(self.perceptual, device=self.device), self.device

    def identity(self) -> dict[str, str]:
        return {"trains": "autoencoder"}

    def losses(self, batch: Batch, *, sampled: bool) -> Reconstruction:
        """Losses of a batch; `sampled`: z is a draw of the posterior, keyed by position; otherwise its mean."""
        x: Tensor = batch["image"]
        posterior = self.autoencoder.encode(x)[0]
        z = posterior.mean
        if sampled:
            rngs = [generator(self.seed, "posterior", row, device=z.device) for row in batch["position"].tolist()]
            draws = [
                torch.randn(z.shape[1:], generator=rng, device=z.device, dtype=torch.float32).to(z) for rng in rngs
            ]
            z = z + posterior.std * torch.stack(draws)
        image = self.autoencoder.decode(cast(torch.FloatTensor, z))[0].float()
        l1 = (image - x).abs().mean((1, 2, 3))
        kl = posterior.kl() / x[0].numel()
        distance = torch.zeros_like(l1)
        if self._features is not None:
            distance = self._features.compared(image / 2 + 0.5, x / 2 + 0.5)
        return Reconstruction(l1, distance, kl, l1 + self.perceptual_weight * distance + self.kl_weight * kl, image)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch, sampled=True)
        curves = {"loss": losses.total, "l1": losses.l1, "distance": losses.distance, "kl": losses.kl}
        for name, values in curves.items():
            self.curves.add(f"train/{name}", values)
        return losses.total.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses = self.losses(batch, sampled=False)
        squared = (losses.image.clamp(-1, 1) - batch["image"]).square().mean((1, 2, 3)) / 4
        psnr = -10 * squared.clamp(min=1e-10).log10()
        terms = {name: getattr(losses, name) for name in ("l1", "distance", "kl")}
        self.log_means({"loss": losses.total, **terms, "psnr": psnr})

    @torch.no_grad()
    def scaling_factor(self, images: Tensor) -> float:
        """1 / standard deviation of the latents (means of the posteriors) of `images` (B,3,H,W) in [-1,1]."""
        means = [self.autoencoder.encode(part.to(self.device))[0].mean for part in images.split(32)]
        return 1 / max(1e-6, float(torch.cat(means).double().std()))


def _require_images(fields: dict[str, Any], side: int) -> None:
    """Raise ValueError unless `fields` describe an AutoencoderKL of RGB images with this side; no memory is allocated."""
    try:
        with torch.device("meta"):
            empty = AutoencoderKL(**fields)
            factor = 2 ** (len(empty.config["block_out_channels"]) - 1)
            output = (1, 3, side, side) if side % factor else empty(torch.empty(1, 3, side, side))[0].shape
            if output != (1, 3, side, side):
                raise ValueError(f"its output is {tuple(output[1:])} for images (3, {side}, {side})")
    except Exception as error:  # settings of a wrong type or size raise errors of many kinds
        raise ValueError(
            f"model.autoencoder does not describe an AutoencoderKL: {' '.join(str(error).split())}"
        ) from error
    if side % factor:
        raise ValueError(f"the images are {side} pixels wide; the autoencoder needs a multiple of {factor}")
