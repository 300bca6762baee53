"""How sure the numbers are: bootstrap intervals over images, paired tests between methods, Holm's adjustment.

Every function is given its seed, and draws from nothing else.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rad.evaluation.results import Difference, Interval

LEVEL = 0.95
RESAMPLES, SET_RESAMPLES, FLIPS = 2000, 100, 9999
LEAST_IMAGES = 6
"""Fewer cannot reach p < 0.05: five pairs have 32 patterns of signs, and two of them are the most extreme."""


def interval(values: Sequence[float], *, seed: int) -> Interval:
    """The mean of values, one an image, with its percentile bootstrap 95 % interval, expanded for small numbers (`ends`).

    The samples of an image are averaged before. The ends are NaN where all values are equal: their resamples are so, too,
    which says nothing of other images.

    Raises ValueError where there is no value.
    """
    from scipy import stats

    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise ValueError("no values: an interval needs at least one image")
    mean = float(numbers.mean())
    if np.ptp(numbers) == 0:
        return Interval(mean, math.nan, math.nan)
    found = stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10**6 // len(numbers)),
        confidence_level=1 - 2 * ends(len(numbers)),
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue], `rng` since scipy 1.15
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def ends(count: int) -> float:
    """The quantile of resampled means at which the lower end of a 95 % interval of `count` values lies; the upper one mirrors it.

    Percentile intervals are too narrow for few values, by a factor sqrt((n-1)/n) and by the normal distribution in the place
    of Student's: this one is Phi(sqrt(n/(n-1)) t_{n-1}(0.025)) ("expanded percentile interval", Hesterberg
    2015, The American Statistician 69(4)), and tends to 0.025. Below six values it is too narrow nevertheless.
    """
    from scipy import stats

    tail = (1 - LEVEL) / 2
    return float(stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf(tail, count - 1)))


def difference(method: Mapping[str, float], baseline: Mapping[str, float], *, seed: int) -> Difference | None:
    """The mean of method minus baseline over the images that both have, with its bootstrap 95 % interval.

    p is that of the paired sign-flip permutation test of the mean, two-sided and not yet adjusted; None below
    `LEAST_IMAGES` images.

    Args:
        method, baseline: a value an image, by its name.

    Returns None where they have no image in common.
    """
    common = sorted(set(method) & set(baseline))
    if not common:
        return None
    values = np.array([method[name] - baseline[name] for name in common], dtype=np.float64)
    found = interval(values.tolist(), seed=seed)
    p = sign_flip(values, seed=seed) if len(common) >= LEAST_IMAGES else None
    return Difference(found.value, found.low, found.high, p, len(common))


def sign_flip(values: np.ndarray, *, seed: int) -> float:
    """Two-sided p of the mean of paired differences (N): the share of sign patterns with a mean at least as far from 0.

    All patterns where there are at most `FLIPS` of them; otherwise that many at random, and the one observed.
    """
    count = len(values)
    # Sums that differ by rounding alone are equal, and the pattern observed has to count itself.
    least = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if 2**count <= FLIPS:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ values) >= least))
    random, extreme = np.random.default_rng(seed), 1
    for start in range(0, FLIPS, 1000):
        signs = 2 * random.integers(0, 2, (min(1000, FLIPS - start), count), dtype=np.int8) - 1
        extreme += int(np.sum(np.abs(signs @ values) >= least))
    return extreme / (FLIPS + 1)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the order given, for as many comparisons as have one (Holm 1979): step-down Bonferroni."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def set_interval(
    value: float,
    distance: Callable[[Tensor], float],
    images: Sequence[str],
    *,
    seed: int,
    least: float = -np.inf,
    resamples: int = SET_RESAMPLES,
) -> Interval:
    """A distance between sets, with its bootstrap 95 % interval over images; the references are fixed.

    A resample holds some images twice, which has less variety than as many different ones, and so lies further
    from the references: the Frechet distance of resamples is biased upwards, by as much again as that of the set itself.
    The resamples are therefore shifted so that their mean is `value`. The interval is then one for the distance at this number
    of images, and says nothing of what it would be at more.

    Args:
        value: the distance of the whole set.
        distance: the distance where result n is taken weight[n] times, such as `FrechetTerms.distance`.
        images: (N) the name of each result's image; the samples of one are taken together.
        least: what the distance cannot fall below, 0 for the Frechet distance.
    """
    names = sorted(set(images))
    place = {name: number for number, name in enumerate(names)}
    owner = torch.tensor([place[name] for name in images])
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)))
        found.append(distance(torch.from_numpy(counts).double()[owner]))
    finite = np.array([one for one in found if np.isfinite(one)])
    if not len(finite):
        return Interval(value, math.nan, math.nan)
    low, high = value + np.quantile(finite - finite.mean(), [ends(len(names)), 1 - ends(len(names))])
    return Interval(value, min(max(float(low), least), value), max(float(high), value))
