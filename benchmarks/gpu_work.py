"""The work that gpu.py measures: training steps and sampling of networks with random weights."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from peft import PeftModel
from torch import Tensor, nn

from benchmarks.gpu_timing import Precision, Work, autocast, computing
from benchmarks.networks import CONFIGS, ConfigName, Variant, forward, image, variant_of
from rad.data.draws import Draws
from rad.diffusion.schedules import linear_betas
from rad.methods import METHODS
from rad.models.base import Base
from rad.models.loaded_model import PLAIN
from rad.models.lora import LoRA, trainable
from rad.models.unet_model import UNetModel
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from rad.training import EMA, Diffusion, FiniteGuard
from rad.training.execution import BaseDtype, Execution
from rad.training.settings import TrainingProcess

OFFICIAL = TrainingProcess(time_origin="official")
"""The process of configs/rad_ffhq.yaml and configs/rad_imagenet.yaml."""


@dataclass(frozen=True)
class Setting:
    """A network, its images and the device."""

    config: ConfigName
    size: int
    batch: int
    device: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields in place of the configuration's."""

    def network(self) -> UNet2DModel:
        """The stock network, with diffusers' initial weights."""
        with torch.device(self.device):
            return UNet2DModel(**{**CONFIGS[self.config], **self.changes})

    def inputs(self) -> dict[str, Tensor]:
        """See `benchmarks.networks.image`."""
        return image(self.config, batch=self.batch, size=self.size, device=self.device)


class RandomWeights(Diffusion):
    """`Diffusion` on a network in memory."""

    def __init__(self, setting: Setting, model: UNetModel, execution: Execution) -> None:
        super().__init__("random weights", image_size=setting.size, process=OFFICIAL, lora=LoRA(), execution=execution)
        self._loaded = model

    def _load(self) -> UNetModel:
        return self._loaded


def model_of(setting: Setting, unet: UNet2DModel, *, copied: bool = False, channels_last: bool = False) -> UNetModel:
    """A loaded model that shares the weights of `unet`, or has a copy of them, also in the memory format channels_last."""
    unet = cast(UNet2DModel, variant_of(unet, "unpatched"))
    if copied or channels_last:
        unet = copy.deepcopy(unet)
    if channels_last:
        nn.utils.convert_conv2d_weight_memory_format(unet, torch.channels_last)
    base = Base(unet, linear_betas(), "epsilon", "random weights", None, "random weights")
    return UNetModel(base, size=(setting.size, setting.size))


@dataclass(frozen=True)
class Options:
    """Ways to run the network, beside the precision.

    Args:
        channels_last: "", "weights" of the base model, or "all": adapters and images too, as `execution.channels_last`.
        base_dtype: `execution.base_dtype`.
        fused: AdamW with fused=True. compile: backend of torch.compile, or "". tuned: torch.backends.cudnn.benchmark.
    """

    checkpointing: bool = False
    channels_last: str = ""
    base_dtype: BaseDtype = "float32"
    fused: bool = False
    compile: str = ""
    tuned: bool = False


def network_step(
    setting: Setting, unet: UNet2DModel, variant: Variant, precision: Precision, *, checkpointing: bool
) -> Work:
    """Forward, squared error, backward, clipping and AdamW of an adapter, on ready tensors.

    "unpatched" is plain fine-tuning of the same layers, with one timestep for the image.
    """
    network = variant_of(unet, variant, lora=True).train()
    if checkpointing:
        cast(PeftModel, network).get_base_model().enable_gradient_checkpointing()
    call = forward(network, variant, setting.inputs())
    target = torch.randn(setting.batch, 3, setting.size, setting.size, device=setting.device)
    weights = list(trainable(network).values())
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def step() -> None:
        with computing(precision):
            with autocast(precision, setting.device):
                loss = (call()[:, :3] - target).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        optimizer.zero_grad()

    return Work(step, network, optimizer)


PLAINLY = Options()

DRAWN = 4
"""Number of batches whose draws are ready."""


