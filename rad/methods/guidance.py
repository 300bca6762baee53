"""Formulas that methods share. Norms and losses are per image, so a result does not depend on its batch."""

from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel, per_image
from rad.diffusion.step import noised
from rad.sampling.state import State
from rad.sampling.task import Task

Space = Literal["latent", "pixels"]
"""Where known values are compared: in the model's space, or in the pixels that the decoder makes of it."""


DataStep = Literal["gradient", "project"]


def predicted_noise(x: Tensor, x0: Tensor, now: NoiseLevel) -> Tensor:
    """e = (x - a x0) / s for x, x0 (B,C,H,W); 0 for clean pixels."""
    s = now.sigma
    on_x = torch.where(s > 0, 1 / s.clamp(min=torch.finfo(s.dtype).tiny), 0.0)
    return now.spread(on_x.to(x.dtype)) * (x - now.alpha_map(x) * x0)


def noise_to(state: State, x0: Tensor, level: NoiseLevel) -> Tensor:
    """a x0 + s n at `level` with fresh n, (B,C,H,W); at the clean level x0, without a draw."""
    return x0 if state.is_clean(level) else noised(x0, level, noise=state.randn())


def known_at(state: State, level: NoiseLevel) -> Tensor:
    """The known image at `level`; see `noise_to`."""
    return noise_to(state, state.task.known, level)


def replace_known(state: State, x: Tensor, level: NoiseLevel) -> Tensor:
    """hole x + known (a y + s n), for x (B,C,H,W) at `level`."""
    return torch.lerp(known_at(state, level), x, state.task.hole)


def residual(task: Task, x0: Tensor) -> Tensor:
    """(1 - hole)(known image - x0), (B,C,H,W)."""
    return (1 - task.hole) * (task.known - x0)


def observation_residual(task: Task, x0: Tensor, space: Space) -> Tensor:
    """`residual` of x0 (B,C,H,W) in "latent"; in "pixels" that of the decoded image, (B,3,H,W). Pixel models: equal."""
    if space == "latent":
        return residual(task, x0)
    return (1 - task.image_hole) * (task.image - task.autoencoder.decode(x0))


def squared_misfit(task: Task, x0: Tensor, space: Space) -> Tensor:
    """(B,) squared norm of the residual. In "pixels" it is scaled by values in x0 / values in the image, for equal weight."""
    difference = observation_residual(task, x0, space)
    return x0[0].numel() / difference[0].numel() * squared_norm(difference)


def data_gradient(task: Task, x0: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """J^T r (B,C,H,W), and the residual r. J is the decoder's Jacobian, the identity in "latent". The network is not called.

    For a binary hole J^T r is minus the gradient of |r|^2 / 2.
    """
    if space == "latent":
        difference = residual(task, x0)
        return difference, difference
    # Methods without a network gradient run in inference mode, whose tensors support no gradient.
    with torch.inference_mode(False), torch.enable_grad():
        at = x0.detach().clone().requires_grad_()
        decoded = task.autoencoder.decode(at)
        difference = (1 - task.image_hole) * (task.image - decoded.detach())
        return torch.autograd.grad(decoded, at, difference)[0], difference


def data_shift(state: State, loss: Tensor, *, rate: float | Tensor = 1.0) -> Tensor:
    """rate c_t c_u grad_x_t loss (B,), with c of `vp_scale`: the papers' shift of x_u, through the network. 1 VJP."""
    gradient = state.denoiser.gradient(loss, state.x)
    return rate * vp_scale(state.now, gradient) * vp_scale(state.next, gradient) * gradient


def polyak_step(change: Tensor, square: Tensor) -> Tensor:
    """square / |change|^2, (B,): the multiple of a `data_gradient` that brings a linear misfit to 0 (Polyak 1987).

    It is 1 for latents and a binary hole. `change` is J^T r, (B,C,H,W); `square` is |r|^2, (B,).
    """
    length = squared_norm(change)
    return square / length.clamp(min=torch.finfo(length.dtype).tiny)


def descend(task: Task, x0: Tensor, space: Space, *, rate: float, count: int) -> Tensor:
    """x0 (B,C,H,W) after `count` steps down the residual's norm: length `rate` (in latents), at most `polyak_step`."""
    for _ in range(count):
        change, difference = data_gradient(task, x0, space)
        square = squared_norm(difference)
        x0 = x0 + per_image(torch.minimum(rate / (square + 1e-12).sqrt(), polyak_step(change, square))) * change
    return x0


def data_consistency(task: Task, x0: Tensor, dc: DataStep, space: Space, *, rate: float, count: int) -> Tensor:
    """x0 (B,C,H,W) moved towards the known image: by `descend`, or by replacing known pixels ("project")."""
    if dc == "project":
        return torch.lerp(task.known, x0, task.hole)
    return descend(task, x0, space, rate=rate, count=count)


def require_space(dc: DataStep, space: Space) -> None:
    """Raise ValueError for a projection that would be done in pixels."""
    if dc == "project" and space == "pixels":
        raise ValueError("dc is 'project', which is done in latents: leave space at 'latent', or use dc='gradient'")


def known_mean(task: Task) -> Tensor:
    """(B,C,1,1) mean colour of the known pixels of each image; 0 (mid-grey) if there are none."""
    known = 1 - task.hole
    return (known * task.known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1e-12)


def skip_levels(timesteps: list[float], fraction: float) -> list[float]:
    """Timesteps without the noisiest `fraction` of steps, in [0,1), rounded down."""
    return timesteps[int(fraction * (len(timesteps) - 1) + 1e-9) :]


def warm_start(state: State) -> Tensor:
    """a (known y + hole f) + s n, with f the mean of the known values; `state.x` is a y + s n, with y = 0 in the hole."""
    known = state.task.known
    return state.x + state.now.alpha_map(known) * state.task.hole * (known_mean(state.task) - known)


def squared_norm(values: Tensor) -> Tensor:
    """(B,) sum of squares of each image."""
    return values.flatten(1).square().sum(1)


def norm(values: Tensor) -> Tensor:
    """(B,) Euclidean norm of each image, with gradient 0 at 0."""
    return (squared_norm(values) + 1e-12).sqrt()


def flow_time(noise: NoiseLevel) -> Tensor:
    """kappa = s / (a + s), (B,K) float64: the time of a flow (a + s = 1) with the same signal-to-noise ratio."""
    return noise.sigma / (noise.alpha + noise.sigma)


def vp_scale(noise: NoiseLevel, like: Tensor) -> Tensor:
    """c = sqrt(a^2 + s^2) as a map; 1 for variance-preserving levels. x / c has variance-preserving units.

    A shift -zeta grad_x of the papers, in these units, is -zeta c_t c_u grad in ours: gradient at t, shift at u.
    """
    return noise.spread((noise.alpha.square() + noise.sigma.square()).sqrt().to(like.dtype))
