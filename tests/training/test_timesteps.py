"""Densities of timesteps against closed forms; iDDPM's history does not depend on the split of a step, and resumes exactly."""

import math

import pytest
import torch

from rad.diffusion.losses import Losses
from rad.diffusion.processes import RegionAware, Uniform
from rad.diffusion.schedules import linear_betas
from rad.training.settings import TrainingProcess
from rad.training.timesteps import HISTORY, UNIFORM_SHARE, TimestepDensity

LEVELS, SAMPLES = 50, 400_000
BETAS = linear_betas(LEVELS)


def sampler(kind="uniform", phase2=0.5, **density):
    process = TrainingProcess(kind, phase2=phase2, density=TimestepDensity(**density))
    return process.timestep_sampler(process.build(Uniform(BETAS)))


def draws(count=SAMPLES, seed=0):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logit_normal(y, mean=0.5, std=0.8):
    logit = math.log(y / (1 - y))
    return math.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * y * (1 - y))


def cosmap(y):
    return 2 / (math.pi - 2 * math.pi * y + 2 * math.pi * y * y)


@pytest.mark.parametrize(
    ("density", "closed_form"),
    [({"name": "logit_normal", "mean": 0.5, "std": 0.8}, logit_normal), ({"name": "cosmap"}, cosmap)],
    ids=["logit_normal", "cosmap"],
)
def test_histogram_is_the_integral_of_the_density(density, closed_form):
    t = sampler(**density).draw(draws(), training=True)
    share = torch.bincount(t, minlength=LEVELS) / SAMPLES
    for level in range(LEVELS):
        inside = [closed_form((level + (part + 0.5) / 64) / LEVELS) for part in range(64)]
        expected = sum(inside) / 64 / LEVELS
        assert float(share[level]) == pytest.approx(expected, abs=5 * math.sqrt(expected / SAMPLES) + 1e-6)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_is_the_density_of_its_map_of_uniform_numbers(scale):
    u = draws(seed=1)[:, 0]
    y = 1 - u - scale * (torch.cos(math.pi * u / 2).square() - 1 + u)
    expected = torch.bincount((y * LEVELS).long().clamp(0, LEVELS - 1), minlength=LEVELS) / SAMPLES
    t = sampler(name="mode", scale=scale).draw(draws(), training=True)
    share = torch.bincount(t, minlength=LEVELS) / SAMPLES
    torch.testing.assert_close(share, expected, rtol=0, atol=8 * math.sqrt(float(expected.max()) / SAMPLES))


def test_uniform_timesteps_and_those_of_validation_are_unchanged():
    for kind in ("uniform", "region_aware"):
        process = TrainingProcess(kind)
        expected = process.timesteps(draws(1000), process.build(Uniform(BETAS)))
        assert sampler(kind).draw(draws(1000), training=True).equal(expected)
        assert sampler(kind, name="logit_normal").draw(draws(1000), training=False).equal(expected)
        assert not sampler(kind, name="logit_normal").draw(draws(1000), training=True).equal(expected)


