"""Small formulas that zero-shot methods share: the predicted noise, residuals on known pixels, norms for each image.

Norms and losses are taken image by image, so a result does not depend on what else is in the batch.
"""

from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel, per_image
from rad.diffusion.step import noised
from rad.sampling.state import State
from rad.sampling.task import Task

Space = Literal["latent", "pixels"]
"""Where known values are compared: what the model works on, or the pixels that its decoder makes of it."""


DataStep = Literal["gradient", "project"]


def predicted_noise(x: Tensor, x0: Tensor, now: NoiseLevel) -> Tensor:
    """e = (x - a x0) / s for x, x0 (B,C,H,W); 0 where a pixel holds no noise."""
    s = now.sigma
    on_x = torch.where(s > 0, 1 / s.clamp(min=torch.finfo(s.dtype).tiny), 0.0)
    return now.spread(on_x.to(x.dtype)) * (x - now.alpha_map(x) * x0)


def known_at(state: State, level: NoiseLevel) -> Tensor:
    """The known image at `level`, a y + s n with fresh noise; y itself, and no draw, at the clean level."""
    return drawn_at(state, state.task.known, level)


def drawn_at(state: State, x0: Tensor, level: NoiseLevel) -> Tensor:
    """x0 (B,C,H,W) at `level`, a x0 + s n with fresh noise; x0 itself, and no draw, at the clean level."""
    return noised(x0, level, noise=state.draw()) if bool((level.sigma > 0).any()) else x0


def replace_known(state: State, x: Tensor, level: NoiseLevel) -> Tensor:
    """hole x + known (a y + s n): x (B,C,H,W) at `level` with the known pixels overwritten."""
    return torch.lerp(known_at(state, level), x, state.task.hole)


def residual(task: Task, x0: Tensor) -> Tensor:
    """What x0 (B,C,H,W) lacks on known pixels: (1 - hole)(known image - x0)."""
    return (1 - task.hole) * (task.known - x0)


def observation_residual(task: Task, x0: Tensor, space: Space) -> Tensor:
    """What x0 (B,C,H,W) lacks: `residual` in "latent"; in "pixels" that of its image, (B,3,H,W). For PIXELS the same."""
    if space == "latent":
        return residual(task, x0)
    return (1 - task.image_hole) * (task.image - task.autoencoder.decode(x0))


def squared_misfit(task: Task, x0: Tensor, space: Space) -> Tensor:
    """(B,) |r|^2 of what x0 lacks; in "pixels" times numbers in x0 over numbers in its image, so that it weighs the same."""
    missing = observation_residual(task, x0, space)
    return x0[0].numel() / missing[0].numel() * squared_norm(missing)


def data_gradient(task: Task, x0: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """Where known values pull x0 (B,C,H,W): J^T r, with r what it lacks and J the Jacobian of the decoder (none: "latent").

    For a hole of 0 and 1 it is minus the gradient of |r|^2 / 2. The network is not called.

    Returns:
        J^T r (B,C,H,W), and r.
    """
    if space == "latent":
        missing = residual(task, x0)
        return missing, missing
    # The loop of a method that does not differentiate the network makes inference tensors, which no gradient may need.
    with torch.inference_mode(False), torch.enable_grad():
        at = x0.detach().clone().requires_grad_()
        decoded = task.autoencoder.decode(at)
        missing = (1 - task.image_hole) * (task.image - decoded.detach())
        return torch.autograd.grad(decoded, at, missing)[0], missing


def polyak_step(change: Tensor, square: Tensor) -> Tensor:
    """(B,) the multiple of a `data_gradient` that would bring a linear misfit to zero: 1 in latents of a hard mask.

    Polyak's step (Introduction to Optimization, 1987): square / |change|^2.
    """
    length = squared_norm(change)
    return square / length.clamp(min=torch.finfo(length.dtype).tiny)


def descend(task: Task, x0: Tensor, space: Space, *, rate: float, count: int) -> Tensor:
    """x0 (B,C,H,W) after `count` steps of `rate` down the gradient of the norm of what it lacks, none beyond its `polyak_step`.

    In latents a step moves an image by `rate` in norm, until nothing is lacking.
    """
    for _ in range(count):
        change, missing = data_gradient(task, x0, space)
        square = squared_norm(missing)
        x0 = x0 + per_image(torch.minimum(rate / (square + 1e-12).sqrt(), polyak_step(change, square))) * change
    return x0


def data_consistency(task: Task, x0: Tensor, dc: DataStep, space: Space, *, rate: float, count: int) -> Tensor:
    """x0 (B,C,H,W) brought to the known image: by `descend`, or with known pixels put in their place ("project")."""
    if dc == "project":
        return torch.lerp(task.known, x0, task.hole)
    return descend(task, x0, space, rate=rate, count=count)


def require_space(dc: DataStep, space: Space) -> None:
    """Raises ValueError for known pixels that would be put in their place in "pixels", which a latent model does not hold."""
    if dc == "project" and space == "pixels":
        raise ValueError("dc is 'project', which is done in latents: leave space at 'latent', or use dc='gradient'")


def known_mean(task: Task) -> Tensor:
    """(B,C,1,1) the mean colour of the known pixels of each image; 0, mid-grey, where nothing is known."""
    known = 1 - task.hole
    return (known * task.known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1e-12)


def skip_levels(times: list[float], part: float) -> list[float]:
    """A plan without its noisiest levels: without `part` of its steps, in [0,1), rounded down."""
    return times[int(part * (len(times) - 1) + 1e-9) :]


def warm_start(state: State) -> Tensor:
    """a (known y + hole f) + s n, with f the mean of the known values; for a plan that begins after the noisiest level.

    `state.x` is a y + s n already, with y 0 in the hole.
    """
    known = state.task.known
    return state.x + state.now.alpha_map(known) * state.task.hole * (known_mean(state.task) - known)


def squared_norm(values: Tensor) -> Tensor:
    """(B,) the sum of squares of each image."""
    return values.flatten(1).square().sum(1)


def norm(values: Tensor) -> Tensor:
    """(B,) Euclidean norm of each image, with a finite gradient (zero) where the image is zero."""
    return (squared_norm(values) + 1e-12).sqrt()


def flow_time(noise: NoiseLevel) -> Tensor:
    """kappa = s / (a + s), (B,K) float64: the time of a flow at the same ratio of noise to signal, where a + s = 1."""
    return noise.sigma / (noise.alpha + noise.sigma)


def vp_scale(noise: NoiseLevel, like: Tensor) -> Tensor:
    """c = sqrt(a^2 + s^2) as a map: 1 for variance-preserving levels; x / c is x in variance-preserving units.

    A shift -zeta grad_x of the papers, in their variance-preserving units, is -zeta c_t c_u grad in ours: gradient at
    level t, shift at level u.
    """
    return noise.spread((noise.alpha.square() + noise.sigma.square()).sqrt().to(like.dtype))
