"""The LightningModule: trains a base model (one noise level an image) or a RAD adapter (one for every pixel or latent cell).

Every random draw of a training step is keyed by (seed, position of the sample in the run), so a loss does not depend on
how the batch is split, and a resumed run continues as if it had not stopped.

A latent model sees an image as sampling will: holes are drawn in pixels and brought to the cells by the rule of sampling, and
the known cells are those of an image whose hole was filled smoothly before it was encoded, so that they know nothing of what is
in it. The frozen autoencoder and text encoders are no part of the module (see `rad.models.loaded_model`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftModel
from torch import Tensor, nn
from torchmetrics import MeanMetric

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import Losses, LossRegion, TimestepWeight, VlbBoundary, hybrid_loss
from rad.diffusion.processes import Flow, PerPixel, Process, TimeOrigin, get_betas, region_aware
from rad.diffusion.step import noised
from rad.masks import MaskGenerator
from rad.masks.perlin import Perlin
from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.guided_diffusion import QkvOrder
from rad.models.latent_mask import Grid, Prefill, encode_training
from rad.models.load import load_model, new_model
from rad.models.loaded_model import RegionAwareNetwork
from rad.models.lora import LoRA, inject, trainable
from rad.networks.unet import EmbeddingKind
from rad.resources import located
from rad.rng import generator
from rad.sampling.task import Task
from rad.training.optimizer import Schedule, adamw, require_schedule

BUCKETS = 4


ProcessKind = Literal["region_aware", "tdpaint", "uniform"]


TrainedPrediction = Literal["epsilon", "v_prediction"]


Batch = Mapping[str, Any]


class Diffusion(L.LightningModule):
    """Noise prediction with a hybrid loss, on whole-image or per-pixel noise.

    Args:
        base: the base model: a diffusers folder, a hub id, or a guided-diffusion .pt file; a folder or hub id with an
            autoencoder is a latent model: LDM, Stable Diffusion 1.x, 2.x and 3. None: train one from scratch.
        unet: fields of diffusers' UNet2DModel, for training from scratch; needed when `base` is None.
        prediction: what a network trained from scratch predicts: "epsilon", or "v_prediction" (v = a e - s x0, Salimans & Ho
            2022, arXiv 2202.00512), whose estimate of x0 stays good at high noise. A base has its own.
        autoencoder: the folder of one of diffusers' AutoencoderKL, whose latents `unet` is trained on; None: on pixels.
        text_encoder: a folder with a CLIP text model and its tokenizer in text_encoder/ and tokenizer/, as Stable Diffusion has
            them, which stay as they are: `unet` is then of a UNet2DConditionModel, and is told texts. Needs `autoencoder`.
        revision: of a hub id.
        image_size: of the training images in pixels; head_channels: width of the attention heads of a .pt base.
        qkv_order: "legacy" for ADM weights as OpenAI's program reads them; "naive" for official RAD weights.
        process: "region_aware" (RAD), "tdpaint" (TD-Paint: its paper counts the loss in the hole, loss_region "moving", and
            weights the variational term with 1), or "uniform" (a base model).
        time_origin: what the network is told of a level, see `rad.diffusion.processes.RegionAware`.
        phase2: fraction of the samples drawn from RAD's second phase, which sampling never visits; official: 0.5.
        unconditional_share: share of the samples, 0 to 1, whose hole is the whole image, whatever `masks` draws. The trained
            weights are then also an unconditional model, which the zero-shot methods use as their base.
        lora: what the adapter trains; None: train all weights.
        adapter: the folder of an adapter to train further, in place of a new one; `lora` is then None, for it is the adapter's.
        masks: holes to train on (not "uniform"), drawn on the training device; a batch with its own "hole" goes first.
        embedding: "factorised" or "dense" (the reference, slower).
        grid: how holes come to latent cells; fill: what the encoder sees in them, see `rad.sampling.task.Task.encoded`.
        prompt_dropout: share of the samples that are told the empty prompt, which guidance needs; for models with text.
        vlb_weight: weight of the variational term, which latent models have not; official RAD 1e-3, iDDPM's weighting 1.0.
        vlb_boundary: "nll", or "zero" as in the official code; see `hybrid_loss`.
        loss_region: squared error over "all" pixels (official), the "noisy" or the "moving" ones, see `hybrid_loss`.
        weight_limit: of the squared error at high noise, 1 (official) for none; see `hybrid_loss`.
        timestep_weight: weight of the squared error by noise level: "none", "min_snr", "truncated_snr" or "p2"; see `snr_weight`.
        learning_rate, betas, weight_decay: of AdamW, on everything trained.
        warmup_steps: linear warm-up of the learning rate, in optimiser steps.
        schedule: of the learning rate after the warm-up: "constant", "linear" or "cosine" to zero at trainer.max_steps, or
            "warmup_stable_decay": constant, then a cosine to zero over the last `decay_share` of trainer.max_steps.
        decay_share: share of trainer.max_steps in (0,1] over which "warmup_stable_decay" falls to zero.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        channels_last: memory format of the network.
        compile: run the network through torch.compile.
        shard_optimizer: each of several processes keeps the optimiser's state of a part of the weights (ZeRO stage 1): for a
            large base that is trained as a whole, 8 bytes a weight are divided by the number of processes.
        seed: of masks, times, noise and new weights.
    """

    def __init__(
        self,
        base: str | None = None,
        unet: dict[str, Any] | None = None,
        autoencoder: str | None = None,
        text_encoder: str | None = None,
        revision: str | None = None,
        prediction: TrainedPrediction = "epsilon",
        image_size: int = 256,
        head_channels: int = 64,
        qkv_order: QkvOrder = "legacy",
        process: ProcessKind = "region_aware",
        time_origin: TimeOrigin = "adm",
        phase2: float = 0.5,
        unconditional_share: float = 0.0,
        lora: LoRA | None = None,
        adapter: str | None = None,
        masks: MaskGenerator | None = None,
        embedding: EmbeddingKind = "factorised",
        grid: Grid | None = None,
        fill: Prefill = "smooth",
        prompt_dropout: float = 0.1,
        vlb_weight: float = 1e-3,
        vlb_boundary: VlbBoundary = "nll",
        loss_region: LossRegion = "all",
        weight_limit: float = 1.0,
        timestep_weight: TimestepWeight = "none",
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        decay_share: float = 0.1,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        compile: bool = False,
        shard_optimizer: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (base is None) == (unet is None):
            raise ValueError(
                "give model.base (a trained model to start from) or model.unet (to train one), and not both"
            )
        if process == "uniform" and (lora is not None or adapter is not None):
            raise ValueError(
                "process 'uniform' trains a base model, all of it: remove model.lora and model.adapter, or use 'region_aware'"
            )
        if unet is not None and (lora is not None or adapter is not None):
            raise ValueError(
                "model.lora and model.adapter are for a trained model.base: model.unet is trained as a whole"
            )
        if lora is not None and adapter is not None:
            raise ValueError(f"model.adapter {adapter} has its own rank and layers: set model.lora to null")
        if (autoencoder is not None or text_encoder is not None) and unet is None:
            raise ValueError(
                "model.autoencoder and model.text_encoder are for model.unet; a pretrained latent model has its own: remove them"
            )
        if text_encoder is not None and autoencoder is None:
            raise ValueError("model.text_encoder is for models on latents: give model.autoencoder, too")
        if not 0 <= phase2 <= 1 or not 0 <= prompt_dropout <= 1:
            raise ValueError(f"phase2 is {phase2} and prompt_dropout {prompt_dropout}; they are fractions from 0 to 1")
        if vlb_weight < 0 or weight_limit < 1:
            raise ValueError(f"vlb_weight is {vlb_weight} and weight_limit {weight_limit}; allowed are >= 0 and >= 1")
        require_schedule(schedule, warmup_steps=warmup_steps, decay_share=decay_share, learning_rate=learning_rate)
        if not 0 <= unconditional_share <= 1:
            raise ValueError(f"unconditional_share is {unconditional_share}; allowed is a share from 0 to 1")
        if unconditional_share > 0 and process == "uniform":
            raise ValueError("unconditional_share is for processes with holes, and process is 'uniform': remove it")
        if unconditional_share > 0 and time_origin == "official":
            raise ValueError(
                "time_origin 'official' counts timesteps from 1 and a base model from 0, so the trained weights could not serve "
                "as a base model: use time_origin 'adm', or remove unconditional_share"
            )
        for name, value, kind in (
            ("timestep_weight", timestep_weight, TimestepWeight),
            ("prediction", prediction, TrainedPrediction),
        ):
            if value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}; allowed are {', '.join(get_args(kind))}")
        if timestep_weight != "none" and weight_limit != 1:
            raise ValueError(
                f"timestep_weight is {timestep_weight!r} and weight_limit {weight_limit}: remove one of them"
            )
        self.strict_loading = False  # a checkpoint holds what is trained, and on_load_checkpoint compares the names

        if unet is not None:
            model = new_model(
                unet,
                autoencoder=autoencoder,
                text_encoder=text_encoder,
                prediction=prediction,
                image_size=image_size,
                seed=seed,
            )
        else:
            model = load_model(
                str(base),
                size=image_size,
                head_channels=head_channels,
                qkv_order=qkv_order,
                revision=revision,
                training=True,
            )
        if prediction not in ("epsilon", model.prediction):
            raise ValueError(
                f"model.prediction is {prediction!r}, and {model.source} predicts {model.prediction!r}: remove it"
            )
        model.require_trainable(process, whole=lora is None and adapter is None)
        if weight_limit != 1 and model.prediction != "epsilon":
            raise ValueError(f"weight_limit is {weight_limit}, for networks that predict 'epsilon': remove it")
        if isinstance(model.base_process, Flow) and time_origin != "adm":
            raise ValueError(f"time_origin is {time_origin!r}; a flow takes its own sigma: remove it")
        self.process_kind = process
        self.process: Process
        self.sampling_process: Process
        if process == "region_aware":
            self.process = self.sampling_process = region_aware(model.base_process, time_origin=time_origin)
        elif process == "tdpaint":
            betas_of_own = get_betas(model.base_process)
            self.process, self.sampling_process = (
                PerPixel(betas_of_own, time_origin=time_origin, known=0),
                PerPixel(betas_of_own, time_origin=time_origin),
            )
        else:
            self.process = self.sampling_process = model.base_process
        network = model.region_aware_network(embedding=embedding)
        for layer in network.modules():  # of a pretrained model: its draws would not be keyed
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        self.model = model
        self.grid, self.prompt_dropout = grid or Grid(), prompt_dropout
        self.fill: Prefill = fill
        self.time_origin: TimeOrigin = time_origin
        self.qkv_order: QkvOrder = qkv_order
        self.vlb_boundary: VlbBoundary = vlb_boundary
        self.loss_region: LossRegion = loss_region
        self.timestep_weight: TimestepWeight = timestep_weight
        self.phase2, self.vlb_weight, self.weight_limit = phase2, vlb_weight, weight_limit
        self.unconditional_share = unconditional_share
        self.learning_rate, self.adam_betas, self.weight_decay = learning_rate, betas, weight_decay
        self.warmup_steps, self.decay_share, self.seed = warmup_steps, decay_share, seed
        self.schedule: Schedule = schedule
        self.shard_optimizer = shard_optimizer
        self.image_size = image_size
        self.masks: MaskGenerator = masks if masks is not None else Perlin()
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network: RegionAwareNetwork | PeftModel
        if adapter is not None:
            self.network = load_adapter(network, located(adapter), base_hash=model.hash, trained=True)
        else:
            self.network = network.requires_grad_(True) if lora is None else inject(network, lora, seed=seed)
        self.network.train()
        # Lightning's own mean over processes goes wrong when they hold unequal numbers of images.
        self.val_means = torch.nn.ModuleDict({name: MeanMetric() for name in ("loss", "simple", "vlb")})
        self.forward_network: Callable[..., Any] = torch.compile(self.network) if compile else self.network

    @property
    def unet(self) -> RegionAwareNetwork:
        """The denoiser itself, with the adapter in it if there is one."""
        if not isinstance(self.network, PeftModel):
            return self.network
        wrapped: Any = self.network
        return wrapped.get_base_model()

    @property
    def learned_variance(self) -> bool:
        return self.model.learns_variance and self.vlb_weight > 0

    def on_fit_start(self) -> None:
        for frozen in self.model.frozen_modules():
            frozen.to(self.device)
        data: Any = self.trainer
        captioned = getattr(data.datamodule, "captions", None) is not None
        if captioned != (self.model.takes_text):
            rank_zero_warn(
                f"{self.model.source} takes no text: the captions are unused"
                if captioned
                else f"{self.model.source} takes text, and there is none: it is trained on the empty prompt (data.captions)"
            )

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """The network as it is now, for sampling images with these prompts; a model without text reads none."""
        return self.model.training_denoiser(prompts, learned_variance=self.learned_variance)

    def task(self, image: Tensor, hole: Tensor) -> Task:
        """image (B,3,H,W) in [-1,1], hole (B,1,H,W), on the device of the module."""
        return Task.encoded(image, hole, self.model.autoencoder, grid=self.grid, fill=self.fill)

    def adapter_info(self, *, size: tuple[int, int], ema: bool) -> AdapterInfo:
        return AdapterInfo(
            base=self.model.source,
            base_hash=self.model.hash,
            base_revision=self.model.revision,
            time_origin=self.time_origin,
            steps=self.model.base_process.steps,
            size=size,
            trained_steps=self.global_step,
            ema=ema,
            qkv_order=self.qkv_order,
            learned_variance=self.learned_variance,
            process=self.process_kind,
            unconditional=self.unconditional_share > 0,
            kind=self.model.kind,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses, now, hole = self.losses(batch, "train")
        loss = losses.total.mean()
        if self._logging():
            self._log_losses(losses, now)
            self.log("train/loss", loss, prog_bar=True, batch_size=len(hole))
            self.log("train/hole_fraction", hole.mean(), batch_size=len(hole))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, _, hole = self.losses(batch, "val")
        for name, values in (("loss", losses.total), ("simple", losses.simple), ("vlb", losses.vlb)):
            mean: Any = self.val_means[name]
            mean.update(values)
            self.log(f"val/{name}", mean, prog_bar=name == "loss", batch_size=len(hole))

    def losses(self, batch: Batch, purpose: str) -> tuple[Losses, Tensor, Tensor]:
        """Losses, times t and holes of a batch; all draws keyed by (seed, purpose, position).

        Args:
            batch: "image" (B,3,H,W) in [-1,1], "position" (B,) int64, and optionally "hole" (B,1,H,W) and "text", B prompts.
        """
        image: Tensor = batch["image"]
        sources = [
            generator(self.seed, purpose, position, device=image.device) for position in batch["position"].tolist()
        ]
        t = self.draw_times(sources)
        hole, regions = self._holes(batch, sources, image, purpose)
        x0, regions = self._encoded(image, hole, regions)
        eps = torch.stack([torch.randn(x0.shape[1:], generator=source, device=x0.device) for source in sources])
        now, previous = self.process.noise(t, regions), self.process.noise(t - 1, regions)
        x = noised(x0, now, noise=eps)
        conditions = self._conditions(batch, purpose)
        output = self.forward_network(x, timestep=now.timesteps.to(x.dtype), index=now.index, **conditions).sample
        losses = hybrid_loss(
            output,
            x0=x0,
            x=x,
            eps=eps,
            now=now,
            previous=previous,
            vlb_weight=self.vlb_weight,
            vlb_boundary=self.vlb_boundary,
            loss_region=self.loss_region,
            weight_limit=self.weight_limit,
            timestep_weight=self.timestep_weight,
            prediction=self.model.prediction,
        )
        return losses, t, hole

    def draw_times(self, sources: list[torch.Generator]) -> Tensor:
        """t (B,) int64: uniform over the levels; for RAD a share `phase2` from the second phase, the rest from the first."""
        levels = self.process.sampled_steps
        draws = torch.stack(
            [torch.rand(2, generator=source, device=source.device, dtype=torch.float64) for source in sources]
        )
        t = (draws[:, 0] * levels).long().clamp(max=levels - 1)
        if self.process_kind == "region_aware":
            t = t + levels * (draws[:, 1] < self.phase2)
        return t

    def _holes(
        self, batch: Batch, sources: list[torch.Generator], image: Tensor, purpose: str
    ) -> tuple[Tensor, NoiseRegions | None]:
        if self.process_kind == "uniform":
            return image.new_ones(len(image), 1, *image.shape[2:]), None
        given = "hole" in batch
        hole = batch["hole"] if given else self.masks(sources, *image.shape[2:]).to(image.device)
        if self.unconditional_share > 0:
            draws = self._draws(batch, purpose, "unconditional").to(hole.device)
            hole = torch.where((draws < self.unconditional_share)[:, None, None, None], 1.0, hole)
        return hole, NoiseRegions.from_mask(hole) if given else NoiseRegions.binary(hole)

    def _draws(self, batch: Batch, *key: str) -> Tensor:
        """(B,) uniform in [0,1), keyed by the seed, `key` and the position of each sample."""
        keys = [generator(self.seed, *key, position) for position in batch["position"].tolist()]
        return torch.stack([torch.rand((), generator=key) for key in keys])

    @torch.no_grad()
    def _encoded(
        self, image: Tensor, hole: Tensor, regions: NoiseRegions | None = None
    ) -> tuple[Tensor, NoiseRegions | None]:
        """The clean sample of an image and its regions; of a latent model those of the latent grid."""
        if self.process_kind == "uniform":
            return self.model.autoencoder.encode(image), None
        x0, cells = encode_training(image, hole, self.model.autoencoder, grid=self.grid, fill=self.fill)
        return x0, regions if cells is hole else NoiseRegions.binary(cells)

    @torch.no_grad()
    def _conditions(self, batch: Batch, purpose: str) -> dict[str, Tensor]:
        if not self.model.takes_text:
            return {}
        prompts = list(batch.get("text", [""] * len(batch["position"])))
        if purpose == "train":
            dropped = (self._draws(batch, "prompt") < self.prompt_dropout).tolist()
            prompts = ["" if drop else prompt for drop, prompt in zip(dropped, prompts, strict=True)]
        return self.model.encode_prompts(prompts)

    def _logging(self) -> bool:
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # pyright: ignore[reportAttributeAccessIssue]

    def _log_losses(self, losses: Losses, t: Tensor) -> None:
        size = len(t)
        self.log("train/simple", losses.simple.mean(), batch_size=size)
        self.log("train/vlb", losses.vlb.mean(), batch_size=size)
        bucket = t * BUCKETS // self.process.steps
        for number in range(BUCKETS):
            inside = bucket == number
            if bool(inside.any()):
                first, last = (
                    number * self.process.steps // BUCKETS,
                    (number + 1) * self.process.steps // BUCKETS - 1,
                )
                self.log(f"train/simple_t{first}-{last}", losses.simple[inside].mean(), batch_size=size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._logging():
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/gradient_norm", torch.nn.utils.get_total_norm(grads))

    def configure_optimizers(self) -> Any:
        return adamw(self, self.trainer.max_steps, sharded=self.shard_optimizer and self.trainer.world_size > 1)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Only what is trained: a frozen base stays out of the checkpoints."""
        names = set(trainable(self))
        return {name: w for name, w in super().state_dict(*args, **kwargs).items() if name in names}

    def _identity(self) -> dict[str, str]:
        """The settings that a checkpoint and the run that resumes it must share."""
        return {
            "base_hash": self.model.hash,
            "process": self.process_kind,
            "prediction": self.model.prediction,
            "time_origin": self.time_origin,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rad"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("rad")
        if not isinstance(saved, dict):
            raise ValueError("the checkpoint was not written by rad: give a .ckpt of runs/NAME/checkpoints")
        expected = self._identity()
        if any(saved.get(name, value) != value for name, value in expected.items()):
            raise ValueError(
                f"the checkpoint belongs to {saved}, this configuration to {expected}: use the run's config.yaml"
            )
        given = {name: tuple(w.shape) for name, w in checkpoint["state_dict"].items()}
        wanted = {name: tuple(w.shape) for name, w in trainable(self).items()}
        if given != wanted:
            wrong = sorted(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
            raise ValueError(
                f"the checkpoint trains other layers: {len(wrong)} tensors differ, the first {wrong[0]}; use its config.yaml"
            )
