"""Inpainting with the model in training, for `Panel` and `InpaintingMetrics`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.masks.shapes import make
from rad.rng import Part, generator
from rad.training.diffusion import Diffusion

if TYPE_CHECKING:
    from rad.sampling.sampler import NoiseSource, Sampler


def choose_sampler(
    module: Diffusion, *, steps: int | None, solver: Solver | None, spacing: Spacing | None, eta: float | None
) -> "Sampler":
    """The sampler of the model's own method, with its preset for each None.

    The method is `rad` for RAD models, `tdpaint` for TD-Paint models and `replacement` for base models.
    Raises ValueError for settings that do not fit the method.
    """
    from rad.methods import METHODS
    from rad.sampling.method import SamplingMethod
    from rad.sampling.sampler import Sampler

    method = METHODS[module.process.method]()
    assert isinstance(method, SamplingMethod)
    choice = method.choose(steps=steps, solver=solver, spacing=spacing, eta=eta)
    return Sampler(module.sampling_process, method, **vars(choice))


def draw_holes(masks: Sequence[str], numbers: Iterable[int], *key: Part, height: int, width: int) -> Tensor:
    """(B,1,height,width), 1 = fill: image `number` has mask number modulo the number of masks, keyed by `key` and `number`.

    Raises ValueError for an unknown mask.
    """
    return torch.cat([make(masks[number % len(masks)])([generator(*key, number)], height, width) for number in numbers])


@torch.no_grad()
def inpaint(
    module: Diffusion, sampler: "Sampler", image: Tensor, hole: Tensor, prompts: Sequence[str], *, noise: "NoiseSource"
) -> Tensor:
    """Images (B,3,H,W) in [-1,1] with their holes (B,1,H,W) filled by the network as it is now; on the module's device.

    Sampling runs in the dtype of the trained weights; frozen ones may be stored in bfloat16.
    """
    training, weights = module.network.training, list(module.network.parameters())
    dtype = next((weight.dtype for weight in weights if weight.requires_grad), weights[0].dtype)
    module.network.eval()
    try:
        task = module.task(image.to(dtype), hole.to(dtype))
        result = sampler(module.denoiser(prompts), task, noise=noise)
    finally:
        module.network.train(training)
    return torch.where(hole == 1, module.model.autoencoder.decode(result.image).to(image), image)
