"""RePaint: its plan, replacement as its special case, and how far it is from the posterior of Gaussian data."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.repaint import RePaint
from rad.methods.replacement import Replacement
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from tests.gaussian import distance, law, make_world, sampled


@pytest.mark.parametrize(
    ("steps", "length", "visits", "down", "up"),
    [
        (250, 10, 10, 2410, 2160),
        (250, 10, 1, 250, 0),
        (250, 10, 2, 490, 240),
        (250, 10, 3, 730, 480),
        (100, 10, 10, 910, 810),
    ],
)
def test_moves_down_and_up(steps, length, visits, down, up):
    sampler = Sampler(Uniform(linear_betas()), RePaint(jump_length=length, resamplings=visits), steps=steps)
    moves = [later < earlier for earlier, later in pairwise(sampler.timesteps)]
    assert (sampler.cost.nfe, sampler.cost.vjp) == (down, 0)
    assert (moves.count(True), moves.count(False)) == (down, up)
    assert sampler.timesteps[-1] == CLEAN
    assert CLEAN not in sampler.timesteps[:-1]


def test_one_visit_is_replacement():
    world = make_world()
    mean, covariance = law(world, RePaint(resamplings=1), steps=50)
    other_mean, other_covariance = law(world, Replacement(), steps=50)
    torch.testing.assert_close(mean, other_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(covariance, other_covariance, rtol=0, atol=1e-12)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("steps", "visits", "mean_error", "variance_ratio", "kl"),
    [(250, 1, 1.0841, 2.2953, 5.1765), (250, 3, 0.5705, 1.5137, 1.3560), (50, 10, 0.8626, 1.5734, 4.8482)],
)
def test_distance_from_the_posterior(steps, visits, mean_error, variance_ratio, kl):
    world = make_world()
    found = distance(world, *law(world, RePaint(resamplings=visits), steps=steps, draws=12))
    # Propagated, not sampled: the tolerance is for rounding of these numbers. The preset: 0.306, 1.137, 0.454 (4 s).
    assert (found.mean_error, found.variance_ratio, found.kl) == pytest.approx(
        (mean_error, variance_ratio, kl), rel=1e-3
    )


def test_travelling_keeps_the_law_where_everything_is_to_be_filled():
    world = make_world()
    everything = replace(world, hole=torch.ones_like(world.hole))
    plain = law(everything, SamplingMethod(), steps=100)[1].trace()
    travelled = law(everything, RePaint(resamplings=2), steps=100, draws=12)[1].trace()
    # Not exactly: each step makes too little variance for its length, by 1 % here, and there are more steps.
    assert float(travelled / plain) == pytest.approx(1, abs=0.02)


def test_raw_known_pixels_equal_those_of_the_image():
    world = make_world()
    raw = sampled(world, RePaint(jump_length=2, resamplings=2), steps=10, rows=2)
    known = world.hole.expand_as(raw) == 0
    assert torch.equal(raw[known], world.y.expand_as(raw)[known])
