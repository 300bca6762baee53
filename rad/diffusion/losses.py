"""The hybrid loss L = mean (eps - eps_theta)^2 + vlb_weight * L_vlb for per-pixel noise levels (iDDPM: Nichol & Dhariwal 2021,
arXiv 2102.09672).

L_vlb compares the true step q(x_u | x_t, x_0) with the model's, in bits, and trains the variance alone. Per pixel it is

    0                           if the level does not change,
    -log p(x_0), 8-bit values   if the step ends at the clean level,
    the KL divergence           otherwise.

This covers both ends of RAD's two phases. Networks that predict v or a velocity have no variational term.

Each squared error is the error of x0 times a factor in the signal-to-noise ratio SNR = a^2 / s^2:

    epsilon: SNR     v_prediction: SNR + 1     velocity: 1 / s^2

For every prediction, `timestep_weight` replaces this factor by

    "min_snr":        min(SNR, gamma)           Hang et al. 2023, arXiv 2303.09556, gamma = 5
    "truncated_snr":  max(SNR, 1)               Salimans & Ho 2022, arXiv 2202.00512, section 4
    "p2":             SNR / (1 + SNR)^gamma     Choi et al. 2022, arXiv 2204.00227, k = 1, gamma = 1
    "debiased":       sqrt(SNR)                 Yu et al. 2023, arXiv 2310.08442: 1 / sqrt(SNR) times the error of eps
    "edm":            SNR + 1 / sigma_data^2    Karras et al. 2022, arXiv 2206.00364, table 1, sigma_data = 0.5
    "surroundings":   as "edm", with a sigma_data for each pixel, from the known pixels around it
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.step import Prediction, log_variance, posterior_mean, step_levels

LossRegion = Literal["all", "noisy", "moving"]
TimestepWeight = Literal["none", "min_snr", "truncated_snr", "p2", "debiased", "edm", "surroundings"]
VlbBoundary = Literal["nll", "zero"]
GAMMAS: dict[str, float] = {"min_snr": 5.0, "p2": 1.0}
"""The papers' gamma, for the weights that have one."""

SIGMA_DATA = 0.5
"""EDM's standard deviation of the data."""

LEAST_SIGMA_DATA = 0.07
"""Added in quadrature to the deviation of the surroundings, which limits the weight of pixels that these do not predict."""


@dataclass(frozen=True)
class Losses:
    """Squared error, variational term in bits (0 without a learned variance), and their weighted sum; each (B,)."""

    simple: Tensor
    vlb: Tensor
    total: Tensor


def hybrid_loss(
    output: Tensor,
    *,
    x0: Tensor,
    x: Tensor,
    eps: Tensor,
    now: NoiseLevel,
    previous: NoiseLevel,
    vlb_weight: float = 1e-3,
    vlb_boundary: VlbBoundary = "nll",
    loss_region: LossRegion = "all",
    weight_limit: float = 1.0,
    timestep_weight: TimestepWeight = "none",
    gamma: float | None = None,
    prediction: Prediction = "epsilon",
    deviation: Tensor | None = None,
    pixels: Tensor | None = None,
) -> Losses:
    """Loss of each image.

    Args:
        output: the network's, (B,C,H,W), or (B,2C,H,W) with a learned variance; x0, x, eps: (B,C,H,W), with x = a x0 + s eps.
        now, previous: noise levels of x and of the next reverse step's result.
        vlb_weight: weight of the variational term. Official RAD code: 1e-3; iDDPM: 1.0.
        vlb_boundary: "nll": the rule above. "zero" (official): no variational term for images with a pixel that becomes clean.
        loss_region: pixels of the squared error. "all" (official); "noisy"; "moving": changing level (TD-Paint: the hole).
        weight_limit: upper limit of the weight 1 + 1/SNR = 1/a^2, as in v-prediction (Salimans & Ho 2022). 1 (official): no
            weight. About 100 helps a short training, whose colours at high noise depend on small errors of eps.
        timestep_weight: see above; "none": 1. gamma: of "min_snr" and "p2"; None: the paper's.
        prediction: see `target`. `weight_limit` and the variational term support "epsilon" alone.
        deviation: (B,1,H,W), of `timestep_weight` "surroundings".
        pixels: (B,1,H,W) of 0 and 1, the pixels that count in both terms; None: those of `loss_region`, and all.
    """
    channels = x0.shape[1]
    error = (target(prediction, x0=x0, eps=eps, now=now) - output[:, :channels]).square()
    if prediction == "epsilon":
        # error of v = (error of eps) / a
        error = now.spread((1 / now.alpha.square()).clamp(max=weight_limit).to(x.dtype)) * error
    else:
        assert weight_limit == 1
        assert output.shape[1] == channels
    if timestep_weight != "none":
        error = _weight_map(timestep_weight, now, prediction, gamma=gamma, deviation=deviation).to(x.dtype) * error
    if pixels is None and loss_region != "all":
        chosen = now.sigma_map() > 0 if loss_region == "noisy" else now.spread(step_levels(now, previous).b > 0)
        simple = _mean(error, chosen.expand(-1, 1, *x.shape[2:]).to(error.dtype))
    else:
        simple = _mean(error, pixels)
    if output.shape[1] == channels:
        return Losses(simple, torch.zeros_like(simple), simple)
    exact = output.to(torch.promote_types(output.dtype, torch.float32))
    bits = variational_bits(exact, x0=x0, x=x, now=now, previous=previous)
    vlb = _mean(bits, pixels)
    if vlb_boundary == "zero":
        vlb = torch.where(_ends_clean(now, previous).any(1), torch.zeros_like(vlb), vlb)
    return Losses(simple, vlb, simple + vlb_weight * vlb)


