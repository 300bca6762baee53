"""Power-function averages: closed forms, least squares, and averages of other lengths against explicit ones."""

import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rad.cli.ema import _average
from rad.training.posthoc.power_ema import PowerEMA, Snapshot, find_snapshots, reachable, reconstruct
from rad.training.posthoc.profiles import (
    LONGEST,
    Profile,
    gamma_of,
    inner_products,
    power_decay,
    solve_weights,
)

LENGTHS = [0.01, 0.05, 0.1, 0.2, LONGEST]
PROFILES = [Profile(step, length) for step in (500, 1000) for length in (0.05, 0.1, 0.2)]


def sigma_rel_of(gamma):
    """Equation 123 of Karras et al. 2024."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


def density(profile, time):
    gamma = gamma_of(profile.sigma_rel)
    values = (gamma + 1) * (time / profile.step) ** gamma / profile.step
    return np.where(time <= profile.step, values, 0)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_length_is_the_standard_deviation_of_the_profile(length):
    gamma = gamma_of(length)
    assert gamma >= 0
    assert sigma_rel_of(gamma) == pytest.approx(length, rel=1e-9)
    time = (np.arange(1_000_000) + 0.5) / 1_000_000
    weights = density(Profile(1, length), time) / len(time)
    assert weights.sum() == pytest.approx(1, rel=1e-6)
    mean = (weights * time).sum()
    assert np.sqrt((weights * (time - mean) ** 2).sum()) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, float("nan")])
def test_lengths_beyond_the_uniform_average_are_refused(length):
    with pytest.raises(ValueError, match="sigma_rel"):
        gamma_of(length)
    with pytest.raises(ValueError, match="sigma_rel"):
        PowerEMA(length)


def test_updates_weigh_each_step_by_the_integral_of_the_profile():
    gamma, steps = gamma_of(0.08), 200
    weights = np.zeros(steps)
    for step in range(1, steps + 1):
        decay = power_decay(step, gamma)
        weights *= decay
        weights[step - 1] += 1 - decay
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-9, atol=1e-15)
    assert power_decay(1, gamma) == 0


def test_inner_products_equal_their_integrals():
    width = 1000 / 400_000
    time = (np.arange(400_000) + 0.5) * width
    values = np.stack([density(profile, time) for profile in PROFILES])
    np.testing.assert_allclose(inner_products(PROFILES, PROFILES), values @ values.T * width, rtol=1e-4)


def test_a_saved_average_is_its_own_combination_and_weights_sum_to_one():
    weights, error = solve_weights(PROFILES, PROFILES[3])
    np.testing.assert_allclose(weights, np.eye(6)[3], atol=1e-9)
    assert error < 1e-6
    weights, error = solve_weights(PROFILES[:2], Profile(500, 0.2))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert error > 0.1, "two averages do not represent a much longer one"


def test_the_solution_is_a_minimum_and_equals_the_unconstrained_one_for_many_snapshots():
    saved = [Profile(step, length) for step in range(100, 2001, 100) for length in (0.05, 0.1)]
    target = Profile(2000, 0.07)
    weights, error = solve_weights(saved, target)
    products, with_target = inner_products(saved, saved), inner_products(saved, [target])[:, 0]
    np.testing.assert_allclose(weights, np.linalg.solve(products, with_target), atol=1e-3)
    change = 0.01 * np.resize([1, -1], len(saved))

    def square(x):
        return x @ products @ x - 2 * x @ with_target + inner_products([target], [target])[0, 0]

    assert square(weights) < min(square(weights + change), square(weights - change))
    assert error == pytest.approx(np.sqrt(square(weights) / inner_products([target], [target])[0, 0]), rel=1e-6)


@pytest.mark.parametrize(("length", "tolerance"), [(0.07, 1e-3), (0.05, 1e-9), (0.15, 1e-2)])
def test_reconstruction_equals_an_average_that_ran_during_training(length, tolerance):
    """On a random walk with drift, relative to its standard deviation over the run."""
    steps, every = 2000, 50
    walk = np.cumsum(np.random.default_rng(0).normal(0.01, 1, (steps, 16)), 0)
    running = {kept: np.zeros(16) for kept in (0.05, 0.1, length)}
    saved, values = [], []
    for step, weights in enumerate(walk, start=1):
        for kept, average in running.items():
            decay = power_decay(step, gamma_of(kept))
            running[kept] = decay * average + (1 - decay) * weights
        if step % every == 0:
            saved += [Profile(step, 0.05), Profile(step, 0.1)]
            values += [running[0.05], running[0.1]]
    weights, _ = solve_weights(saved, Profile(steps, length))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    difference = weights @ np.stack(values) - running[length]
    assert np.abs(difference).max() < tolerance * walk.std()
    assert np.abs(running[0.05] - running[0.1]).max() > 0.1 * walk.std()


class Reads(TorchDispatchMode):
    """Counts operations that read a value from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().startswith(("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"))
        return func(*args, **(kwargs or {}))


def test_updates_are_float32_and_read_nothing_from_the_device():
    average, layer = PowerEMA(0.1), torch.nn.Linear(3, 3).to(torch.bfloat16)
    average.start = 0
    average.weights = {name: torch.full(p.shape, 5.0) for name, p in layer.named_parameters()}
    with Reads() as reads:
        average.update(layer, 1)
    assert reads.count == 0
    assert all(torch.equal(average.weights[name], p.float()) for name, p in layer.named_parameters())


def test_two_lengths_of_the_same_folder_are_refused(tmp_path):
    snapshots = [Snapshot(tmp_path, step, 0, length) for step in (10, 20) for length in (0.05, 0.1)]
    with pytest.raises(ValueError, match="two lengths would write"):
        _average(snapshots, [0.08, 0.05, 0.08], None, tmp_path / "out")


def test_lengths_that_the_snapshots_cannot_represent_are_refused(tmp_path):
    snapshots = [Snapshot(tmp_path, 10, 0, length) for length in (0.05, 0.1)]
    shortest, longest = reachable(snapshots, 0.5)
    for length in (shortest, longest):
        assert reconstruct(snapshots, length).error <= 0.5
    for length in (shortest - 0.001, longest + 0.001):
        assert reconstruct(snapshots, length).error > 0.5
    with pytest.raises(
        ValueError, match=f"give a length from {shortest:g} to {longest:g}, or train with more snapshots"
    ):
        _average(snapshots, [0.08, 0.25], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_snapshots_stands_for_its_run(tmp_path):
    for length in (0.05, 0.1):
        folder = tmp_path / "ema" / f"step=10-sigma{length}"
        folder.mkdir(parents=True)
        (folder / "snapshot.json").write_text(json.dumps({"step": 10, "start": 0, "sigma_rel": length}))
    assert len(find_snapshots(tmp_path)) == 2
    assert find_snapshots(tmp_path / "ema") == find_snapshots(tmp_path)
    with pytest.raises(FileNotFoundError, match="give the folder of a run"):
        find_snapshots(tmp_path / "other")
