"""Learning-rate schedules against their closed forms."""

import math

import pytest
import torch

from rad.training.schedules import Schedule

TOTAL, WARMUP = 20, 4


def rates(schedule, steps=TOTAL):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, seen = schedule.build(optimizer, TOTAL), []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        scheduler.step()
    return seen


def progress(step):
    return (step - WARMUP) / (TOTAL - WARMUP)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"name": "linear"}, lambda step: 1 - progress(step)),
        ({"name": "cosine"}, lambda step: (1 + math.cos(math.pi * progress(step))) / 2),
        ({"name": "polynomial", "power": 2.0}, lambda step: (1 - progress(step)) ** 2),
        (
            {"name": "cosine_with_restarts", "cycles": 2},
            lambda step: (1 + math.cos(math.pi * (2 * progress(step) % 1))) / 2 if step < TOTAL else 0,
        ),
        ({"name": "inverse_sqrt"}, lambda step: math.sqrt(WARMUP / step)),
        ({"name": "inverse_sqrt", "reference_steps": 8}, lambda step: math.sqrt(8 / max(step, 8))),
        (
            {"name": "piecewise_constant", "rules": "1:6,0.5:10,0.1"},
            lambda step: 1 if step < 6 else 0.5 if step < 10 else 0.1,
        ),
        (
            {"name": "warmup_stable_decay", "decay_share": 0.25},
            lambda step: (1 + math.cos(math.pi * max(0, step - 15) / 5)) / 2,
        ),
    ],
)
def test_factors_after_a_linear_warm_up(settings, factor):
    expected = [step / WARMUP if step < WARMUP else factor(step) for step in range(TOTAL + 1)]
    assert rates(Schedule(**settings, warmup_steps=WARMUP)) == pytest.approx(expected)


def test_rules_are_read_as_diffusers_reads_them():
    from diffusers.optimization import get_piecewise_constant_schedule

    rules = "1:3,0.2:9,0.05"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = get_piecewise_constant_schedule(optimizer, rules).lr_lambdas[0]
    assert rates(Schedule("piecewise_constant", rules=rules)) == pytest.approx(list(map(factor, range(TOTAL + 1))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "linear", "power": 2.0}, "schedule.power is 2.0, which is for the schedule 'polynomial'"),
        ({"name": "inverse_sqrt"}, "schedule.reference_steps is 0"),
        ({"name": "inverse_sqrt", "reference_steps": 5, "warmup_steps": 6}, "schedule.warmup_steps, 6"),
        ({"name": "piecewise_constant"}, "schedule.rules is None"),
        ({"name": "piecewise_constant", "rules": "1:10,0.1:5,0"}, "increasing steps"),
        ({"name": "piecewise_constant", "rules": "1:10,0.1:20"}, "the last factor"),
        ({"name": "cosine_with_restarts", "cycles": 0}, "schedule.cycles 0"),
        ({"name": "exponential"}, "allowed are constant"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)


@pytest.mark.parametrize("name", ["polynomial", "cosine_with_restarts", "linear"])
def test_a_decay_to_zero_needs_the_length_of_the_run(name):
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        Schedule(name).build(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), -1)
