"""TD-Paint: per-pixel whole steps; on a mask of 0 and 1 its levels and times are RAD's with the ADM time origin."""

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import PerPixel, Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.growrad import GrowRAD
from rad.methods.rad import RAD
from rad.methods.tdpaint import TDPaint
from tests.gaussian import distance, law, make_world

WORLD = make_world()
BETAS = linear_betas()
REGIONS = NoiseRegions.from_mask(WORLD.hole)


@pytest.mark.parametrize("method", [TDPaint(), GrowRAD(bands=1)])
@pytest.mark.parametrize("origin", ["adm", "official"])
@pytest.mark.parametrize("t", [CLEAN, 0, 1, 500, 999])
def test_the_levels_are_rads(t, origin, method):
    time = torch.tensor([t])
    ours, rads = (one.process(Uniform(BETAS), origin).noise(time, REGIONS) for one in (method, RAD()))
    torch.testing.assert_close(ours.alpha_map(), rads.alpha_map(), rtol=0, atol=1e-14)
    torch.testing.assert_close(ours.sigma_map(), rads.sigma_map(), rtol=0, atol=1e-14)
    torch.testing.assert_close(ours.timesteps, rads.timesteps, rtol=0, atol=1e-6)


def test_in_training_known_pixels_hold_the_least_noise():
    noise = PerPixel(BETAS, known=0).noise(torch.tensor([700]), REGIONS)
    least, now = (Uniform(BETAS).noise(torch.tensor([t])) for t in (0, 700))
    known, hole = (noise.spread(noise.sigma)[WORLD.hole == value] for value in (0, 1))
    assert (known == least.sigma.item()).all()
    assert (hole == now.sigma.item()).all()
    clean = PerPixel(BETAS, known=0).noise(torch.tensor([CLEAN]), REGIONS)
    assert float(clean.sigma.max()) == 0


def test_its_law_is_rads_and_lies_at_the_floor_of_the_step_variance():
    ours, rads = (distance(WORLD, *law(WORLD, method, steps=100, solver="ddpm")) for method in (TDPaint(), RAD()))
    assert ours.kl == pytest.approx(rads.kl, rel=1e-9)
    assert rads.kl == pytest.approx(0.568, rel=1e-3)
    assert rads.variance_ratio == pytest.approx(0.808, rel=1e-3)
    assert rads.mean_error < 1e-4


def test_a_soft_mask_is_filled_altogether():
    soft = (
        TDPaint().process(Uniform(BETAS), "adm").noise(torch.tensor([300]), NoiseRegions.from_mask(0.25 * WORLD.hole))
    )
    assert float(soft.sigma_map().max()) == Uniform(BETAS).noise(torch.tensor([300])).sigma.item()
