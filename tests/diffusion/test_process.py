"""The noise processes against closed forms: DDPM at both ends of the mask, telescoping, boundary, marginals, inverse map."""

import itertools
import math

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import EDM, Bands, Flow, PerPixel, RegionAware, RegionAwareFlow, Uniform
from rad.diffusion.schedules import fractional_timesteps, karras_sigmas, linear_betas, noise_grid, shifted_sigmas
from rad.diffusion.spacings import ALL_HOLE, sampling_timesteps, spaced_timesteps, time_travel

BETAS = linear_betas()
T1 = len(BETAS)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)  # plain DDPM, for comparison
NU = float(1 - ALPHA_BAR[-1])


def levels(t, *values, time_origin="official"):
    """(abar, Noise) of RAD at times t for hole values, each (len(t), len(values))."""
    t = torch.as_tensor(t)
    regions = NoiseRegions(
        torch.tensor([values], dtype=torch.float64).expand(len(t), -1), torch.zeros(len(t), 1, 1).long()
    )
    noise = RegionAware(BETAS, time_origin=time_origin).noise(t, regions)
    return noise.alpha.square(), noise


def test_linear_schedule_has_the_published_values():
    assert ALPHA_BAR[0] == pytest.approx(0.9999)
    assert float(ALPHA_BAR[999]) == pytest.approx(4.0358e-5, rel=1e-4)
    assert math.log(1 - NU) == pytest.approx(-10.1177, abs=1e-4)


def test_hole_follows_ddpm_in_phase_1_and_waits_in_phase_2():
    abar, _ = levels(range(2 * T1), 1.0)
    torch.testing.assert_close(abar[:T1, 0], ALPHA_BAR, rtol=1e-12, atol=0)
    assert len(set(abar[T1 - 1 :, 0].tolist())) == 1
    steps = abar[1:T1, 0] / abar[: T1 - 1, 0]
    torch.testing.assert_close(steps, 1 - BETAS[1:], rtol=1e-12, atol=0)


def test_known_waits_in_phase_1_and_follows_ddpm_in_phase_2():
    abar, noise = levels(range(2 * T1), 0.0)
    assert (abar[:T1] == 1).all()
    assert (noise.sigma[:T1] == 0).all()
    torch.testing.assert_close(abar[T1:, 0], ALPHA_BAR, rtol=1e-12, atol=0)


