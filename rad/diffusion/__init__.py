"""RAD's mathematics, as pure functions of tensors: noise levels, processes, one reverse step, losses.

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