class TrainingStep:
    """A step of `Diffusion` with its masks, noise and losses, then the guard, clipping, AdamW and EMA, as `rad train` runs it.

    Without Lightning's loop, the loader and logging. The images stay on the device. The draws of `DRAWN` batches lie in pinned
    memory, as a loader leaves them, and take turns.
    """

    def __init__(self, setting: Setting, unet: UNet2DModel, precision: Precision, options: Options) -> None:
        self.setting, self.tuned = setting, options.tuned
        self.precision: Precision = precision
        copied = options.channels_last != "" or options.base_dtype != "float32"
        model = model_of(setting, unet, copied=copied, channels_last=options.channels_last != "")
        execution = Execution(
            gradient_checkpointing=options.checkpointing,
            channels_last=options.channels_last == "all",
            base_dtype=options.base_dtype,
        )
        module = RandomWeights(setting, model, execution)
        module.configure_model()
        if options.compile:
            module.compiled_losses = torch.compile(module.compute_losses, backend=options.compile)
        self.prepare(module, fused=options.fused)

    def prepare(self, module: Diffusion, *, fused: bool) -> None:
        """Train this configured module, with a new optimiser, average and images of its size."""
        size, device = module.image_size, self.setting.device
        self.module = module.to(device)
        source = torch.Generator().manual_seed(0)
        self.image = (2 * torch.rand(self.setting.batch, 3, size, size, generator=source) - 1).to(device)
        self.weights = trainable(self.module)
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=1e-4, fused=fused or None)
        self.guard, self.ema = FiniteGuard(), EMA()
        self.ema.weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.steps = 0
        draws = self.module.draws("train", with_holes=True)
        self.drawn = [self._drawn(draws, number * self.setting.batch) for number in range(DRAWN)]

    def _drawn(self, draws: Draws, first: int) -> dict[str, Any]:
        positions = range(first, first + self.setting.batch)
        drawn = draws.batch(positions, (self.image.shape[2], self.image.shape[3]))
        if self.setting.device == "cuda":
            drawn = {name: values.pin_memory() for name, values in drawn.items()}
        return {"position": torch.tensor(positions), "draws": drawn}

    def work(self) -> Work:
        return Work(self.step, self.module, self.optimizer, tuple(self.ema.weights.values()))

    def batch(self) -> dict[str, Any]:
        """The next batch on the device, as the Trainer hands it over."""
        drawn = self.drawn[self.steps % DRAWN]
        draws = {name: values.to(self.setting.device, non_blocking=True) for name, values in drawn["draws"].items()}
        return {"image": self.image, "position": drawn["position"], "draws": draws}

    def step(self) -> None:
        self.optimise(self.batch())

    def optimise(self, *batches: dict[str, Any]) -> None:
        """One optimiser step, with the gradients of several batches if there are several."""
        trainer = SimpleNamespace(
            accumulate_grad_batches=len(batches), precision_plugin=None, world_size=1, global_step=self.steps
        )
        hooks = cast(Any, trainer)
        for number, batch in enumerate(batches):
            self.guard.on_train_batch_start(hooks, self.module, batch, number)
            with computing(self.precision, tuned=self.tuned):
                with autocast(self.precision, self.setting.device):
                    loss = self.module.losses(batch, "train")[0].total.mean() / len(batches)
                self.guard.on_before_backward(hooks, self.module, loss)
                loss.backward()
        self.guard.on_before_optimizer_step(hooks, self.module, self.optimizer)
        self.module.configure_gradient_clipping(self.optimizer, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.ema.update(self.module, self.steps)


class Sampling:
    """Runs of a method with few steps, by `Sampler`, as `sample.py` runs it.

    Args:
        mode: of torch.compile.

    `nfe` and `vjp`: forward and backward passes of the last run.
    """

    def __init__(
        self,
        setting: Setting,
        unet: UNet2DModel,
        method: str,
        *,
        precision: Precision = "float32",
        options: Options = PLAINLY,
        steps: int = 4,
        mode: str | None = None,
    ) -> None:
        self.setting, self.steps = setting, steps
        self.precision: Precision = precision
        self.nfe = self.vjp = 0
        channels_last = options.channels_last != ""
        self.model = model_of(setting, unet, channels_last=channels_last)
        method_class = METHODS[method]
        self.method = method_class(**SHORT.get(method, {}))
        process = self.method.process(self.model.base_process, "official")
        self.sampler = Sampler(process, self.method, **vars(self.method.choose(steps=steps)))
        inputs = setting.inputs()
        known, hole = inputs["x"].clamp(-1, 1), inputs["hole"][:, None].float()
        if channels_last:
            known = known.to(memory_format=torch.channels_last)
        self.task = Task.from_image(known, hole)
        if self.method.needs_grad:
            self.model.checkpoint_gradients()
        self.denoiser = self.model.denoiser([PLAIN] * setting.batch, adapter=False)
        if options.compile:
            compiled = torch.compile(self.model.network, backend=options.compile, mode=mode)
            cast(Any, self.denoiser).network = compiled

    def work(self) -> Work:
        return Work(self.run, self.model.network)

    def run(self) -> None:
        noise = KeyedNoise(0, range(self.setting.batch))
        with computing(self.precision), autocast(self.precision, self.setting.device), noise:
            sample = self.sampler(self.denoiser, self.task, noise=noise)
        self.nfe, self.vjp = sample.nfe, sample.vjp


SHORT = {"repaint": {"jump_length": 2, "resamplings": 2}}
"""Settings that shorten a method's plan; they do not change the time of a network call."""
