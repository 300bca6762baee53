"""Lightning callbacks: averaged weights (EMA), checkpoints with adapters beside them, panels of inpaintings."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor

from rad.autoencoder import Autoencoder
from rad.autoencoder_training import MEASURED, AutoencoderTraining
from rad.checkpoints import WholeCheckpointIO
from rad.files import replacing, replacing_folder
from rad.lora import save_adapter, swapped, trainable
from rad.masks.shapes import make
from rad.module import Diffusion
from rad.parts import quietly
from rad.pictures import to_uint8
from rad.pretrained import StableText
from rad.process import Spacing, betas_of
from rad.solvers import Solver
from rad.tape import NoiseTape, generator

if TYPE_CHECKING:
    from rad.sampler import Sampler


class EMA(Callback):
    """Exponential moving average of what is trained, with warm-up: decay = min(decay, 1 - (1 + step/inv_gamma)^-power).

    Raw weights and averages are both kept. Several averages may run in one training, each with its own `suffix`;
    validation and panels use the first.

    Args:
        decay: the largest decay a step.
        inv_gamma, power: of the warm-up (Karras et al.'s defaults for long runs are 1 and 2/3; RAD's code has 1 and 3/4).
        suffix: the average is exported to `step=N-SUFFIX`.
    """

    def __init__(self, decay: float = 0.9999, inv_gamma: float = 1.0, power: float = 0.75, suffix: str = "ema") -> None:
        if not 0 <= decay < 1 or inv_gamma <= 0 or power <= 0:
            raise ValueError(
                f"EMA has decay {decay}, inv_gamma {inv_gamma}, power {power}; allowed are [0,1), > 0, > 0"
            )
        if not suffix.replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"EMA has suffix {suffix!r}; allowed are letters, digits, '_' and '.'")
        self.decay, self.inv_gamma, self.power, self.suffix = decay, inv_gamma, power, suffix
        self.step = 0
        self.weights: dict[str, Tensor] = {}
        self._swap: Any = None

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint: each average has its own."""
        return "EMA" if self.suffix == "ema" else f"EMA-{self.suffix}"

    def decay_at(self, step: int) -> float:
        """The decay of update number `step` = 1, 2, ..."""
        return min(self.decay, 1 - (1 + step / self.inv_gamma) ** -self.power)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = trainable(pl_module)
        if not self.weights:
            self.weights = {name: p.detach().clone() for name, p in parameters.items()}
        self.weights = {name: w.to(parameters[name].device) for name, w in self.weights.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.step:
            self.update(pl_module, trainer.global_step)

    @torch.no_grad()
    def update(self, pl_module: L.LightningModule, step: int) -> None:
        self.step = step
        parameters = trainable(pl_module)
        averages = [self.weights[name] for name in parameters]
        torch._foreach_lerp_(averages, [p.detach() for p in parameters.values()], 1 - self.decay_at(step))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights and self is _averages(trainer)[0]:
            self._swap = swapped(pl_module, self.weights)
            self._swap.__enter__()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._swap is not None:
            self._swap.__exit__(None, None, None)
            self._swap = None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.weights = state_dict["step"], state_dict["weights"]


@contextmanager
def averaged(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Within the context `module` holds the averaged weights of the first EMA callback, if there is one."""
    ema = next((ema for ema in _averages(trainer) if ema.weights), None)
    if ema is None:
        yield
        return
    with swapped(module, ema.weights):
        yield


def _averages(trainer: L.Trainer) -> list[EMA]:
    found: Any = trainer
    return [callback for callback in found.callbacks if isinstance(callback, EMA)]


class Checkpoint(ModelCheckpoint):
    """ModelCheckpoint in optimiser steps that writes models ready for use beside each `.ckpt`.

    `step=N.ckpt` resumes the run. `step=N/` and, for each EMA, `step=N-SUFFIX/` hold the adapter (or, of a model trained as a
    whole, the diffusers folder) with the raw and the averaged weights. A file or folder with such a name is always complete.

    Args:
        every_n_train_steps: distance of checkpoints in optimiser steps.
        save_top_k: how many are kept: -1 all; otherwise the newest.
    """

    def __init__(self, every_n_train_steps: int = 10_000, save_top_k: int = -1, dirpath: str | None = None) -> None:
        newest = {} if save_top_k in (-1, 0) else {"monitor": "step", "mode": "max"}
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            save_last="link",
            every_n_train_steps=every_n_train_steps,
            save_top_k=save_top_k,
            save_on_train_epoch_end=True,
            enable_version_counter=False,  # a step that is trained again takes the place of what was left of it
            **newest,  # pyright: ignore[reportArgumentType]
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        module = trainer.lightning_module
        ours = isinstance(module, Diffusion | AutoencoderTraining)
        if ours and trainer.is_global_zero and Path(filepath).stem != "last":
            folder = Path(filepath).with_suffix("")
            try:
                export(module, trainer, folder, ema=False)
                for average in _averages(trainer):
                    if average.weights:
                        with swapped(module, average.weights):
                            export(module, trainer, folder.with_name(f"{folder.name}-{average.suffix}"), ema=True)
            except SafetensorError as error:
                raise OSError(
                    f"{folder} cannot be written: {error}; make room and go on with --ckpt_path last"
                ) from error
        super()._save_checkpoint(trainer, filepath)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step is kept, whether or not it is a multiple of the distance."""
        if trainer.global_step > self._last_global_step_saved and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            folder = Path(filepath).with_suffix("")
            suffixes = [ema.suffix for ema in _averages(trainer)]
            for path in (folder, *(folder.with_name(f"{folder.name}-{suffix}") for suffix in suffixes)):
                shutil.rmtree(path, ignore_errors=True)


def export(module: Diffusion | AutoencoderTraining, trainer: L.Trainer, folder: Path, *, ema: bool) -> None:
    """Write the model as it is now: an adapter folder, or a diffusers folder when all weights are trained.

    What was trained for per-pixel noise has a rad_config.json, in either form.
    """
    if isinstance(module, AutoencoderTraining):
        with replacing_folder(folder) as place:
            export_autoencoder(module, trainer, place)
        return
    info = module.adapter_info(size=(module.image_size, module.image_size), ema=ema)
    with replacing_folder(folder) as place:
        if isinstance(module.network, PeftModel):
            save_adapter(module.network, place, info, card=card(module, trainer, ema=ema))
        else:
            save_trained(place, module)
            if module.process_kind != "uniform":
                info.write(place)
            (place / "README.md").write_text(card(module, trainer, ema=ema))


def save_trained(folder: Path, module: Diffusion) -> None:
    """A diffusers folder of a model of which all weights are trained; a latent one is a pipeline with its autoencoder, and
    with its text encoder where it is told texts."""
    from rad.load import save_base

    network, codec, text = module.unet, module.parts.codec, module.parts.text
    assert isinstance(network, UNet2DModel | UNet2DConditionModel)
    latent = isinstance(codec, Autoencoder)
    save_base(
        folder,
        network,
        betas=betas_of(module.parts.own),
        prediction_type=module.parts.prediction,
        half=False,
        latent=latent,
    )
    if not latent:
        return
    place = "vqvae" if text is None else "vae"
    codec.network.save_pretrained(folder / place)
    index: dict[str, Any] = {
        "_class_name": "LDMPipeline" if text is None else "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel" if text is None else "UNet2DConditionModel"],
        place: ["diffusers", type(codec.network).__name__],
    }
    if text is not None:
        assert isinstance(text, StableText)
        libraries = {"text_encoder": "transformers", "tokenizer": "transformers", "scheduler": "diffusers"}
        with quietly():
            for name, library in libraries.items():
                part = getattr(text.pipeline, name)
                part.save_pretrained(folder / name)
                index[name] = [library, type(part).__name__]
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def export_autoencoder(module: AutoencoderTraining, trainer: L.Trainer, folder: Path) -> None:
    """A diffusers folder whose scaling_factor is measured, with these weights, on the first training pictures."""
    source: Any = trainer
    data = source.datamodule
    count = min(MEASURED, len(data.train_pictures))
    images = torch.stack([data.stream()[position]["image"] for position in range(count)])
    module.autoencoder.register_to_config(scaling_factor=module.scaling_factor(images))
    module.autoencoder.save_pretrained(folder)


def card(module: Diffusion, trainer: L.Trainer, *, ema: bool) -> str:
    """A model card in Markdown: what this is, what it was trained on and how far."""
    source: Any = trainer
    data = source.datamodule.paths
    batch = getattr(source.datamodule, "batch_size", None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    kind = "RAD adapter" if isinstance(module.network, PeftModel) else f"diffusion model ({module.process_kind})"
    lines = [
        f"# {kind} on {module.parts.source}",
        "",
        f"- Base: `{module.parts.source}`, revision {module.parts.revision}, hash `{module.parts.hash}`.",
        f"- Data: {', '.join(f'`{Path(path).name}`' for path in data)}, {module.image_size}x{module.image_size} pixels.",
        f"- Training: {module.global_step} steps of batch {batch} on {trainer.world_size} device(s), AdamW "
        f"{module.learning_rate:g}, seed {module.seed}{', averaged weights (EMA)' if ema else ''}.",
        f"- Trained parameters: {sum(p.numel() for p in trainable(module).values()):,}.",
        *(f"- {name}: {value:.5f}" for name, value in sorted(metrics.items())),
        "",
    ]
    return "\n".join(lines)


class Throughput(Callback):
    """Logs `train/images_per_second`: all devices, from the last logging step to this one."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._images = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["image"]) * trainer.world_size
        interval: Any = trainer
        if trainer.global_step % interval.log_every_n_steps:
            return
        now = time.perf_counter()
        if self._since is not None:
            pl_module.log("train/images_per_second", self._images / (now - self._since))
        self._since, self._images = now, 0


class Panel(Callback):
    """Every N steps, inpaints the first held-out images at a fixed seed: hole | result | original.

    The panel is written to `panels/step=N.png` in the run folder, and logged to TensorBoard.

    Args:
        every_n_steps: in optimiser steps; 0: never.
        pictures: how many.
        steps: of the sampler.
        solver, spacing, eta: of the sampler; None: the preset of the method. A RAD model is shown by `rad`, a TD-Paint model by
            `tdpaint`, and a base model by `replacement`, the simplest method that fills holes with it.
        masks: names from `rad.masks.shapes.MASKS`, taken in turn.
    """

    def __init__(
        self,
        every_n_steps: int = 5000,
        pictures: int = 4,
        steps: int = 50,
        masks: tuple[str, ...] = ("center", "half", "thick", "perlin"),
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
    ) -> None:
        self.every_n_steps, self.pictures, self.masks = every_n_steps, pictures, masks
        self.sampling: dict[str, Any] = {"steps": steps, "solver": solver, "spacing": spacing, "eta": eta}
        self._done = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A solver that the model cannot use is refused before training."""
        if self.every_n_steps > 0 and isinstance(pl_module, Diffusion):
            self.sampler(pl_module)

    def sampler(self, module: Diffusion) -> "Sampler":
        from rad.methods import RAD, Replacement, TDPaint
        from rad.sampler import Sampler

        methods = {"region_aware": RAD(), "tdpaint": TDPaint()}
        method = methods.get(module.process_kind, Replacement())
        return Sampler(module.sampling_process, (method,), **vars(method.choose(**self.sampling)))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._done and isinstance(pl_module, Diffusion) and trainer.is_global_zero:
            self._done = trainer.global_step
            picture = self.picture(trainer, pl_module)
            path = Path(trainer.default_root_dir) / "panels" / f"step={trainer.global_step}.png"
            with replacing(path) as place:
                to_uint8(picture).save(place, format="PNG")
            writer = getattr(trainer.logger, "experiment", None)
            if hasattr(writer, "add_image"):
                writer.add_image("panel", picture, trainer.global_step)  # pyright: ignore[reportOptionalMemberAccess]

    @torch.no_grad()
    def picture(self, trainer: L.Trainer, module: Diffusion) -> Tensor:
        """(3, rows, columns) in [0,1]: for each picture its hole in grey, the result and the truth, side by side."""
        from torchvision.utils import make_grid

        source: Any = trainer
        held_out = source.datamodule.val_dataloader().dataset
        chosen = [held_out[i] for i in range(min(self.pictures, len(held_out)))]
        data = torch.stack([one["image"] for one in chosen]).to(module.device)
        prompts = [one.get("text", "") for one in chosen]
        height, width = data.shape[2:]
        holes = [
            make(self.masks[i % len(self.masks)])([generator(module.seed, "panel", i)], height, width)
            for i in range(len(data))
        ]
        hole = torch.cat(holes).to(module.device)
        with (
            averaged(trainer, module),
            NoiseTape(module.seed, range(len(data)), device=module.device) as tape,
        ):
            training = module.training
            module.eval()
            sample = self.sampler(module)(module.prior(prompts), module.task(data, hole), noise=tape)
            filled = module.parts.codec.decode(sample.image)
            module.train(training)
        rows = [data * (1 - hole), torch.where(hole == 1, filled, data), data]
        return make_grid(torch.stack(rows, 1).flatten(0, 1).cpu() / 2 + 0.5, nrow=3, padding=2).clamp(0, 1)
