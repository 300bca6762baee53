"""Timesteps of a sampler on a process, for every spacing of `rad.diffusion.choices`."""

from typing import get_args

import torch

from rad.arguments import integer
from rad.diffusion.choices import CLEAN, whole
from rad.diffusion.choices import Spacing as Spacing
from rad.diffusion.choices import spaced_timesteps as spaced_timesteps
from rad.diffusion.choices import time_travel as time_travel
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import Flow, Invertible, Process


def sampling_timesteps(
    process: Process, count: int, *, spacing: Spacing = "even", fractional: bool = False
) -> list[float]:
    """`spaced_timesteps` of a process, for every `Spacing`; "even" and "trailing" of a flow with a plan are its plan.

    Raises ValueError for a count outside [1, sampled_steps], an unknown spacing, or "logsnr" on a process without `time_of`.
    """
    total, count = process.sampled_steps, integer("steps", count)
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is {spacing!r}; allowed are {', '.join(get_args(Spacing))}")
    if isinstance(process, Flow) and spacing in ("even", "trailing") and 1 <= count <= total:
        planned = process.planned(count)
        if planned is not None:
            return [*(planned if fractional else whole(planned)), CLEAN]
    if spacing != "logsnr" or count == 1 or not 1 <= count <= total:
        return spaced_timesteps(total, count, spacing="even" if spacing == "logsnr" else spacing, fractional=fractional)
    if not isinstance(process, Invertible):
        raise ValueError(
            "spacing 'logsnr' needs one noise level for the whole hole; this process has several: "
            "use 'even', 'trailing' or 'quad'"
        )
    ends = process.noise(torch.tensor([total - 1, 0], device="cpu"), ALL_HOLE)
    noisiest, cleanest = (ends.alpha / ends.sigma).log()[:, -1].tolist()
    inner = torch.linspace(noisiest, cleanest, count, dtype=torch.float64, device="cpu")[1:-1]
    timesteps = [float(total - 1), *process.time_of(inner).tolist(), 0.0]
    return [*(timesteps if fractional else whole(timesteps)), CLEAN]


ALL_HOLE = NoiseRegions(
    torch.ones(1, 1, dtype=torch.float64, device="cpu"), torch.zeros(1, 1, 1, dtype=torch.int64, device="cpu")
)
"""Regions of an image without known pixels."""