def test_soft_masks_telescope_and_are_monotone():
    m = torch.rand(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort().values
    abar, _ = levels(range(2 * T1), *m.tolist())
    a1, a2 = (1 - NU * m) ** 1.0, (1 - NU) / (1 - NU * m)
    gamma = torch.log1p(-BETAS) / math.log(1 - NU)
    single_steps = torch.cat([a1 ** gamma[:, None], a2 ** gamma[:, None]])  # a_t of the paper, one step each
    torch.testing.assert_close(abar, single_steps.cumprod(0), rtol=1e-9, atol=0)
    assert float(gamma.sum()) == pytest.approx(1)
    assert (abar.diff(dim=0) <= 0).all()
    assert (abar[:T1].diff(dim=1) <= 0).all(), "more mask, less signal in phase 1"


def test_boundary_of_the_phases_is_linear_in_the_mask_and_the_end_is_noise_everywhere():
    m = [0.0, 0.5, 0.9, 0.99, 0.999, 1.0]
    abar, _ = levels([T1 - 1, 2 * T1 - 1], *m)
    torch.testing.assert_close(abar[0], 1 - NU * torch.tensor(m, dtype=torch.float64), rtol=1e-11, atol=0)
    torch.testing.assert_close(abar[1], torch.full((6,), 1 - NU, dtype=torch.float64), rtol=1e-11, atol=0)


def test_a_batch_of_mixed_phases_equals_its_images_alone():
    hole = torch.rand(4, 1, 5, 7, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    t = torch.tensor([3, 999, 1000, 1700])
    process = RegionAware(BETAS)
    together = process.noise(t, NoiseRegions.from_mask(hole))
    for i in range(4):
        alone = process.noise(t[i : i + 1], NoiseRegions.from_mask(hole[i : i + 1]))
        assert torch.equal(together.alpha_map()[i : i + 1], alone.alpha_map())
        assert torch.equal(together.sigma_map()[i : i + 1], alone.sigma_map())
        assert torch.equal(together.spread(together.timesteps)[i : i + 1], alone.spread(alone.timesteps))


def test_clean_has_no_noise_anywhere():
    hole = (torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for process in (RegionAware(BETAS), Uniform(BETAS)):
        noise = process.noise(torch.tensor([CLEAN]), NoiseRegions.from_mask(hole))
        assert (noise.alpha_map() == 1).all()
        assert (noise.sigma_map() == 0).all()


def test_uniform_is_ddpm_and_equals_rad_with_everything_hole():
    t = torch.arange(T1)
    uniform = Uniform(BETAS).noise(t)
    torch.testing.assert_close(uniform.alpha.square()[:, 0], ALPHA_BAR, rtol=1e-12, atol=0)
    abar, rad = levels(range(T1), 1.0, time_origin="adm")
    torch.testing.assert_close(abar, uniform.alpha.square(), rtol=1e-12, atol=0)
    assert torch.equal(rad.timesteps.float(), uniform.timesteps.float()), (
        "the network receives the timestep of its training"
    )


def test_no_nan_at_the_extremes():
    hole = torch.zeros(3, 1, 4, 4)
    hole[1] = 1
    hole[2, 0, 1, 2], hole[2, 0, 0, 0] = 1, 1e-7
    for t in (CLEAN, 0, T1 - 1, T1, 2 * T1 - 1):
        noise = RegionAware(BETAS).noise(torch.full((3,), t), NoiseRegions.from_mask(hole))
        assert all(bool(values.isfinite().all()) for values in (noise.alpha_map(), noise.sigma_map(), noise.timesteps))


def test_regions_keep_every_value_and_its_place():
    hole = torch.tensor([[0.0, 0.25, 1.0], [0.25, 0.5, 0.0]])[None, None]
    both = torch.cat([hole, torch.ones_like(hole)])
    regions = NoiseRegions.from_mask(both)
    back = regions.values.gather(1, regions.index.flatten(1)).view(2, 1, 2, 3)
    assert torch.equal(back.float(), both)
    binary = (hole > 0.3).float()
    assert torch.equal(NoiseRegions.from_mask(binary).index, binary[:, 0].long())
    assert torch.equal(NoiseRegions.from_mask(binary).values, torch.tensor([[0.0, 1.0]], dtype=torch.float64))


def test_inverse_map_on_the_grid_is_exact_and_between_linear():
    grid = noise_grid(Uniform(BETAS).log_A[:-1])
    assert torch.equal(fractional_timesteps(grid, grid), torch.arange(T1 + 1, dtype=torch.float64))
    middle = (grid[:-1] + grid[1:]) / 2
    torch.testing.assert_close(
        fractional_timesteps(middle, grid), torch.arange(T1) + 0.5, rtol=1e-7, atol=1e-7, check_dtype=False
    )
    assert float(fractional_timesteps(torch.tensor([0.9999999], dtype=torch.float64), grid)) == T1, "clamped above"
    random = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort().values
    assert (fractional_timesteps(random, grid).diff() >= 0).all()


def test_level_search_equals_the_brute_force_search_of_every_pixel():
    hole = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    hole[1] = hole[1].round()
    t = torch.tensor([400, 1300])
    noise = RegionAware(BETAS, time_origin="official").noise(t, NoiseRegions.from_mask(hole))
    grid = noise_grid(Uniform(BETAS).log_A[:-1])
    intensity = noise.sigma_map().square()
    nearest = (intensity[..., None] - grid).abs().argmin(-1)
    low = torch.where(grid[nearest] > intensity, nearest - 1, nearest).clamp(0, T1 - 1)
    slow = low + (intensity - grid[low]) / (grid[low + 1] - grid[low])
    torch.testing.assert_close(noise.spread(noise.timesteps), slow.clamp(0, T1), rtol=1e-6, atol=1e-6)


def test_time_origins():
    _, official = levels([0, 500, 999], 0.0, 1.0, time_origin="official")
    _, adm = levels([0, 500, 999], 0.0, 1.0, time_origin="adm")
    torch.testing.assert_close(official.timesteps, torch.tensor([[0.0, 1], [0, 501], [0, 1000]], dtype=torch.float64))
    torch.testing.assert_close(
        adm.timesteps, torch.tensor([[0.0, 0], [0, 500], [0, 999]], dtype=torch.float64), atol=1e-5, rtol=0
    )
    _, image = levels([0, 500, 999], 0.0, 1.0, time_origin="image")
    assert torch.equal(image.timesteps, adm.timesteps[:, 1:].expand(3, 2)), (
        "every pixel has the timestep of the noisiest"
    )
    hole = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    whole = PerPixel(BETAS, time_origin="image").noise(torch.tensor([500]), NoiseRegions.from_mask(hole))
    assert whole.timesteps.tolist() == [[500, 500]]
    assert whole.sigma[0, 0] == 0, "the known pixel is clean all the same"


@pytest.mark.parametrize("count", [1, 2, 7, 100, 999, 1000])
def test_times_start_at_full_noise_and_end_clean(count):
    times = spaced_timesteps(1000, count)
    assert times[0] == 999
    assert times[-1] == CLEAN
    assert len(times) == count + 1
    assert all(now > nxt for now, nxt in itertools.pairwise(times)), "no level twice"
    if count > 1:
        assert times[-2] == 0


def test_official_times():
    assert spaced_timesteps(1000, 100, spacing="official")[:3] == [990, 980, 970]


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_impossible_step_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"steps is {count}; allowed are 1 to 1000"):
        spaced_timesteps(1000, count)


FLOW = Flow(shifted_sigmas(T1))
PROCESSES = {
    "uniform": Uniform(BETAS),
    "flow": FLOW,
    "edm": EDM(karras_sigmas(T1)),
    "rad": RegionAware(BETAS),
    "rad-official": RegionAware(BETAS, time_origin="official"),
    "rad-flow": RegionAwareFlow(FLOW),
    "tdpaint": PerPixel(BETAS),
    "tdpaint-training": PerPixel(BETAS, known=0),
    "bands": Bands(BETAS, bands=3, overlap=0.5),
}
SOFT = NoiseRegions.from_mask(torch.tensor([0.0, 0.25, 0.6, 1.0]).view(1, 1, 2, 2))


@pytest.mark.parametrize("name", list(PROCESSES))
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_whole_times_are_the_same_as_integers_and_as_floats(name, kind):
    process = PROCESSES[name]
    t = torch.arange(CLEAN, process.steps)
    regions = NoiseRegions(SOFT.values.expand(len(t), -1), SOFT.index.expand(len(t), -1, -1))
    whole, real = process.noise(t, regions), process.noise(t.to(kind), regions)
    assert torch.equal(real.alpha, whole.alpha)
    assert torch.equal(real.sigma, whole.sigma)
    assert torch.equal(real.timesteps, whole.timesteps)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "bands"])
