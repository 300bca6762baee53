"""Intervals cover, tests have their level and their power, adjustments are Holm's."""

import numpy as np
import pytest
import torch
from scipy import stats

from rad.evaluation.metrics import sets
from rad.evaluation.statistics import difference, ends, holm, interval, set_interval, sign_flip


def normal(count: int, *, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, count)


def test_interval_holds_the_mean_and_is_as_wide_as_theory_says():
    values = normal(400, seed=0, mean=3)
    found = interval(values.tolist(), seed=1)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.high - found.value == pytest.approx(half, rel=0.15)
    assert found.value - found.low == pytest.approx(half, rel=0.15)


def test_interval_covers_at_about_its_level():
    found = [interval(normal(40, seed=n, mean=1).tolist(), seed=n) for n in range(200)]
    covered = sum(one.low <= 1 <= one.high for one in found)
    assert 180 <= covered <= 198


@pytest.mark.parametrize("count", [6, 12])
def test_intervals_of_few_values_cover_too(count: int):
    found = [interval(normal(count, seed=n, mean=1).tolist(), seed=n) for n in range(400)]
    assert sum(one.low <= 1 <= one.high for one in found) >= 364, "0.91; plain percentiles have 0.86 and 0.90"


def test_ends_tend_to_those_of_percentiles():
    assert ends(6) == pytest.approx(0.00243, abs=1e-5)  # Phi(-1.0954 * 2.5706)
    assert ends(10**6) == pytest.approx(0.025, abs=1e-6)


def test_interval_depends_on_its_seed_alone():
    values = normal(10, seed=0).tolist()
    np.random.seed(0)  # noqa: NPY002
    first = interval(values, seed=1)
    np.random.seed(1)  # noqa: NPY002
    assert interval(values, seed=1) == first != interval(values, seed=2)


@pytest.mark.parametrize("values", [[0.5], [0.5] * 7])
def test_equal_values_have_no_interval(values: list[float]):
    found = interval(values, seed=0)
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()


def test_interval_needs_a_value():
    with pytest.raises(ValueError, match="no values"):
        interval([], seed=0)


def named(values: np.ndarray) -> dict[str, float]:
    return {f"image{number:03}": float(value) for number, value in enumerate(values)}


def test_difference_is_paired_and_of_method_minus_baseline():
    """A shift far smaller than the spread of images is found, for it is the same on all."""
    base = 10 * normal(30, seed=0)
    found = difference(named(base + 0.1 + 0.02 * normal(30, seed=1)), named(base), seed=0)
    assert found is not None
    assert found.p is not None
    assert 0.08 < found.low < found.value < found.high < 0.12
    assert found.p < 0.001
    assert not found.is_noise
    opposite = difference(named(base), named(base + 0.1), seed=0)
    assert opposite is not None
    assert opposite.value == pytest.approx(-0.1)


def test_symmetric_noise_is_noise():
    p = [sign_flip(normal(20, seed=n), seed=n) for n in range(200)]
    assert sum(one < 0.05 for one in p) <= 20
    assert np.median(p) == pytest.approx(0.5, abs=0.15)


def test_difference_is_over_common_images():
    method, baseline = {"a": 3.0, "b": 5.0, "c": 100.0}, {"b": 1.0, "a": 1.0, "d": -100.0}
    found = difference(method, baseline, seed=0)
    assert found is not None
    assert (found.value, found.images) == (3, 2)
    assert difference({"a": 1.0}, {"b": 1.0}, seed=0) is None


@pytest.mark.parametrize(("count", "known"), [(1, False), (5, False), (6, True)])
def test_too_few_images_have_no_p(count: int, known: bool):
    found = difference(named(normal(count, seed=0) + 9), named(np.zeros(count)), seed=0)
    assert found is not None
    assert (found.p is not None) == known
    assert found.is_noise != known


@pytest.mark.parametrize("count", [6, 9])
def test_sign_flip_is_exact_for_few_images(count: int):
    values = normal(count, seed=3, mean=0.4)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", vectorized=True).pvalue
    assert sign_flip(values, seed=0) == sign_flip(values, seed=1) == pytest.approx(expected)


def test_sign_flip_counts_ties_as_extreme():
    assert sign_flip(np.full(6, 0.1), seed=0) == 2 / 64
    assert sign_flip(np.zeros(6), seed=0) == sign_flip(np.zeros(40), seed=0) == 1


def test_sign_flip_at_random_is_close_to_the_t_test_and_never_zero():
    values = normal(60, seed=5, mean=0.2)
    assert sign_flip(values, seed=0) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert sign_flip(values, seed=0) == pytest.approx(sign_flip(-values, seed=0), abs=0.02)
    assert sign_flip(values + 10, seed=0) == 1 / 10000


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def features(count: int, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (count, 4)))


@pytest.mark.parametrize(
    ("distance", "terms"),
    [(sets.frechet_distance, sets.FrechetTerms), (sets.kernel_distance, sets.KernelTerms)],
)
def test_interval_of_a_distance_lies_around_it_and_shrinks_with_images(distance, terms):
    reference = sets.ReferenceFeatures(features(300, seed=0))
    widths = []
    for count in (30, 300):
        some = features(count, seed=1, shift=0.5)
        value = distance(some, reference)
        names = [str(n) for n in range(count)]
        found = set_interval(value, terms(some, reference).distance, names, seed=0)
        assert found == set_interval(value, terms(some, reference).distance, names, seed=0)
        assert found.low < found.value == value < found.high
        assert found.value - found.low == pytest.approx(found.high - found.value, rel=0.6)
        widths.append(found.high - found.low)
        bounded = set_interval(value, terms(some, reference).distance, names, seed=0, least=value - 1e-9)
        assert (bounded.low, bounded.high) == (value - 1e-9, found.high)
    assert 0.15 < widths[1] / widths[0] < 0.65  # about 1 / sqrt 10; the cubic kernel has heavy tails


def test_resamples_of_the_frechet_distance_are_biased_and_the_interval_is_not():
    """Without the shift, the interval would lie beyond the value; with it, it covers the mean of such sets."""
    reference = sets.ReferenceFeatures(features(500, seed=0))
    values, covered, beyond = [], 0, 0
    drawn = [features(15, seed=100 + n) for n in range(30)]
    for some in drawn:
        values.append(sets.frechet_distance(some, reference))
    for some, value in zip(drawn, values, strict=True):
        terms = sets.FrechetTerms(some, reference)
        found = set_interval(value, terms.distance, [str(n) for n in range(15)], seed=0)
        covered += found.low <= np.mean(values) <= found.high
        random = np.random.default_rng(0)
        draws = [terms.distance(torch.from_numpy(random.multinomial(15, [1 / 15] * 15)).double()) for _ in range(20)]
        beyond += np.mean(draws) > value
    assert beyond >= 28
    assert covered >= 23


def test_samples_of_one_image_are_drawn_together():
    """Ten copies of each result are no more images, and give nearly the same interval."""
    reference = sets.ReferenceFeatures(features(100, seed=0))
    some = features(20, seed=1, shift=0.5)
    widths = []
    for copies in (1, 10):
        names = [str(n) for n in range(20) for _ in range(copies)]
        repeated = some.repeat_interleave(copies, 0)
        value = sets.frechet_distance(repeated, reference)
        found = set_interval(value, sets.FrechetTerms(repeated, reference).distance, names, seed=0)
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
