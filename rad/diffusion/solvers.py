"""Solvers of the reverse process: DDPM, DDIM, and per-pixel DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095).

With lambda = log(a / s), h = lambda_u - lambda_t for the step t -> u, and h_prev of the previous step:

    D   = x0_t + (h / (2 h_prev)) (x0_t - x0_before)
    x_u = (s_u / s_t) x_t - a_u (exp(-h) - 1) D                                                   ODE, eta = 0
    x_u = (s_u / s_t) exp(-h) x_t + a_u (1 - exp(-2h)) D + s_u sqrt(1 - exp(-2h)) noise           SDE, eta = 1

D is x0_t in the first step, in the last one (to the clean level), and for levels that the previous step left unchanged.
With D = x0_t these are the steps of DDIM and DDPM. Each of the K levels of an image has its own h.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.choices import DEFAULTS as DEFAULTS
from rad.diffusion.choices import Solver as Solver
from rad.diffusion.choices import check_solver as check_solver
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.step import unchanged


@dataclass(frozen=True)
class History:
    """The previous step: its estimate `x0` (B,C,H,W), and `h` (B,K), its increase of log(a / s), 0 for unchanged levels."""

    x0: Tensor
    h: Tensor


@dataclass(frozen=True)
class Weights:
    """Coefficients of a DPM-Solver++(2M) step, (B,K) float64: for x, x0, the previous x0 and the fresh noise."""

    x: Tensor
    x0: Tensor
    before: Tensor
    noise: Tensor
    h: Tensor


def weights(now: NoiseLevel, nxt: NoiseLevel, h_before: Tensor | None, *, eta: float) -> Weights:
    """Coefficients of the step from `now` to the less noisy `nxt`. `h_before` (B,K) is None in the first step."""
    same = unchanged(now, nxt)
    s = torch.where(now.sigma > 0, now.sigma, 1.0)  # clean levels do not change, so any positive value works
    shrink = now.alpha * nxt.sigma / (nxt.alpha * s)  # exp(-h); 0 for a step to the clean level
    h = torch.where(same, 0.0, -shrink.log())
    on_x, left = nxt.sigma / s, shrink
    if eta:
        on_x, left = on_x * shrink, shrink.square()
    on_x0 = nxt.alpha * (1 - left)
    extra = torch.zeros_like(h)
    if h_before is not None:
        second = (h_before > 0) & h.isfinite()
        extra = torch.where(second, h / (2 * torch.where(second, h_before, 1.0)), 0.0)
    noise = nxt.sigma * (1 - left).clamp(min=0).sqrt() if eta else torch.zeros_like(h)
    return Weights(on_x, on_x0 * (1 + extra), -on_x0 * extra, noise, h)


def multistep(
    x: Tensor,
    x0: Tensor,
    now: NoiseLevel,
    nxt: NoiseLevel,
    *,
    before: History | None,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> tuple[Tensor, History]:
    """DPM-Solver++(2M) step from x to the less noisy `nxt`. Unchanged levels stay bit-identical. A learned variance is ignored.

    Args:
        x, x0: (B,C,H,W); x0 is the estimate of the clean image at x.
        before: the second result of the previous step; None in the first step.
        eta: 0 (ODE) or 1 (SDE).
        noise: (B,C,H,W) standard normal. Raises ValueError if eta 1 lacks it, unless `nxt` is clean.
    """
    each = weights(now, nxt, None if before is None else before.h, eta=eta)
    stepped = now.spread(each.x.to(x.dtype)) * x + now.spread(each.x0.to(x.dtype)) * x0
    if before is not None:
        stepped = stepped + now.spread(each.before.to(x.dtype)) * before.x0
    if noise is not None and eta:
        stepped = stepped + now.spread(each.noise.to(x.dtype)) * noise
    elif eta and bool((each.noise > 0).any()):
        raise ValueError(
            f"noise is None; a step above the clean level with eta = {eta} needs noise of shape {tuple(x.shape)}"
        )
    return torch.where(now.spread(unchanged(now, nxt)), x, stepped), History(x0, each.h)