def test_levels_at_fractional_times_lie_between_their_neighbours_and_noise_grows(name):
    process = PROCESSES[name]
    t = torch.linspace(CLEAN, process.steps - 1, 7 * process.steps + 1, dtype=torch.float64)
    regions = NoiseRegions(SOFT.values.expand(len(t), -1), SOFT.index.expand(len(t), -1, -1))
    noise = process.noise(t, regions)
    ratio = noise.sigma / noise.alpha
    assert bool((ratio.diff(dim=0) >= -1e-15).all())
    assert bool((ratio[:, -1].diff()[: 6 * process.sampled_steps] > 0).all())
    assert bool(noise.timesteps.isfinite().all())


@pytest.mark.parametrize("name", ["uniform", "rad", "tdpaint"])
def test_the_network_gets_the_fractional_time_and_the_level_that_belongs_to_it(name):
    """1 - abar is linear between the grid points, as `fractional_timesteps` has it; at t = 3.25 by hand."""
    noise = PROCESSES[name].noise(torch.tensor([3.25, 0.5, 998.875], dtype=torch.float64), ALL_HOLE)
    torch.testing.assert_close(
        noise.timesteps[:, -1], torch.tensor([3.25, 0.5, 998.875], dtype=torch.float64), atol=1e-8, rtol=0
    )
    by_hand = 0.75 * (1 - ALPHA_BAR[3]) + 0.25 * (1 - ALPHA_BAR[4])
    assert float(noise.sigma[0, -1] ** 2) == pytest.approx(float(by_hand), rel=1e-12)
    assert float(noise.sigma[0, -1] ** 2 + noise.alpha[0, -1] ** 2) == pytest.approx(1, rel=1e-12)


def test_sigma_of_a_flow_is_linear_between_its_levels():
    sigmas = FLOW.sigmas
    for process in (FLOW, RegionAwareFlow(FLOW)):
        noise = process.noise(torch.tensor([10.25], dtype=torch.float64), ALL_HOLE)
        by_hand = float(0.75 * sigmas[10] + 0.25 * sigmas[11])
        assert float(noise.sigma[0, -1]) == pytest.approx(by_hand, rel=1e-14)
        assert float(noise.timesteps[0, -1]) == pytest.approx(1000 * by_hand, rel=1e-14)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "bands"])
