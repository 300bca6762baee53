"""RAD's mathematics as pure functions of tensors: noise levels, processes, one reverse step, solvers, losses.

    paper       code                         meaning
    m           NoiseRegions.values          mask value in [0,1], 1 = fill
    a           NoiseLevel.alpha             signal amplitude: x = a x0 + s e
    s           NoiseLevel.sigma             noise amplitude
    abar_t      alpha ** 2                   in variance-preserving processes, where a^2 + s^2 = 1
    bbar_t      sigma ** 2                   1 - abar_t
    t           t                            step of the process, 0 = least noise, CLEAN = -1; u: the next t of a sampler
    tau         NoiseLevel.timesteps         the network's input for a level, possibly fractional
    K           alpha.shape[1]               distinct levels of an image
    T1, 2 T1    sampled_steps, steps         steps of phase 1, and of both phases
    A_t         exp(RegionAware.log_A)       DDPM's cumulative product of 1 - beta; its last value is 1 - nu
    G_t         fraction                     log A_t / log(1 - nu)
    a', s'      nxt.alpha, nxt.sigma         amplitudes at u
    b           StepLevels.b                 s^2 - (a / a')^2 s'^2, variance of the forward step u -> t
    b s'^2/s^2  StepLevels.posterior         variance of q(x_u | x_t, x_0)
    x_0, e      Denoised.x0, eps             estimate of the clean image, noise
    eta         eta                          1: DDPM, 0: DDIM
    lambda      log(alpha / sigma)           half the log signal-to-noise ratio

Images are (B,C,H,W) in [-1,1]. Coefficients are computed in float64 for the K levels of an image, then gathered for pixels.

Example:
    process = RegionAware(linear_betas())                     # the schedule of every pixel, by its mask value
    regions = NoiseRegions.from_mask(hole)                    # hole (B,1,H,W) in [0,1], 1 = fill
    now, nxt = process.noise(t, regions), process.noise(t - 1, regions)
    x = noised(x0, now, noise=eps)                            # x = alpha x0 + sigma eps
    x = reverse_step(x, denoiser.denoise(x, now), now, nxt, noise=eps)
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.diffusion.denoiser import Denoiser, EDMDenoiser, TextDenoiser, UNetDenoiser
    from rad.diffusion.gaussian import GaussianDenoiser, MixtureDenoiser
    from rad.diffusion.levels import CLEAN, NoiseLevel, NoiseRegions
    from rad.diffusion.losses import Losses, hybrid_loss
    from rad.diffusion.processes import (
        EDM,
        Bands,
        Flow,
        PerPixel,
        Process,
        RegionAware,
        RegionAwareFlow,
        Uniform,
        region_aware,
    )
    from rad.diffusion.schedules import karras_sigmas, linear_betas, shifted_sigmas
    from rad.diffusion.solvers import Solver, multistep
    from rad.diffusion.spacings import Spacing, sampling_timesteps, spaced_timesteps, time_travel
    from rad.diffusion.step import Denoised, Prediction, noised, posterior_mean, renoise, reverse_step

__all__ = [
    "CLEAN",
    "EDM",
    "Bands",
    "Denoised",
    "Denoiser",
    "EDMDenoiser",
    "Flow",
    "GaussianDenoiser",
    "Losses",
    "MixtureDenoiser",
    "NoiseLevel",
    "NoiseRegions",
    "PerPixel",
    "Prediction",
    "Process",
    "RegionAware",
    "RegionAwareFlow",
    "Solver",
    "Spacing",
    "TextDenoiser",
    "UNetDenoiser",
    "Uniform",
    "hybrid_loss",
    "karras_sigmas",
    "linear_betas",
    "multistep",
    "noised",
    "posterior_mean",
    "region_aware",
    "renoise",
    "reverse_step",
    "sampling_timesteps",
    "shifted_sigmas",
    "spaced_timesteps",
    "time_travel",
]

__getattr__ = lazy_names(
    __name__,
    {
        "denoiser": "Denoiser EDMDenoiser TextDenoiser UNetDenoiser",
        "gaussian": "GaussianDenoiser MixtureDenoiser",
        "levels": "CLEAN NoiseLevel NoiseRegions",
        "losses": "Losses hybrid_loss",
        "processes": "EDM Bands Flow PerPixel Process RegionAware RegionAwareFlow Uniform region_aware",
        "schedules": "karras_sigmas linear_betas shifted_sigmas",
        "solvers": "Solver multistep",
        "spacings": "Spacing sampling_timesteps spaced_timesteps time_travel",
        "step": "Denoised Prediction noised posterior_mean renoise reverse_step",
    },
)
