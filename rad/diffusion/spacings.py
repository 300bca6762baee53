"""Which noise levels a sampler visits: spacings of the timesteps, and RePaint's time travel."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import Invertible, Process

Spacing = Literal["even", "trailing", "quad", "logsnr", "official"]
"""Where the n sampled times lie, from t = T-1 down, before the last step to the clean image:

- even: rounded linspace(T-1, 0, n). The last network call is made at t = 0, where little noise is left.
- trailing: round(T - i T/n) - 1. The last call goes from t = T/n - 1 to the clean image (Lin et al., arXiv 2305.08891).
- quad: t proportional to (1 - i/(n-1))^2.
- logsnr: log(a / s) is evenly spaced from t = T-1 to t = 0.
- official: rounded linspace(T-10, 0, n), as the official RAD sampler.
"""


def spaced_times(
    total: int,
    count: int,
    *,
    spacing: Literal["even", "trailing", "quad", "official"] = "even",
    fractional: bool = False,
) -> list[float]:
    """`count` times from total - 1 downwards, then CLEAN; neighbours in the list are the steps of the sampler.

    Args:
        spacing: see `Spacing`; `sampling_times` knows "logsnr" too.
        fractional: keep the times of "quad" as they are. Otherwise they are rounded and a repeated one is dropped, so there
            may be fewer than `count`.

    Raises:
        ValueError: count outside [1, total].
    """
    if not 1 <= count <= total:
        raise ValueError(f"steps is {count}; allowed are 1 to {total}, the number of noise levels of this model")
    if spacing == "trailing":
        return [*(math.floor(total - i * total / count + 0.5) - 1 for i in range(count)), CLEAN]
    first = total - 10 if spacing == "official" and count > 1 else total - 1
    if count > first + 1:
        raise ValueError(f"steps is {count}; the official spacing allows 1 to {first + 1}: use spacing='even'")
    power = 2 if spacing == "quad" else 1
    times = [first * (1 - i / (count - 1)) ** power for i in range(count)] if count > 1 else [float(first)]
    return [*(times if spacing == "quad" and fractional else _whole(times)), CLEAN]


def sampling_times(process: Process, count: int, *, spacing: Spacing = "even", fractional: bool = False) -> list[float]:
    """As `spaced_times`, with every `Spacing`, for a process.

    Raises:
        ValueError: count outside [1, sampled_steps], an unknown spacing, or "logsnr" for a process without `time_of`.
    """
    total = process.sampled_steps
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is {spacing!r}; allowed are {', '.join(get_args(Spacing))}")
    if spacing != "logsnr" or count == 1 or not 1 <= count <= total:
        return spaced_times(total, count, spacing="even" if spacing == "logsnr" else spacing, fractional=fractional)
    if not isinstance(process, Invertible):
        raise ValueError(
            "spacing 'logsnr' needs one noise level for the whole hole, and here parts of the hole have different levels: "
            "use 'even', 'trailing' or 'quad'"
        )
    ends = process.noise(torch.tensor([total - 1, 0]), ALL_HOLE)
    noisiest, cleanest = (ends.alpha / ends.sigma).log()[:, -1].tolist()
    inner = torch.linspace(noisiest, cleanest, count, dtype=torch.float64)[1:-1]
    times = [float(total - 1), *process.time_of(inner).tolist(), 0.0]
    return [*(times if fractional else _whole(times)), CLEAN]


ALL_HOLE = NoiseRegions(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.int64))
"""The regions of an image without known pixels."""


def _whole(times: Sequence[float]) -> list[float]:
    """Rounded, half up; repeated times are dropped."""
    return list(dict.fromkeys(math.floor(time + 0.5) for time in times))


def time_travel(times: list[float], *, length: int, visits: int) -> list[float]:
    """RePaint's plan: at every `length`-th level go back up by `length` levels and down again, until visited `visits` times.

    Args:
        times: levels downwards, ending in CLEAN, as from `spaced_times`; with N levels they are counted N - 1 to 0.
        length: levels of a jump, 1 or more; visits: how often each block is gone through, 1 (no travel) or more.

    Returns:
        Levels, ending in CLEAN; neighbours are one level apart. With A = ceil((N - length) / length) anchors there are
        N + A (visits - 1) length reverse moves and A (visits - 1) length forward ones: 2410 and 2160 for 250, 10, 10.
    """
    levels = times[-2::-1]  # levels[j]: the level counted j, from the least noise
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
