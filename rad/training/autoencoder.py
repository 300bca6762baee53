"""The LightningModule that trains an autoencoder for latent models from scratch: diffusers' AutoencoderKL on photographs.

    loss = mean |x - D(z)| + perceptual_weight d(x, D(z)) + kl_weight KL(N(mean, std^2) || N(0,1)) / (3 H W),   z = mean + std e

as in Rombach et al. 2022 (arXiv 2112.10752, section 3.1 and appendix G), but without their adversarial loss: fine texture is
smoother than theirs. The KL term is a sum over the latents divided by the number of values of an image, so that it weighs as
much against the first as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torchmetrics import MeanMetric

from rad.models.lora import trainable
from rad.rng import generator
from rad.training.diffusion import Batch
from rad.training.optimizer import Schedule, adamw, require_schedule

MEASURED = 256
"""Training images that the scale of the latents is measured on."""


@dataclass(frozen=True)
class Reconstruction:
    """Each (B,): mean |x - D(z)|; the perceptual distance; KL / (3 H W); their weighted sum; and D(z) (B,3,H,W)."""

    l1: Tensor
    distance: Tensor
    kl: Tensor
    total: Tensor
    image: Tensor


class AutoencoderTraining(L.LightningModule):
    """Trains an AutoencoderKL; `Checkpoint` writes it as a diffusers folder, which `model.autoencoder` of `Diffusion` takes.

    Args:
        autoencoder: fields of diffusers' AutoencoderKL; its scaling_factor is measured, see `scaling_factor`.
        kl_weight: of the KL term. It only keeps the latents from growing; larger values blur.
        perceptual: a feature network as `rad.evaluation.features.feature_net` takes it; None: no perceptual distance. Numbers
            of an evaluation with the same network then flatter the model.
        perceptual_weight: of its distance.
        learning_rate, betas, weight_decay, warmup_steps, schedule, decay_share: as of `rad.training.diffusion.Diffusion`.
        image_size: of the training images in pixels.
        seed: of the weights and of the draws from the posterior.
    """

    def __init__(
        self,
        autoencoder: dict[str, Any],
        kl_weight: float = 1e-6,
        perceptual: str | None = None,
        perceptual_weight: float = 1.0,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        decay_share: float = 0.1,
        image_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kl_weight < 0 or perceptual_weight < 0:
            raise ValueError(f"kl_weight is {kl_weight} and perceptual_weight {perceptual_weight}; both must be >= 0")
        require_schedule(schedule, warmup_steps=warmup_steps, decay_share=decay_share, learning_rate=learning_rate)
        fields: dict[str, Any] = {**autoencoder, "sample_size": image_size}
        try:
            with torch.device("meta"):
                empty = AutoencoderKL(**fields)
                factor = 2 ** (len(empty.config["block_out_channels"]) - 1)
                if image_size % factor == 0:
                    made = empty(torch.empty(1, 3, image_size, image_size)).sample.shape
                    if made != (1, 3, image_size, image_size):
                        raise ValueError(f"it makes {tuple(made[1:])} of (3, {image_size}, {image_size})")
        except Exception as error:  # settings of a wrong type or size fail anywhere, with anything
            raise ValueError(
                f"model.autoencoder does not describe an AutoencoderKL: {' '.join(str(error).split())}"
            ) from error
        if image_size % factor:
            raise ValueError(f"the images are {image_size} pixels wide; the autoencoder needs a multiple of {factor}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.autoencoder = AutoencoderKL(**fields)
        self.autoencoder.train()
        self.kl_weight, self.perceptual, self.perceptual_weight = kl_weight, perceptual, perceptual_weight
        self.learning_rate, self.adam_betas, self.weight_decay = learning_rate, betas, weight_decay
        self.warmup_steps, self.decay_share = warmup_steps, decay_share
        self.schedule: Schedule = schedule
        self.image_size, self.seed = image_size, seed
        self._compare = self._load_network()
        self.val_means = torch.nn.ModuleDict({name: MeanMetric() for name in ("loss", "l1", "distance", "kl", "psnr")})

    def _load_network(self) -> Any:
        from rad.evaluation.features import feature_net

        return None if self.perceptual is None else feature_net(self.perceptual, device=self.device).compared

    def on_fit_start(self) -> None:
        self._compare = self._load_network()  # on the device of the run

    def losses(self, batch: Batch, *, sampled: bool) -> Reconstruction:
        """Of "image" (B,3,H,W) in [-1,1]; `sampled`: through a draw of the posterior keyed by "position", not its mean."""
        x: Tensor = batch["image"]
        posterior = self.autoencoder.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        z = posterior.mean
        if sampled:
            draws = [
                torch.randn(
                    z.shape[1:], generator=generator(self.seed, "posterior", position, device=z.device), device=z.device
                )
                for position in batch["position"].tolist()
            ]
            z = z + posterior.std * torch.stack(draws)
        image = self.autoencoder.decode(z).sample.float()  # pyright: ignore[reportAttributeAccessIssue]
        l1 = (image - x).abs().mean((1, 2, 3))
        kl = posterior.kl() / x[0].numel()
        distance = torch.zeros_like(l1)
        if self._compare is not None:
            distance = self._compare(image / 2 + 0.5, x / 2 + 0.5)
        return Reconstruction(l1, distance, kl, l1 + self.perceptual_weight * distance + self.kl_weight * kl, image)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch, sampled=True)
        loss, size = losses.total.mean(), len(losses.total)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            self.log("train/loss", loss, prog_bar=True, batch_size=size)
            for name in ("l1", "distance", "kl"):
                self.log(f"train/{name}", getattr(losses, name).mean(), batch_size=size)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses = self.losses(batch, sampled=False)
        squared = (losses.image.clamp(-1, 1) - batch["image"]).square().mean((1, 2, 3)) / 4
        values = {
            "loss": losses.total,
            "l1": losses.l1,
            "distance": losses.distance,
            "kl": losses.kl,
            "psnr": -10 * squared.clamp(min=1e-10).log10(),
        }
        for name, value in values.items():
            mean: Any = self.val_means[name]
            mean.update(value)
            self.log(f"val/{name}", mean, prog_bar=name == "loss", batch_size=len(value))

    @torch.no_grad()
    def scaling_factor(self, images: Tensor) -> float:
        """1 / standard deviation of the latents (means of the posteriors) of `images` (B,3,H,W) in [-1,1]."""
        means = [
            self.autoencoder.encode(part.to(self.device)).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
            for part in images.split(32)
        ]
        return 1 / max(1e-6, float(torch.cat(means).double().std()))

    def configure_optimizers(self) -> Any:
        return adamw(self, self.trainer.max_steps)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The autoencoder alone."""
        names = set(trainable(self))
        return {name: w for name, w in super().state_dict(*args, **kwargs).items() if name in names}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state_dict, strict=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rad"] = {"autoencoder": _shapes(trainable(self))}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("rad") != {"autoencoder": _shapes(trainable(self))}:
            raise ValueError("the checkpoint is of another network: use the run's config.yaml")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(weight.shape) for name, weight in weights.items()}
