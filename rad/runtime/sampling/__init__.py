"""The reverse loop of `rad.sampling` in NumPy, for a network behind the protocol `Network`. Loads no torch.

Example:
    process = RegionAware(betas)                              # (T,) float64
    sampler = Sampler(process, RAD(), **vars(RAD().choose(steps=20)))
    denoiser = Denoiser(network, "epsilon")                   # network(sample, timesteps, levels) -> output
    x = sampler(denoiser, image, hole, noise=KeyedNoise(seed, ["image 0"], [0]))
"""

from rad.runtime.sampling.denoiser import Denoiser, Network
from rad.runtime.sampling.methods import RAD, RePaint
from rad.runtime.sampling.noise import KeyedNoise
from rad.runtime.sampling.process import RegionAware, Uniform
from rad.runtime.sampling.sampler import Sampler

__all__ = ["RAD", "Denoiser", "KeyedNoise", "Network", "RePaint", "RegionAware", "Sampler", "Uniform"]
