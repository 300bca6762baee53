"""The reverse loop, and the interface of the methods that act between its steps.

Example:
    sampler = Sampler(RegionAware(betas), steps=100)
    task = Task.from_image(image, hole)                       # image (B,C,H,W) in [-1,1], hole (B,1,H,W), 1 = fill
    with KeyedNoise(seed, ["image 0"]) as noise:
        filled = sampler(denoiser, task, noise=noise).image   # known pixels equal the input's
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.sampling.method import CustomSampler, Method, SamplingMethod, setting
    from rad.sampling.sampler import Sample, Sampler
    from rad.sampling.state import Cost, CountedDenoiser, RunContext, State
    from rad.sampling.task import Task

__all__ = [
    "Cost",
    "CountedDenoiser",
    "CustomSampler",
    "Method",
    "RunContext",
    "Sample",
    "Sampler",
    "SamplingMethod",
    "State",
    "Task",
    "setting",
]

__getattr__ = lazy_names(
    __name__,
    {
        "method": "CustomSampler Method SamplingMethod setting",
        "sampler": "Sample Sampler",
        "state": "Cost CountedDenoiser RunContext State",
        "task": "Task",
    },
)
