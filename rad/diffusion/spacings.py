"""Timesteps of a sampler: spacings, and RePaint's time travel."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from rad.arguments import integer
from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import Invertible, Process

Spacing = Literal["even", "trailing", "quad", "logsnr", "official"]
"""Spacing of the n sampled timesteps, from t = T-1 down. The last step goes to the clean image.

- even: rounded linspace(T-1, 0, n). The last network call is at t = 0, with little noise left.
- trailing: round(T - i T/n) - 1. The last call goes from t = T/n - 1 to the clean image (Lin et al., arXiv 2305.08891).
- quad: t proportional to (1 - i/(n-1))^2.
- logsnr: even in log(a / s) from t = T-1 to t = 0.
- official: rounded linspace(T-10, 0, n), as in the official RAD sampler.
"""


def spaced_timesteps(
    total: int,
    count: int,
    *,
    spacing: Literal["even", "trailing", "quad", "official"] = "even",
    fractional: bool = False,
) -> list[float]:
    """`count` timesteps from total - 1 downwards, then CLEAN. Each pair of neighbours is one sampler step.

    Rounding drops duplicates, which may leave fewer than `count` for "quad"; `fractional` keeps its fractional timesteps.
    Raises ValueError for a count outside [1, total]. `sampling_timesteps` supports "logsnr" too.
    """
    if not 1 <= count <= total:
        raise ValueError(f"steps is {count}; allowed are 1 to {total}, the number of noise levels of this model")
    if spacing == "trailing":
        return [*(math.floor(total - i * total / count + 0.5) - 1 for i in range(count)), CLEAN]
    first = total - 10 if spacing == "official" and count > 1 else total - 1
    if count > first + 1:
        raise ValueError(f"steps is {count}; the official spacing allows 1 to {first + 1}: use spacing='even'")
    power = 2 if spacing == "quad" else 1
    timesteps = [first * (1 - i / (count - 1)) ** power for i in range(count)] if count > 1 else [float(first)]
    return [*(timesteps if spacing == "quad" and fractional else _whole(timesteps)), CLEAN]


def sampling_timesteps(
    process: Process, count: int, *, spacing: Spacing = "even", fractional: bool = False
) -> list[float]:
    """`spaced_timesteps` of a process, for every `Spacing`.

    Raises ValueError for a count outside [1, sampled_steps], an unknown spacing, or "logsnr" on a process without `time_of`.
    """
    total, count = process.sampled_steps, integer("steps", count)
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is {spacing!r}; allowed are {', '.join(get_args(Spacing))}")
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
    return [*(timesteps if fractional else _whole(timesteps)), CLEAN]


ALL_HOLE = NoiseRegions(
    torch.ones(1, 1, dtype=torch.float64, device="cpu"), torch.zeros(1, 1, 1, dtype=torch.int64, device="cpu")
)
"""Regions of an image without known pixels."""


def _whole(timesteps: Sequence[float]) -> list[float]:
    """Round half up and drop duplicates."""
    return list(dict.fromkeys(math.floor(t + 0.5) for t in timesteps))


def time_travel(timesteps: list[float], *, length: int, visits: int) -> list[float]:
    """RePaint's plan: from every `length`-th level, jump up by `length` levels and descend again, `visits` times in all.

    `timesteps`: N decreasing t, then CLEAN. `length` and `visits` are 1 or more; 1 visit is no travel. The result ends in CLEAN
    too, and its neighbours are one level apart. A = ceil((N - length) / length) anchors give N + A (visits - 1) length reverse
    steps and A (visits - 1) length forward steps: 2410 and 2160 for 250, 10, 10.
    """
    levels = timesteps[-2::-1]  # levels[j]: the j-th level, from the least noise
    budget = dict.fromkeys(range(0, len(levels) - length, length), visits - 1)
    at, path = len(levels), []
    while at >= 1:
        at -= 1
        path.append(at)
        if budget.get(at, 0) > 0:
            budget[at] -= 1
            path.extend(range(at + 1, at + length + 1))
            at += length
    return [levels[j] for j in path] + [CLEAN]
