"""Choices of a sampler: solver, eta, and the timesteps to visit, with RePaint's time travel. Loads no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rad.arguments import describe, number
from rad.console import counted

CLEAN = -1
"""The t below 0: no noise anywhere."""

Spacing = Literal["even", "trailing", "quad", "logsnr", "official"]
"""Spacing of the n sampled timesteps, from t = T-1 down. The last step goes to the clean image.

- even: rounded linspace(T-1, 0, n). The last network call is at t = 0, with little noise left. Flows with a plan: the plan.
- trailing: round(T - i T/n) - 1. The last call goes from t = T/n - 1 to the clean image (Lin et al., arXiv 2305.08891).
- quad: t proportional to (1 - i/(n-1))^2.
- logsnr: even in log(a / s) from t = T-1 to t = 0.
- official: rounded linspace(T-10, 0, n), as in the official RAD sampler.
"""

Solver = Literal["ddpm", "ddim", "dpm++2m"]
"""ddpm: first order, fresh noise scaled by eta. ddim: ddpm with eta 0. dpm++2m: second order, an ODE (eta 0) or SDE (eta 1)."""


DEFAULTS: dict[Solver, tuple[Spacing, float]] = {
    "ddpm": ("even", 1.0),
    "ddim": ("even", 0.0),
    "dpm++2m": ("logsnr", 0.0),
}
"""Default spacing and eta of each solver."""


@dataclass(frozen=True)
class Schedule:
    """Number of steps, solver with eta, and spacing of a run."""

    steps: int
    solver: Solver
    spacing: Spacing
    eta: float


SMOOTH: tuple[Spacing, ...] = ("logsnr", "quad")
"""Spacings with slowly changing steps in lambda, which second order requires."""


def check_solver(solver: Solver, eta: float, spacing: Spacing) -> None:
    """Raise ValueError for an unknown solver, or an eta or a spacing that the solver does not support."""
    if solver not in DEFAULTS:
        raise ValueError(f"solver is {solver!r}; allowed are {', '.join(DEFAULTS)}")
    if not 0 <= number("eta", eta) <= 1:
        raise ValueError(f"eta is {eta}; allowed are 0 (DDIM, no fresh noise) to 1 (DDPM)")
    if solver == "ddim" and eta != 0:
        raise ValueError(f"eta is {eta}; solver 'ddim' allows 0: use eta 0, or solver 'ddpm'")
    if solver == "dpm++2m" and eta not in (0, 1):
        raise ValueError(
            f"eta is {eta}; solver 'dpm++2m' allows 0 (ODE) and 1 (SDE): use one of them, or solver 'ddpm'"
        )
    if solver == "dpm++2m" and spacing not in SMOOTH:
        # On Gaussian data "even" has over 100 times the KL of "logsnr" at 10 to 50 steps.
        raise ValueError(
            f"spacing is {spacing!r}; solver 'dpm++2m' needs slowly changing steps in log(a / s): "
            "use spacing 'logsnr' or 'quad', or solver 'ddpm' or 'ddim'"
        )


def check_given(solver: Solver | None, spacing: Spacing | None, eta: float | None) -> None:
    """Raise ValueError for an unknown solver or spacing, or an eta outside [0,1]; None: the preset."""
    for name, value, kind in (("solver", solver, Solver), ("spacing", spacing, Spacing)):
        if value is not None and value not in get_args(kind):
            raise ValueError(f"{name} is {describe(value)}; allowed are {', '.join(get_args(kind))}")
    if eta is not None and not 0 <= number("eta", eta) <= 1:
        raise ValueError(f"eta is {eta}; allowed are 0 (DDIM, no fresh noise) to 1 (DDPM)")


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
    return [*(timesteps if spacing == "quad" and fractional else whole(timesteps)), CLEAN]


def check_strength(strength: float) -> float:
    """Raise ValueError for a strength outside (0,1]."""
    if not 0 < number("strength", strength) <= 1:
        raise ValueError(
            f"strength is {strength}; allowed are above 0 to 1: 1 starts from pure noise, less from the image's own content"
        )
    return strength


def last_part(timesteps: list[float], strength: float) -> list[float]:
    """The last floor(n strength) of n timesteps, at least one, then CLEAN; as diffusers' `StableDiffusionInpaintPipeline`."""
    count = len(timesteps) - 1
    return timesteps[count - max(1, int(count * strength)) :]


def whole(timesteps: Sequence[float]) -> list[float]:
    """Timesteps rounded half up, without duplicates."""
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


DIPS = 16
"""Steps within which a cost that grows with the steps may fall again: rounded timesteps drop duplicates. Measured: 1."""


def most_count(total: int, spacing: str) -> int:
    """Largest number of steps of a spacing on `total` timesteps."""
    return max(1, total - 9) if spacing == "official" else total


def steps_within(cost: Callable[[int], int], budget: int, *, most: int, dips: int = DIPS, name: str) -> int:
    """The most steps in [1, most] that cost at most `budget` network calls.

    The number is doubled, then bisected: few evaluations, none of them far above the budget.

    Args:
        cost: of a number of steps. If cost(n) > cost(m) for n < m, then m - n <= `dips`; with dips=most it is arbitrary.
        name: of the method, for the error.

    Raises ValueError if the budget allows no number of steps.
    """
    within, beyond = 0, 1
    while beyond <= most and cost(beyond) <= budget:
        within, beyond = beyond, most + 1 if beyond == most else min(2 * beyond, most)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        within, beyond = (middle, beyond) if cost(middle) <= budget else (within, middle)
    costs = {steps: cost(steps) for steps in range(beyond, min(beyond + dips, most) + 1)}
    within = max((steps for steps, calls in costs.items() if calls <= budget), default=within)
    if not within:
        least = min(costs, key=costs.__getitem__)
        calls = f"{counted(costs[least], 'network call')} ({counted(least, 'step')})"
        raise ValueError(f"method {name} costs at least {calls}, more than the budget of {budget}")
    return within
