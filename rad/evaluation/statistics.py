"""Uncertainty, random only by `seed`: bootstrap intervals over images, paired tests, Holm's adjustment."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rad.arguments import integer
from rad.evaluation.results import Difference, Interval

LEVEL = 0.95
RESAMPLES, SET_RESAMPLES, FLIPS = 2000, 100, 9999
LEAST_IMAGES = 6
"""Fewer images cannot reach p < 0.05: five pairs have 32 sign patterns, two of them the most extreme."""


def interval(values: Sequence[float], *, seed: int) -> Interval:
    """The mean with its percentile bootstrap 95 % interval, expanded for few values (`ends`).

    Takes one value per image, averaged over its samples. The ends are NaN if all are equal. Raises ValueError for none.
    """
    from scipy import stats

    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise ValueError("no values: an interval needs at least one image")
    mean = float(numbers.mean())
    if np.ptp(numbers) == 0:
        return Interval(mean, math.nan, math.nan)
    bounds = stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10**6 // len(numbers)),
        confidence_level=1 - 2 * ends(len(numbers)),
        method="percentile",
        vectorized=True,
        rng=_random(seed),
    ).confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high))


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(integer("seed", seed, low=0))


def ends(count: int) -> float:
    """The quantile of the lower end of a 95 % interval of `count` values; the upper end mirrors it.

    Percentile intervals of few values are too narrow: by sqrt((n-1)/n), and by normal instead of Student quantiles. The
    expanded quantile is Phi(sqrt(n/(n-1)) t_{n-1}(0.025)) (Hesterberg 2015, The American Statistician 69(4)). It tends
    to 0.025. Below six values the interval is still too narrow.
    """
    from scipy import stats

    tail = (1 - LEVEL) / 2
    return float(stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf(tail, count - 1)))


def difference(method: Mapping[str, float], baseline: Mapping[str, float], *, seed: int) -> Difference | None:
    """Mean of method minus baseline over their common images, with interval and unadjusted p; None without any.

    Both map image names to values. p is None for fewer than `LEAST_IMAGES` images.
    """
    common = sorted(set(method) & set(baseline))
    if not common:
        return None
    values = np.array([method[name] - baseline[name] for name in common], dtype=np.float64)
    mean = interval(values.tolist(), seed=seed)
    p = sign_flip(values, seed=seed) if len(common) >= LEAST_IMAGES else None
    return Difference(mean.value, mean.low, mean.high, p, len(common))


def sign_flip(values: np.ndarray, *, seed: int) -> float:
    """Two-sided p of the mean of paired differences (N): the share of sign patterns with at least its magnitude.

    Exact for at most `FLIPS` patterns, otherwise a Monte-Carlo estimate that counts the observed pattern.
    """
    from scipy import stats

    scaled = values / (np.abs(values).sum() or 1.0)

    def magnitude(flipped: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(flipped.sum(axis)).round(12)  # sums that differ by rounding alone are equal

    if 2 ** len(values) <= FLIPS:
        return float(
            stats.permutation_test(
                (scaled,), magnitude, permutation_type="samples", alternative="greater", n_resamples=FLIPS
            ).pvalue
        )
    random = _random(seed)

    def flip(size: tuple[int, ...]) -> np.ndarray:
        return random.choice([-1.0, 1.0], size) * scaled

    # permutation_test draws the same null distribution, but sorts for each sign: 25 times slower.
    test = stats.monte_carlo_test(scaled, flip, magnitude, alternative="greater", n_resamples=FLIPS, batch=1000)
    return float(test.pvalue)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted by Holm's step-down Bonferroni method (1979), in the given order; None stays None."""
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
    """A distance between sets with its bootstrap 95 % interval over images; the references stay fixed.

    Repeated images make a resample less diverse: its Fréchet distance is biased upwards by about the bias of the set
    itself. Resamples are therefore shifted to the mean `value`; the interval holds for this number of images.
    Weights avoid recomputing the features of each resample. scipy's bootstrap has neither.

    Args:
        value, least: distance of the whole set, and its lower bound: 0 for the Fréchet distance.
        distance: distance with weight[n] copies of result n, such as `FrechetTerms.distance`.
        images: (N) image name of each result; samples of one image are drawn together.
    """
    names = sorted(set(images))
    place = {name: number for number, name in enumerate(names)}
    owner = torch.tensor([place[name] for name in images], device="cpu")
    random = _random(seed)
    distances = np.empty(resamples)
    for number in range(resamples):
        counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)))
        distances[number] = distance(torch.from_numpy(counts).double()[owner])
    finite = distances[np.isfinite(distances)]
    if not len(finite):
        return Interval(value, math.nan, math.nan)
    low, high = value + np.quantile(finite - finite.mean(), [ends(len(names)), 1 - ends(len(names))])
    return Interval(value, min(max(float(low), least), value), max(float(high), value))
