"""Noise without torch equals that of `rad.rng.KeyedNoise`."""

import numpy as np
import pytest
import torch

from rad.rng import KeyedNoise
from rad.runtime.sampling import noise

SEEDS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 123456789012345)
COUNTS = (*range(1, 70), 96, 100, 255, 256, 257, 3 * 32 * 32, 3 * 33 * 31, 3 * 64 * 72)


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_numbers_are_exact(seed):
    for count in COUNTS:
        expected = torch.rand(count, generator=torch.Generator().manual_seed(seed)).numpy()
        np.testing.assert_array_equal(noise.uniforms(np.random.RandomState(seed % 2**32), count), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_normal_numbers_equal_those_of_pytorch_within_a_few_units_in_the_last_place(seed):
    for count in COUNTS:
        expected = torch.randn(count, generator=torch.Generator().manual_seed(seed)).numpy()
        drawn = noise.randn(seed, (count,))
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)  # of values up to 6; neighbours differ by 4.8e-7


def test_draws_have_the_keys_of_the_torch_path():
    images, samples = ["a.png", 7, "b@3,4"], [0, 2, 1]
    without = noise.KeyedNoise(5, images, samples)
    with KeyedNoise(5, images, samples) as source:
        for number in range(3):
            expected = source.randn(number, (3, 8, 9)).numpy()
            np.testing.assert_allclose(without.randn(number, (3, 8, 9)), expected, rtol=0, atol=1e-6)
    assert not np.array_equal(without.randn(0, (3, 8, 9)), noise.KeyedNoise(6, images, samples).randn(0, (3, 8, 9)))