def _mean(values: Tensor, pixels: Tensor | None) -> Tensor:
    """Mean of values (B,C,H,W) over `pixels` (B,1,H,W) of 0 and 1: (B,). None: over all; 0 for an image without any."""
    if pixels is None:
        return values.mean((1, 2, 3))
    return (values * pixels).sum((1, 2, 3)) / (values.shape[1] * pixels.sum((1, 2, 3))).clamp(min=1)


def target(prediction: Prediction, *, x0: Tensor, eps: Tensor, now: NoiseLevel) -> Tensor:
    """Training target, (B,C,H,W): eps; v = a eps - s x0 (Salimans & Ho 2022); a flow's velocity eps - x0."""
    if prediction == "epsilon":
        return eps
    if prediction == "velocity":
        return eps - x0
    return now.alpha_map(x0) * eps - now.sigma_map(x0) * x0


def _weight_map(
    kind: TimestepWeight, now: NoiseLevel, prediction: Prediction, *, gamma: float | None, deviation: Tensor | None
) -> Tensor:
    """Timestep weight of each pixel, (B,1,H,W) or (B,1,1,1)."""
    if kind != "surroundings":
        return now.spread(snr_weight(kind, now, prediction, gamma=gamma))
    assert deviation is not None
    snr = (now.alpha_map() / now.sigma_map().clamp(min=1e-8)).square()
    ratio = (snr + 1 / (deviation.square() + LEAST_SIGMA_DATA**2)) / (snr + 1 / SIGMA_DATA**2)
    return now.spread(snr_weight("edm", now, prediction)) * ratio


def snr_weight(kind: TimestepWeight, now: NoiseLevel, prediction: Prediction, *, gamma: float | None = None) -> Tensor:
    """Timestep weight of each level, (B,K) float64; 0 for clean levels. `kind`, `gamma`: see the top of this file."""
    a2, s2 = now.alpha.square(), now.sigma.square()
    noisy = s2 > 0
    s2 = torch.where(noisy, s2, 1.0)
    snr = a2 / s2
    gamma = GAMMAS.get(kind, 1.0) if gamma is None else gamma
    if kind == "none":
        weights = torch.ones_like(snr)
    elif kind == "min_snr":
        weights = snr.clamp(max=gamma)
    elif kind == "truncated_snr":
        weights = snr.clamp(min=1.0)
    elif kind == "p2":
        weights = snr / (1 + snr) ** gamma
    elif kind == "debiased":
        weights = snr.sqrt()
    else:
        weights = snr + 1 / SIGMA_DATA**2
    inherent = {"epsilon": snr, "v_prediction": snr + 1, "velocity": 1 / s2, "sample": torch.ones_like(snr)}[prediction]
    return torch.where(noisy, weights / inherent, 0.0)


def variational_bits(output: Tensor, *, x0: Tensor, x: Tensor, now: NoiseLevel, previous: NoiseLevel) -> Tensor:
    """Variational term of every value, (B,C,H,W), in bits. The predicted mean gets no gradient."""
    eps, raw = output.chunk(2, dim=1)
    a, s = now.alpha_map(x), now.sigma_map(x)
    predicted = (x - s * eps.detach()) / a
    fraction = (raw + 1) / 2
    levels = step_levels(now, previous)
    mean = posterior_mean(x, predicted, now, previous)
    log_var = log_variance(fraction, now, previous)
    true_mean = posterior_mean(x, x0, now, previous)
    true_log_var = now.spread(levels.posterior.clamp(min=1e-20).log().to(x.dtype))
    ends_clean = now.spread(_ends_clean(now, previous))
    # torch.where passes NaN gradients from the branch not taken, so its input is replaced by a finite one.
    kl = normal_kl(true_mean, torch.where(ends_clean, log_var.detach(), true_log_var.expand_as(log_var)), mean, log_var)
    nll = discretised_nll(x0, mean, 0.5 * log_var)
    bits = torch.where(ends_clean, nll, kl) / math.log(2)
    return torch.where(now.spread(levels.b > 0), bits, 0.0)


def normal_kl(mean: Tensor, log_var: Tensor, other_mean: Tensor, other_log_var: Tensor) -> Tensor:
    """KL( N(mean, exp log_var) || N(other_mean, exp other_log_var) ) elementwise, in nats."""
    spread = torch.exp(log_var - other_log_var) + (mean - other_mean).square() * torch.exp(-other_log_var)
    return 0.5 * (other_log_var - log_var - 1 + spread)


def discretised_nll(x0: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """-log P(8-bit value x0 in [-1,1]) under N(mean, exp(log_deviation)^2), in nats; the end bins are open."""
    inverse = torch.exp(-log_deviation)
    below = torch.special.ndtr((x0 - mean - 1 / 255) * inverse)
    above = torch.special.ndtr((x0 - mean + 1 / 255) * inverse)
    above = torch.where(x0 > 0.999, 1.0, above)
    below = torch.where(x0 < -0.999, 0.0, below)
    return -torch.log((above - below).clamp(min=1e-12))


def _ends_clean(now: NoiseLevel, previous: NoiseLevel) -> Tensor:
    return (previous.sigma == 0) & (now.sigma > 0)
