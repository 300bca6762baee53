"""Growing with RAD: bands partition the hole, each has the whole schedule, and the law stays unbiased in any order."""

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.masks.fill_order import fill_order
from rad.methods.growrad import GrowRAD
from rad.methods.rad import RAD
from tests.gaussian import distance, law, make_world

WORLD = make_world()


def test_bands_go_inwards_and_have_equal_areas():
    hole = torch.zeros(1, 1, 9, 9)
    hole[..., 1:8, 1:8] = 1
    order = fill_order(hole, 3)
    assert float(order[hole == 0].abs().max()) == 0
    areas = [(order * 3 - band).abs().lt(1e-9).sum().item() for band in (1, 2, 3)]
    assert areas == [16, 16, 17]
    depths = torch.tensor([0, 1, 2, 3, 4, 3, 2, 1, 0])
    depth = torch.minimum(depths[:, None], depths)
    for d in range(3):
        assert order[0, 0][depth == d].max() <= order[0, 0][depth == d + 1].min()


def test_distances_are_those_of_4_neighbours():
    hole = torch.ones(1, 1, 5, 5)
    hole[..., 2, 2] = 0
    first = fill_order(hole, 6)[0, 0] == 1 / 6
    assert first.nonzero().tolist() == [[1, 2], [2, 1], [2, 3], [3, 2]]


def test_an_image_that_is_all_known_or_all_hole_has_no_order():
    assert float(fill_order(torch.zeros(1, 1, 4, 4), 4).max()) == 0
    assert (fill_order(torch.ones(1, 1, 4, 4), 4) == 0.25).all()


def test_without_overlap_a_band_waits_for_the_one_before_it():
    process = GrowRAD(bands=2, overlap=0).process(Uniform(linear_betas()), "adm")
    regions = NoiseRegions.from_mask(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
    seen = [process.noise(torch.tensor([t]), regions).sigma[0].tolist() for t in (999, 750, 499, 250, CLEAN)]
    assert all(s[0] == 0 for s in seen), "the known pixel is clean throughout"
    assert 0.9 < seen[1][1] < seen[1][2], "the first band is on its way, the second waits"
    assert seen[2][1] == 0, "half-way the first band is clean and the second starts"
    assert seen[2][2] > 0.99
    assert seen[-1] == [0, 0, 0]


def test_every_band_has_its_own_time_whatever_their_number():
    process = GrowRAD(bands=25, overlap=0).process(Uniform(linear_betas()), "adm")
    regions = NoiseRegions.from_mask((torch.arange(26) / 25).double().view(1, 1, 1, 26))
    halfway = process.noise(torch.tensor([700]), regions).timesteps[0].tolist()
    assert halfway[1:8] == [0] * 7
    assert 0 < halfway[8] < 999
    assert halfway[9:] == [999] * 17


@pytest.mark.parametrize("method", [GrowRAD(bands=1), GrowRAD(bands=4, overlap=1)])
def test_one_band_or_full_overlap_is_rad(method):
    for ours, rads in zip(law(WORLD, method, steps=50), law(WORLD, RAD(), steps=50, solver="ddpm"), strict=True):
        torch.testing.assert_close(ours, rads, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("overlap", "ratio", "kl"), [(0.0, 0.470, 2.679), (0.5, 0.667, 0.969)])
def test_any_order_is_unbiased_and_pays_with_the_steps_that_a_band_has(overlap, ratio, kl):
    """Exact propagation at 100 levels. Each of four consecutive bands has 25 levels, so the limit is that of 25 steps."""
    reached = distance(WORLD, *law(WORLD, GrowRAD(bands=4, overlap=overlap), steps=100))
    assert reached.mean_error < 1e-3
    assert reached.variance_ratio == pytest.approx(ratio, rel=2e-3)
    assert reached.kl == pytest.approx(kl, rel=2e-3)
