"""One reverse or forward step between any two noise levels. eta interpolates from DDIM (0) to DDPM (1).

With x_t = a x_0 + s e, x_u = a' x_0 + s' e' and r = a / a', b = s^2 - r^2 s'^2 (the variance added by the step t <- u):

    q(x_u | x_t, x_0) = N( (a' b / s^2) x_0 + (r s'^2 / s^2) x_t,  b s'^2 / s^2 )

DDIM's family (Song et al. 2021, arXiv 2010.02502, eq. 12, 16) has sigma = eta sqrt(b) s' / s; eta = 1 gives q.
A pixel with b = 0 does not change. The symbols are listed in `rad.diffusion`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel


@dataclass(frozen=True)
class Denoised:
    """The estimate of a denoiser.

    Example:
        >>> from rad.diffusion import Uniform, linear_betas
        >>> process = Uniform(linear_betas())
        >>> now, nxt = process.noise(torch.tensor([999]), None), process.noise(torch.tensor([-1]), None)
        >>> estimate = Denoised(torch.full((1, 3, 2, 2), 0.5))
        >>> reverse_step(torch.randn(1, 3, 2, 2), estimate, now, nxt).unique().tolist()  # a step to the clean level
        [0.5]

    Args:
        x0: (B,C,H,W) estimate of the clean image.
        variance_fraction: (B,C,H,W) in [0,1], the learned variance: 0 the posterior's, 1 the forward step's, logarithmic between
            (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15). None: the posterior's.
    """

    x0: Tensor
    variance_fraction: Tensor | None = None


Prediction = Literal["epsilon", "sample", "v_prediction", "velocity"]
"""A network's output: e; x0; v = a e - s x0 (Salimans & Ho 2022, arXiv 2202.00512); a flow's velocity e - x0, a = 1 - s."""


def denoised(x: Tensor, output: Tensor, now: NoiseLevel, prediction: Prediction) -> Tensor:
    """Convert the network's `output` (B,C,H,W) at x (B,C,H,W) = a x0 + s e into x0 (B,C,H,W)."""
    if prediction == "sample":
        return output
    a, s = now.alpha_map(x), now.sigma_map(x)
    if prediction == "epsilon":
        return (x - s * output) / a
    return x - s * output if prediction == "velocity" else a * x - s * output


@dataclass(frozen=True)
class StepLevels:
    """Variances of one step, (B,K) float64: `b` of the forward step, `posterior` = b s'^2 / s^2."""

    b: Tensor
    posterior: Tensor


def step_levels(now: NoiseLevel, nxt: NoiseLevel) -> StepLevels:
    """Variances of the step from `now` to the less noisy `nxt`; exactly 0 for unchanged levels."""
    ratio = now.alpha / nxt.alpha
    b = (now.sigma.square() - (ratio * nxt.sigma).square()).clamp(min=0)
    b = torch.where(unchanged(now, nxt), 0.0, b)
    return StepLevels(b, b * nxt.sigma.square() / _positive(now.sigma.square()))


def posterior_mean(x: Tensor, x0: Tensor, now: NoiseLevel, nxt: NoiseLevel) -> Tensor:
    """Mean of q(x_u | x_t, x_0) for x, x0 (B,C,H,W). Pixels with an unchanged level keep x, bit for bit."""
    b = step_levels(now, nxt).b
    variance = _positive(now.sigma.square())
    on_x0 = nxt.alpha * b / variance
    on_x = now.alpha / nxt.alpha * nxt.sigma.square() / variance
    mean = now.spread(on_x0.to(x.dtype)) * x0 + now.spread(on_x.to(x.dtype)) * x
    return torch.where(now.spread(unchanged(now, nxt)), x, mean)


def log_variance(fraction: Tensor, now: NoiseLevel, nxt: NoiseLevel) -> Tensor:
    """Learned log variance f log b + (1 - f) log posterior, (B,C,H,W), both clamped at 1e-20.

    A step to the clean level has b / 2 for its posterior variance of 0. ADM uses the previous step's, 0.55 b.
    """
    levels = step_levels(now, nxt)
    low = torch.where(nxt.sigma > 0, levels.posterior, levels.b / 2).clamp(min=1e-20).log()
    span = levels.b.clamp(min=1e-20).log() - low
    return now.spread(low.to(fraction.dtype)) + fraction * now.spread(span.to(fraction.dtype))


def reverse_step(
    x: Tensor, estimate: Denoised, now: NoiseLevel, nxt: NoiseLevel, *, eta: float = 1.0, noise: Tensor | None = None
) -> Tensor:
    """Step from x (B,C,H,W) at `now` to the less noisy `nxt`. Pixels with an unchanged level are bit-identical.

    Args:
        eta: 1 is DDPM, with the learned variance if there is one; 0 is DDIM. Between: DDIM's mean, eta times DDPM's noise.
        noise: (B,C,H,W) standard normal. Raises ValueError if it is missing, unless eta is 0 or `nxt` is clean.
    """
    levels = step_levels(now, nxt)
    s = _positive(now.sigma)
    sigma = eta * levels.posterior.sqrt()
    on_e = (nxt.sigma.square() - sigma.square()).clamp(min=0).sqrt() / s  # multiplies x - a x0 = s e
    on_x0 = nxt.alpha - on_e * now.alpha
    stepped = now.spread(on_x0.to(x.dtype)) * estimate.x0 + now.spread(on_e.to(x.dtype)) * x
    if noise is not None and eta > 0:
        if estimate.variance_fraction is None:
            deviation = now.spread(sigma.to(x.dtype))
        else:
            learned = torch.exp(0.5 * log_variance(estimate.variance_fraction, now, nxt))
            deviation = torch.where(now.spread(sigma > 0), eta * learned, 0.0)
        stepped = stepped + deviation * noise
    elif eta > 0 and bool((sigma > 0).any()):
        raise ValueError(
            f"noise is None; a step above the clean level with eta = {eta} needs noise of shape {tuple(x.shape)}"
        )
    return torch.where(now.spread(unchanged(now, nxt)), x, stepped)


def renoise(x: Tensor, now: NoiseLevel, nxt: NoiseLevel, *, noise: Tensor) -> Tensor:
    """Forward step from `now` to the noisier `nxt`: (a'/a) x + sqrt(s'^2 - (a'/a)^2 s^2) noise; all (B,C,H,W)."""
    ratio = nxt.alpha / now.alpha
    added = (nxt.sigma.square() - (ratio * now.sigma).square()).clamp(min=0).sqrt()
    moved = now.spread(ratio.to(x.dtype)) * x + now.spread(added.to(x.dtype)) * noise
    return torch.where(now.spread(unchanged(now, nxt)), x, moved)


def noised(x0: Tensor, level: NoiseLevel, *, noise: Tensor) -> Tensor:
    """x = a x0 + s noise, all (B,C,H,W)."""
    return level.alpha_map(x0) * x0 + level.sigma_map(x0) * noise


def unchanged(now: NoiseLevel, nxt: NoiseLevel) -> Tensor:
    """(B,K) bool: levels equal before and after a step."""
    return (now.alpha == nxt.alpha) & (now.sigma == nxt.sigma)


def _positive(values: Tensor) -> Tensor:
    # Clean pixels never change, so any value may replace their 0, which would give NaN.
    return torch.where(values > 0, values, 1.0)