def test_a_log_snr_is_found_at_its_time(name):
    process = PROCESSES[name]
    times = torch.tensor([0.0, 0.3, 7.75, 500.5, 900.0, 998.4, 999.0], dtype=torch.float64)
    noise = process.noise(times, ALL_HOLE)
    found = process.time_of((noise.alpha / noise.sigma).log()[:, -1])
    torch.testing.assert_close(found, times, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "bands"])
def test_logsnr_spacing_is_even_in_log_snr(name):
    process = PROCESSES[name]
    times = sampling_timesteps(process, 12, spacing="logsnr", fractional=True)
    assert (times[0], times[-2:], len(times)) == (T1 - 1, [0, CLEAN], 13)
    noise = process.noise(torch.tensor(times[:-1], dtype=torch.float64), ALL_HOLE)
    steps = (noise.alpha / noise.sigma).log()[:, -1].diff()
    torch.testing.assert_close(steps, steps.mean().expand(11), rtol=1e-8, atol=0)
    assert bool((steps > 0).all())


def test_spacings_by_hand():
    process = Uniform(BETAS)
    assert sampling_timesteps(process, 4, spacing="trailing") == [999, 749, 499, 249, CLEAN]
    assert sampling_timesteps(process, 5, spacing="quad") == [999, 562, 250, 62, 0, CLEAN]
    assert sampling_timesteps(process, 3, spacing="quad", fractional=True) == [999, 249.75, 0, CLEAN]
    assert sampling_timesteps(process, 3) == spaced_timesteps(1000, 3) == [999, 500, 0, CLEAN]
    for spacing in ("even", "trailing", "quad", "logsnr", "official"):
        assert sampling_timesteps(process, 1, spacing=spacing) == [999, CLEAN]
        for fractional in (False, True):
            times = sampling_timesteps(process, 300, spacing=spacing, fractional=fractional)
            assert all(now > nxt for now, nxt in itertools.pairwise(times)), "no level twice"
            assert len(times) == 301 or not fractional
            assert fractional or all(isinstance(t, int) for t in times)
    assert sampling_timesteps(process, 1000, spacing="trailing") == [*range(999, -1, -1), CLEAN]


def test_bands_have_no_common_log_snr():
    with pytest.raises(ValueError, match="needs one noise level for the whole hole"):
        sampling_timesteps(PROCESSES["bands"], 5, spacing="logsnr")


@pytest.mark.parametrize("t", [-1.5, 999.5, float("nan")])
def test_fractional_times_outside_the_range_are_refused(t):
    with pytest.raises(ValueError, match=r"allowed are -1 \(clean\) to 999"):
        Uniform(BETAS).noise(torch.tensor([t]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="expected \\(B,1,H,W\\)"):
        NoiseRegions.from_mask(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"0 \(known\) to 1 \(fill\)"):
        NoiseRegions.from_mask(torch.full((1, 1, 2, 2), 255.0))
    with pytest.raises(ValueError, match=r"allowed are -1 \(clean\) to 1999"):
        levels([2000], 0.0)
    with pytest.raises(ValueError, match="time_origin"):
        RegionAware(BETAS, time_origin="other")


@pytest.mark.parametrize(
    ("levels", "length", "visits", "reverse", "forward"),
    [(250, 10, 10, 2410, 2160), (250, 10, 1, 250, 0), (250, 10, 2, 490, 240), (250, 10, 3, 730, 480), (100, 10, 10, 910, 810)],
)  # fmt: skip
def test_time_travel_has_repaints_counts(levels, length, visits, reverse, forward):
    times = spaced_timesteps(1000, levels)
    path = time_travel(times, length=length, visits=visits)
    moves = [later - earlier for earlier, later in itertools.pairwise(path)]
    assert (sum(move < 0 for move in moves), sum(move > 0 for move in moves)) == (reverse, forward)
    assert path[0] == times[0]
    assert path[-2:] == [0, CLEAN]
    places = {time: place for place, time in enumerate(times)}
    assert all(abs(places[a] - places[b]) == 1 for a, b in itertools.pairwise(path))
    if visits > 1:
        down = times[: 2 * length]  # the first anchor is 2 length levels from the start, N being a multiple of length
        assert path[: 2 * length] == down
        assert path[2 * length : 3 * length] == down[-2 : -2 - length : -1]
