"""Two values of a Gaussian, one of them known, on a flow: laws that were measured independently of this code.

x0 ~ N(0, C), C = [[1, 0.8], [0.8, 1]], y = 1: given it the other is N(0.8, 0.36). The levels of the flow are sigma =
3 tau / (1 + 2 tau), tau even from 0.9997 to 0 at n points. None of these methods has the exact law; the numbers are bands.
"""

import pytest
import torch

from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.processes import Flow
from rad.methods.daps import DAPS
from rad.methods.psld import PSLD
from rad.methods.reddiff import REDDiff
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import DOUBLE

PRIOR = GaussianDenoiser(torch.zeros(1, 1, 2, dtype=DOUBLE), torch.tensor([[1, 0.8], [0.8, 1]], dtype=DOUBLE))


class Tape:
    """Normal images for a whole batch, quicker than a generator for every image."""

    def __init__(self, rows):
        self.rows, self.numbers = rows, torch.Generator().manual_seed(0)

    def randn(self, number, shape):
        return torch.randn(self.rows, *shape, generator=self.numbers, dtype=DOUBLE)


def law(method, points, *, rows=2500, eta=None):
    """Mean and deviation of the known value, mean and variance of the other."""
    tau = torch.linspace(0, 0.9997, points, dtype=DOUBLE)[1:]
    y, hole = (torch.tensor(pair, dtype=DOUBLE).expand(rows, 1, 1, 2) for pair in ([1.0, 0.0], [0.0, 1.0]))
    sampler = Sampler(
        Flow(3 * tau / (1 + 2 * tau)), method, steps=points - 1, eta=method.preset_eta if eta is None else eta
    )
    known, other = sampler(PRIOR, Task.from_image(y, hole), noise=Tape(rows)).raw.flatten(1).T
    return tuple(map(float, (known.mean(), known.std(), other.mean(), other.var())))


# tau of the independent code is the deviation of y; here it is that times sqrt(2).
EXACT = DAPS(calls=2, hole="draw", tau=0.01 * 2**0.5)
LANGEVIN = DAPS(calls=2, hole="draw", tau=0.01 * 2**0.5, mcmc="langevin")
CONST = REDDiff(rate=0.2, weighting="const")


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("method", "points", "expected"),
    [
        (EXACT, 50, (1.000, 0.010, 0.658, 0.710)),
        (EXACT, 200, (1.000, 0.010, 0.744, 0.559)),
        (LANGEVIN, 50, (0.988, 0.041, 0.581, 0.313)),
        (CONST, 50, (0.966, 0.152, 0.641, 0.224)),
        (CONST, 200, (0.996, 0.176, 0.760, 0.517)),
    ],
    ids=lambda value: value.name if isinstance(value, DAPS | REDDiff) else None,
)
def test_the_law_is_that_of_an_independent_computation(method, points, expected):
    mean, deviation, other, variance = law(method, points)
    assert mean == pytest.approx(expected[0], abs=0.03)
    assert deviation == pytest.approx(expected[1], rel=0.1)
    assert other == pytest.approx(expected[2], abs=0.03)
    assert variance == pytest.approx(expected[3], rel=0.1)


def test_psld_reduces_the_error_of_known_pixels_and_of_the_hole():
    few, many = (law(PSLD(omega=0.05, gamma=0.05), points, rows=500, eta=1) for points in (50, 200))
    assert abs(many[0] - 1) < 0.02 < abs(few[0] - 1)
    assert many[1] < 0.3 * few[1]
    assert many[2] > few[2] > 0.3
