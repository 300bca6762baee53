"""One reverse or forward step without torch: `rad.diffusion.step` and DPM-Solver++(2M) of `rad.diffusion.solvers` in NumPy.

Equations and symbols are given there. Coefficients are (B,K) float64; images are (B,C,H,W) float32 in [-1,1].
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rad.runtime.sampling.process import Doubles, Floats, NoiseLevel


@dataclass(frozen=True)
class Denoised:
    """Estimate x0 (B,C,H,W) of the clean image, and the learned variance in [0,1] of the same shape, or None."""

    x0: Floats
    variance_fraction: Floats | None = None


Prediction = Literal["epsilon", "sample", "v_prediction"]


def denoised(x: Floats, output: Floats, now: NoiseLevel, prediction: Prediction) -> Floats:
    """Convert the network's `output` (B,C,H,W) at x (B,C,H,W) = a x0 + s e into x0."""
    if prediction == "sample":
        return output
    a, s = now.spread(now.alpha), now.spread(now.sigma)
    return (x - s * output) / a if prediction == "epsilon" else a * x - s * output


def reverse_step(
    x: Floats, estimate: Denoised, now: NoiseLevel, nxt: NoiseLevel, *, eta: float, noise: Floats | None
) -> Floats:
    """DDPM (eta 1) to DDIM (eta 0) step from `now` to the less noisy `nxt`; noise None: eta has to be 0, or `nxt` clean."""
    b, posterior = _step_variances(now, nxt)
    deviation = eta * np.sqrt(posterior)
    on_e = np.sqrt(np.maximum(nxt.sigma**2 - deviation**2, 0)) / _positive(now.sigma)  # multiplies x - a x0 = s e
    on_x0 = nxt.alpha - on_e * now.alpha
    stepped = now.spread(on_x0) * estimate.x0 + now.spread(on_e) * x
    if noise is not None and eta > 0:
        spread = now.spread(deviation)
        if estimate.variance_fraction is not None:
            low = np.log(np.maximum(np.where(nxt.sigma > 0, posterior, b / 2), 1e-20))
            span = np.log(np.maximum(b, 1e-20)) - low
            log_variance = now.spread(low) + estimate.variance_fraction * now.spread(span)
            spread = np.where(spread > 0, np.float32(eta) * np.exp(np.float32(0.5) * log_variance), np.float32(0))
        stepped = stepped + spread * noise
    return _where_changed(x, stepped, now, nxt)


@dataclass(frozen=True)
class History:
    """The previous step: its estimate `x0`, and `h` (B,K), its increase of log(a / s)."""

    x0: Floats
    h: Doubles


@dataclass(frozen=True)
class Weights:
    """Coefficients of a DPM-Solver++(2M) step, (B,K) float64: for x, x0, the previous x0 and the fresh noise."""

    x: Doubles
    x0: Doubles
    before: Doubles
    noise: Doubles
    h: Doubles


def multistep_weights(now: NoiseLevel, nxt: NoiseLevel, h_before: Doubles | None, *, eta: float) -> Weights:
    """Coefficients of the step from `now` to the less noisy `nxt`. `h_before` (B,K) is None in the first step."""
    s = _positive(now.sigma)
    shrink = now.alpha * nxt.sigma / (nxt.alpha * s)  # exp(-h); 0 for a step to the clean level
    with np.errstate(divide="ignore"):
        h = np.where(now.unchanged(nxt), 0.0, -np.log(shrink))
    on_x, left = nxt.sigma / s, shrink
    if eta:
        on_x, left = on_x * shrink, shrink**2
    on_x0 = nxt.alpha * (1 - left)
    extra = np.zeros_like(h)
    if h_before is not None:
        second = (h_before > 0) & np.isfinite(h)
        extra[second] = h[second] / (2 * h_before[second])
    noise = nxt.sigma * np.sqrt(np.maximum(1 - left, 0)) if eta else np.zeros_like(h)
    return Weights(on_x, on_x0 * (1 + extra), -on_x0 * extra, noise, h)


def multistep(
    x: Floats,
    x0: Floats,
    now: NoiseLevel,
    nxt: NoiseLevel,
    *,
    before: History | None,
    eta: float,
    noise: Floats | None,
) -> tuple[Floats, History]:
    """DPM-Solver++(2M) step from x to the less noisy `nxt`; eta 0 (ODE) or 1 (SDE), which needs noise above the clean level."""
    each = multistep_weights(now, nxt, None if before is None else before.h, eta=eta)
    stepped = now.spread(each.x) * x + now.spread(each.x0) * x0
    if before is not None:
        stepped = stepped + now.spread(each.before) * before.x0
    if noise is not None and eta:
        stepped = stepped + now.spread(each.noise) * noise
    return _where_changed(x, stepped, now, nxt), History(x0, each.h)


def renoise(x: Floats, now: NoiseLevel, nxt: NoiseLevel, *, noise: Floats) -> Floats:
    """Forward step from `now` to the noisier `nxt`."""
    ratio = nxt.alpha / now.alpha
    added = np.sqrt(np.maximum(nxt.sigma**2 - (ratio * now.sigma) ** 2, 0))
    return _where_changed(x, now.spread(ratio) * x + now.spread(added) * noise, now, nxt)


def noised(x0: Floats, level: NoiseLevel, *, noise: Floats) -> Floats:
    """x = a x0 + s noise."""
    return level.spread(level.alpha) * x0 + level.spread(level.sigma) * noise


def _step_variances(now: NoiseLevel, nxt: NoiseLevel) -> tuple[Doubles, Doubles]:
    """b of the forward step and b s'^2 / s^2 of the posterior, (B,K); exactly 0 for unchanged levels."""
    b = np.maximum(now.sigma**2 - (now.alpha / nxt.alpha * nxt.sigma) ** 2, 0)
    b = np.where(now.unchanged(nxt), 0.0, b)
    return b, b * nxt.sigma**2 / _positive(now.sigma**2)


def _where_changed(x: Floats, stepped: Floats, now: NoiseLevel, nxt: NoiseLevel) -> Floats:
    return np.where(now.spread(now.unchanged(nxt).astype(np.float64)) > 0, x, stepped)


def _positive(values: Doubles) -> Doubles:
    return np.where(values > 0, values, 1.0)  # clean pixels never change, so any value may replace their 0