def test_phase2_keeps_its_share_and_both_phases_have_the_density():
    t = sampler("region_aware", phase2=0.2, name="logit_normal", mean=-1.0).draw(draws(), training=True)
    second = t >= LEVELS
    assert float(second.double().mean()) == pytest.approx(0.2, abs=0.004)
    assert int(t.max()) < RegionAware(BETAS).steps
    for level in (t[~second], t[second] - LEVELS):
        assert float((level < LEVELS // 2).double().mean()) == pytest.approx(
            0.5 * math.erfc(-1 / math.sqrt(2)), abs=0.01
        )


@pytest.mark.parametrize("name", ["logit_normal", "mode", "cosmap"])
def test_the_reweighted_loss_has_the_mean_of_uniform_timesteps(name):
    """The mean of f(t) / (L p(t)), with t of a density, is the mean of f over the levels."""
    density = sampler(name=name, reweight=True)
    t = density.draw(draws(), training=True)
    losses = 1 + (t / LEVELS).square()
    got = density.weigh(Losses(losses, torch.zeros_like(losses), losses), t)
    spread = float(got.total.std()) / math.sqrt(SAMPLES)
    expected = (1 + (torch.arange(LEVELS) / LEVELS).square()).mean()
    assert float(got.total.mean()) == pytest.approx(float(expected), abs=5 * spread)
    assert got.simple is losses, "logged errors stay as they are"
    assert sampler(name=name).weigh(got, t) is got, "without reweight"


def test_second_moments_of_the_last_losses_give_the_density_once_a_phase_is_complete():
    density = sampler("region_aware", name="loss_second_moment")
    level = torch.arange(LEVELS).repeat(HISTORY + 2)  # two old rounds, which the history forgets
    loss = torch.cat([torch.full((2 * LEVELS,), 99.0), 1.0 + torch.arange(LEVELS).repeat(HISTORY)]).double()
    density.update(torch.arange(len(level)), level, loss)
    root = 1.0 + torch.arange(LEVELS, dtype=torch.float64)
    expected = (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / LEVELS
    torch.testing.assert_close(density.probabilities[0], expected)
    assert (density.probabilities[1] == 1 / LEVELS).all(), "no loss of the second phase yet"
    t = density.draw(draws(), training=True)
    first = t[t < LEVELS]
    share = torch.bincount(first, minlength=LEVELS).double() / len(first)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.002)
    losses = root[first]
    weighted = density.weigh(Losses(losses, losses, losses), first).total
    assert float(weighted.mean()) == pytest.approx(float(root.mean()), rel=0.002)
    assert float(weighted.std()) < 0.1 * float(root.std()), "less noise than uniform timesteps"


def rounds(density, split, steps=40):
    """Steps of 12 samples with made losses, split into `split` parts whose records arrive in another order."""
    for step in range(steps):
        position = torch.arange(12 * step, 12 * step + 12)
        t = density.draw(draws(12, seed=step), training=True)
        loss = (1 + t + torch.sin(position.double())).double()
        for part in reversed(position.chunk(split)):
            rows = part - 12 * step
            total = loss[rows] * density.weights(t[rows])
            density.record(part, t[rows], total)
        density.finish_step(lambda values: values[None])
    return density


def small():
    process = TrainingProcess("region_aware", density=TimestepDensity("loss_second_moment"))
    return process.timestep_sampler(RegionAware(linear_betas(4)))


def test_the_history_does_not_depend_on_the_split_of_a_step():
    whole, parts = rounds(small(), 1), rounds(small(), 4)
    assert (whole.counts >= HISTORY).all()
    torch.testing.assert_close(whole.history[:-1], parts.history[:-1], rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.probabilities, parts.probabilities, rtol=1e-12, atol=0)
    assert float(whole.probabilities.std()) > 0.05


def test_two_processes_gather_the_history_of_one():
    """Each process has half of the positions of a step; `gather` stands for the collective of the strategy."""
    one, two = small(), [small(), small()]
    for step in range(20):
        position, loss = torch.arange(8) + 8 * step, torch.rand(8, dtype=torch.float64)
        t = one.draw(draws(8, seed=step), training=True)
        one.update(position, t, loss)
        half = [(part, t[part - 8 * step], loss[part - 8 * step]) for part in position.chunk(2)]
        for process in two:
            process.update(*(torch.stack(parts).flatten() for parts in zip(*reversed(half), strict=True)))
    for process in two:
        assert process.history[:-1].equal(one.history[:-1])
        assert process.probabilities.equal(one.probabilities)


def test_a_resumed_history_is_bit_identical_and_ignores_losses_that_are_not_finite():
    whole = rounds(small(), 1)
    resumed = small()
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    assert resumed.cumulative.equal(whole.cumulative)
    before = whole.history[:-1].clone()
    whole.update(torch.arange(2), torch.tensor([0, 5]), torch.tensor([math.nan, math.inf], dtype=torch.float64))
    assert whole.history[:-1].equal(before)
    assert small().state_dict()["history"].shape == before.shape
    assert sampler(name="mode").state_dict() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "gaussian"}, "process.density.name"),
        ({"name": "mode", "mean": 1.0}, "process.density.mean is 1.0, and 'mode' has no such setting"),
        ({"name": "logit_normal", "std": 0.0}, "std 0.0"),
        ({"name": "mode", "scale": 1.8}, "scale 1.8"),
        ({"name": "loss_second_moment", "reweight": True}, "reweight"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TimestepDensity(**settings)
