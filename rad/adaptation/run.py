"""`adapt`: trains a low-rank adapter on the known pixels of one image, and returns an inpainter for this image.

Each step takes random crops of the image. The union of a random hole and of the pixels that are not known gets noise, as in
RAD's training; the loss counts the known pixels in the random hole. Under the noise, pixels that are not known have a smooth
continuation of the known ones, so that no content of the hole enters.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rad.adaptation.crops import Batch, Crops
from rad.adaptation.settings import CROPS
from rad.arguments import integer
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import hybrid_loss
from rad.diffusion.processes import PerPixel, Process, get_betas, region_aware
from rad.diffusion.step import noised
from rad.inpainting.arrays import ImageLike, MaskLike
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.inputs import Inputs
from rad.masks.reading.format import DEFAULT, MaskFormat
from rad.models.adapter import AdapterInfo
from rad.models.loaded_model import LoadedModel, with_adapted
from rad.models.lora import LoRA, inject, merge, trainable, twin
from rad.models.unet_model import UNetModel
from rad.models.vae import IDENTITY
from rad.modes import plain_modes
from rad.networks import SURROUNDINGS
from rad.networks.surroundings import surroundings
from rad.rng import Part, check_seed, key

LORA = LoRA(rank=16, alpha=16, time_layers="lora")

RATE, CLIP = 5e-4, 1.0
"""Learning rate of AdamW, and the largest norm of the gradient."""

WEIGHT_LIMIT = 15.0
"""See `hybrid_loss`; for networks that predict eps, as in configs/rad_nature32.yaml."""


@dataclass(frozen=True)
class Adapted:
    """An inpainter for one image.

    Args:
        inpainter: shares all weights but the trained ones with the inpainter that it comes from, which stays as it is.
        passes: forward and backward passes of the network, one for each crop; seconds: wall time of the training.
        losses: of each step.
    """

    inpainter: Inpainter
    passes: int
    seconds: float
    losses: list[float]


@plain_modes()
@torch.enable_grad()
def adapt(
    inpainter: Inpainter,
    image: ImageLike,
    mask: MaskLike,
    *,
    steps: int = 200,
    seed: int = 0,
    name: Part | None = None,
    mask_format: MaskFormat = DEFAULT,
    on_step: Callable[[int], None] | None = None,
) -> Adapted:
    """Train RAD's network on the known pixels of an image, for methods such as "rad" and a size policy that does not scale it.

    Args:
        image, mask: as of `Inpainter`, one of each. The content of the hole has no effect.
        steps: training steps, each of `CROPS` crops of `crop_size`.
        seed, name: keys of all draws; use those of the call that fills the image.
        mask_format: how a mask file is read.
        on_step: called after each step with the number of finished passes; an exception in it stops the training.

    Raises:
        ValueError: a model that cannot be adapted, see `check_adaptable`; too few known pixels; an unsuitable input.
    """
    check_adaptable(inpainter)
    steps, seed = integer("steps", steps, low=1, high=10**5), check_seed(seed)
    inputs = Inputs.align(image, mask, names=name)
    if len(inputs.images) != 1:
        raise ValueError(f"image has {len(inputs.images)} images: adapt to each one by a call of its own")
    (hole,), (name,) = inputs.read(mask_format, seed), inputs.names
    crops = Crops(np.array(inputs.images[0]).transpose(2, 0, 1), hole, crop_size(inpainter), seed=seed, name=name)
    begin, model = time.perf_counter(), inpainter.model
    network = inject(twin(model.sampled_network(adapter=True)), LORA, seed=key(seed, "adapt", name)).eval()
    autocast = torch.autocast(inpainter.device.type, torch.bfloat16) if inpainter.precision == "bf16" else nullcontext()
    weights, losses = list(trainable(network).values()), []
    optimizer = torch.optim.AdamW(weights, lr=RATE)
    for step in range(steps):
        optimizer.zero_grad()
        with autocast:
            loss = compute_loss(network, model, crops.draw(step, CROPS), inpainter.device)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step((step + 1) * CROPS)
    adapted = Inpainter(
        with_adapted(model, merge(network)),
        device=inpainter.device,
        precision=inpainter.precision,
        noise_device=inpainter.noise_device,
    )
    return Adapted(adapted, steps * CROPS, time.perf_counter() - begin, losses)


def crop_size(inpainter: Inpainter) -> tuple[int, int]:
    """(height, width) of the crops in pixels: that of the model's training, which its windows may exceed."""
    info = inpainter.model.info
    return inpainter.size if info is None else info.size


def check_adaptable(inpainter: Inpainter) -> None:
    """Raise ValueError for a model without weights for per-pixel noise, a model of latents, or a compiled one."""
    model = inpainter.model
    if model.info is None:
        raise ValueError(
            f"the adaptation trains RAD's network, and {model.source} is a base model: give a model of RAD, such as photos"
        )
    if model.autoencoder is not IDENTITY or not isinstance(model, UNetModel):
        raise ValueError(f"the adaptation is for models of pixels, and {model.source} works on latents: leave it out")
    if inpainter.compile != "off":
        raise ValueError(
            f"compile is {inpainter.compile!r}, and the adaptation would compile a network for each image: leave out one of them"
        )


def compute_loss(network: nn.Module, model: LoadedModel, batch: Batch, device: torch.device) -> Tensor:
    """The loss of RAD's training on the counted pixels of a batch."""
    x0, hole, counted, eps = (part.to(device) for part in (batch.x0, batch.hole, batch.counted, batch.eps))
    info, regions = model.info, NoiseRegions.binary(hole)
    assert info is not None
    process = _process(model.base_process, info)
    t = (batch.level * process.sampled_steps).long().to(device)
    now, previous = process.noise(t, regions), process.noise(t - 1, regions)
    x = noised(x0, now, noise=eps)
    output = network(x, timestep=now.timesteps.to(torch.float32), index=now.index).sample
    relative = bool(model.network.config.get(SURROUNDINGS))
    losses = hybrid_loss(
        output,
        x0=x0,
        x=x,
        eps=eps,
        now=now,
        previous=previous,
        pixels=counted,
        vlb_weight=1e-3 if info.learned_variance else 0.0,
        weight_limit=WEIGHT_LIMIT if model.prediction == "epsilon" else 1.0,
        timestep_weight="surroundings" if relative else "none",
        deviation=surroundings(x, hole == 0)[1] if relative else None,
        prediction=model.prediction,
    )
    return losses.total.mean()


def _process(base_process: Process, info: AdapterInfo) -> Process:
    """The process that the network was trained on."""
    if info.process == "tdpaint":
        return PerPixel(get_betas(base_process), time_origin=info.time_origin, known=0)
    return region_aware(base_process, time_origin=info.time_origin)
