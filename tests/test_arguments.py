"""Checks of arguments: seeds of every integer type are equal, other types are refused in one short line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rad.arguments import describe, integer, number
from rad.rng import KeyedNoise, check_seed, generator, identity, key, key_of

INTEGERS = [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.uint8)]
NO_INTEGERS = [
    *(True, np.bool_(True), torch.tensor(True), 1.0, np.float32(1), torch.tensor(1.0), "1", None, [1]),
    *(np.ones(9, np.int64), torch.ones(1, dtype=torch.int64)),
]


@pytest.mark.parametrize("seed", INTEGERS, ids=lambda seed: f"{type(seed).__module__}.{type(seed).__name__}")
def test_integers_of_all_libraries_are_equal_seeds(seed):
    assert (check_seed(seed), type(check_seed(seed))) == (1, int)
    assert key(seed, "a") == key(1, "a") == key_of([seed, "a"])
    draws = [KeyedNoise(value, [value], [value]).randn(0, (2,)) for value in (seed, 1)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("seed", NO_INTEGERS, ids=str)
def test_other_types_are_no_seed(seed):
    for call in (check_seed, lambda value: KeyedNoise(value, ["a"])):
        with pytest.raises(ValueError, match=r"seed is .*; give a whole number") as error:
            call(seed)
        assert len(str(error.value)) < 150
        assert "\n" not in str(error.value)


def test_key_keeps_its_values():
    assert key(0, "a", 1) == key_of(iter([0, "a", 1])) == 0x14C72866A0230C6E


@pytest.mark.parametrize("name", [np.str_("a"), Path("a"), np.array(["a"])[0]])
def test_a_name_is_its_text(name):
    assert (identity(name), type(identity(name))) == ("a", str)
    assert key(0, name) == key(0, "a")
    assert generator(0, name).initial_seed() == generator(0, "a").initial_seed()


def test_number_and_text_are_two_names():
    assert key(0, 1) != key(0, "1")


@pytest.mark.parametrize("part", [True, 1.5, None, b"a", ("a",), torch.zeros(3)])
def test_other_types_are_no_name(part):
    with pytest.raises(ValueError, match="give a whole number, a text or a path"):
        key(0, part)
    with pytest.raises(ValueError, match="give a whole number, a text or a path"):
        KeyedNoise(0, [part])


def test_a_text_is_no_list_of_names():
    with pytest.raises(ValueError, match=r"images is 'photo.png'; give a list"):
        KeyedNoise(0, "photo.png")


def test_range_of_seeds():
    assert [check_seed(seed) for seed in (-(2**63), -1, 2**64 - 1)] == [-(2**63), -1, 2**64 - 1]
    assert len({key(seed) for seed in (-1, 1, 0, 2**64 - 1)}) == 4
    for seed in (-(2**63) - 1, 2**64, 10**400):
        with pytest.raises(ValueError, match=r"give a whole number from -2\^63 to 2\^64 - 1") as error:
            check_seed(seed)
        assert len(str(error.value)) < 150


def test_integer_names_its_range():
    with pytest.raises(ValueError, match=r"^steps is 20.0; give a whole number of at least 1$"):
        integer("steps", 20.0, low=1)
    with pytest.raises(ValueError, match=r"^steps is 9; give a whole number from 1 to 8$"):
        integer("steps", 9, low=1, high=8)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), torch.tensor(0.5), np.int8(1)])
def test_number(value):
    assert number("eta", value) == float(value)


@pytest.mark.parametrize("value", [True, "0.5", None, float("nan"), float("inf"), 10**400, np.ones(1), [0.5]])
def test_other_types_are_no_number(value):
    with pytest.raises(ValueError, match=r"^eta is .*; give a number$"):
        number("eta", value)


def test_description_prints_no_array():
    assert describe(np.zeros((2, 3), np.uint8)) == "ndarray (2, 3) uint8"
    assert describe(torch.zeros(1, 4)) == "Tensor (1, 4) float32"
    assert describe(["a"] * 1000) == "an object of type list"
    assert len(describe("a" * 1000)) <= 64
