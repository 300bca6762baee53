"""DPM-Solver++(2M) against closed forms and on Gaussian data; errors of the sampler."""

import math
from itertools import pairwise

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import EDM, Flow, PerPixel, RegionAware, RegionAwareFlow, Uniform
from rad.diffusion.schedules import karras_sigmas, linear_betas, shifted_sigmas
from rad.diffusion.solvers import History, multistep, weights
from rad.diffusion.spacings import sampling_timesteps, spaced_timesteps
from rad.diffusion.step import Denoised, reverse_step
from rad.methods import METHODS
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, law_of_draws, make_world

BETAS = linear_betas()
FLOW = Flow(shifted_sigmas(1000))
WORLD = make_world()
HOLE = torch.tensor([[0.0, 1.0, 1.0], [0.3, 0.7, 0.0]])[None, None]
PROCESSES = {
    "ddpm": Uniform(BETAS),
    "flow": FLOW,
    "edm": EDM(karras_sigmas(1000)),
    "rad": RegionAware(BETAS),
    "rad-flow": RegionAwareFlow(FLOW),
    "tdpaint": PerPixel(BETAS),
}


def chain(name, steps=6, spacing="logsnr"):
    process = PROCESSES[name]
    times = sampling_timesteps(process, steps, spacing=spacing, fractional=True)
    return [process.noise(torch.tensor([t], dtype=DOUBLE), NoiseRegions.from_mask(HOLE)) for t in times]


def draw(seed, channels=3):
    return torch.randn(1, channels, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("name", list(PROCESSES))
def test_the_ode_step_is_exact_for_a_constant_estimate(name):
    """If x0 is equal at all levels, x keeps its e: x = a x0 + s e at every level, for any step."""
    levels, x0, e = chain(name), draw(0), draw(1)
    x, before = levels[0].alpha_map() * x0 + levels[0].sigma_map() * e, None
    for now, nxt in pairwise(levels):
        x, before = multistep(x, x0, now, nxt, before=before)
        torch.testing.assert_close(x, nxt.alpha_map() * x0 + nxt.sigma_map() * e, rtol=0, atol=1e-11)
    assert torch.allclose(x, x0)


@pytest.mark.parametrize("name", list(PROCESSES))
def test_the_sde_step_keeps_the_marginal_law(name):
    """x = a x0 + s e goes to mean a_u x0 and variance s_u^2 at the next level, with e and the fresh noise independent."""
    levels = chain(name)
    h_before = None
    for now, nxt in pairwise(levels):
        each = weights(now, nxt, h_before, eta=1.0)
        kept = each.h == 0
        mean = each.x * now.alpha + each.x0 + each.before  # x0_before = x0
        variance = (each.x * now.sigma).square() + each.noise.square()
        torch.testing.assert_close(torch.where(kept, nxt.alpha, mean), nxt.alpha, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.where(kept, nxt.sigma, variance.sqrt()), nxt.sigma, rtol=1e-9, atol=1e-12)
        h_before = each.h


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", list(PROCESSES))
def test_without_a_history_it_is_ddim_and_ddpm(name, eta):
    x, x0, other, noise = (draw(seed) for seed in range(4))
    for now, nxt in pairwise(chain(name)):
        first = reverse_step(x, Denoised(x0), now, nxt, eta=eta, noise=noise)
        none, _ = multistep(x, x0, now, nxt, before=None, eta=eta, noise=noise)
        unchanged = History(other, torch.zeros_like(now.alpha))
        zero, _ = multistep(x, x0, now, nxt, before=unchanged, eta=eta, noise=noise)
        torch.testing.assert_close(none, first, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(zero, none, rtol=0, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", list(PROCESSES))
def test_the_step_is_the_papers_formula(name, eta):
    """Written out for a single pixel, with exponentials, as Lu et al. have it."""
    levels, (x, x0, old, noise) = chain(name), (draw(seed, 1) for seed in range(4))
    for before, now, nxt in zip(levels, levels[1:], levels[2:-1], strict=False):
        made, _ = multistep(
            x, x0, now, nxt, before=History(old, weights(before, now, None, eta=eta).h), eta=eta, noise=noise
        )
        maps = [(level.alpha_map().expand_as(x), level.sigma_map().expand_as(x)) for level in (before, now, nxt)]
        for place in map(tuple, HOLE.bool().nonzero().tolist()):
            (a0, s0), (a, s), (au, su) = ((float(a[place]), float(s[place])) for a, s in maps)
            at, lam = (
                [float(values[place]) for values in (x, x0, old, noise)],
                [math.log(a0 / s0), math.log(a / s), math.log(au / su)],
            )
            h, h_before = lam[2] - lam[1], lam[1] - lam[0]
            D = at[1] + h / (2 * h_before) * (at[1] - at[2])
            if eta:
                expected = su / s * math.exp(-h) * at[0] + au * (1 - math.exp(-2 * h)) * D
                expected += su * math.sqrt(1 - math.exp(-2 * h)) * at[3]
            else:
                expected = su / s * at[0] - au * (math.exp(-h) - 1) * D
            assert float(made[place]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_levels_that_do_not_change_come_back_bit_for_bit(eta):
    for name in ("rad", "rad-flow", "tdpaint"):
        x, before = draw(0).float(), None
        known = (HOLE == 0).expand_as(x)
        start = x
        for number, (now, nxt) in enumerate(pairwise(chain(name))):
            x, before = multistep(x, draw(number + 1).float(), now, nxt, before=before, eta=eta, noise=draw(9).float())
            assert torch.equal(x[known], start[known])
            assert bool(x.isfinite().all())
            assert not (x == start)[~known].any()


def test_each_level_of_a_soft_mask_has_its_own_steps():
    """A map of several levels gives the results of one image per level."""
    whole = chain("rad")
    x, before = draw(0), None
    for number, (now, nxt) in enumerate(pairwise(whole)):
        x, before = multistep(x, draw(number + 1), now, nxt, before=before)
    for value in (0.3, 0.7, 1.0):
        # One level alone, without the levels 0 and 1 that `from_mask` adds: its history is its own.
        regions = NoiseRegions(
            torch.tensor([[value]], dtype=DOUBLE), torch.zeros(1, *HOLE.shape[2:], dtype=torch.int64)
        )
        times = sampling_timesteps(PROCESSES["rad"], 6, spacing="logsnr", fractional=True)
        single = [PROCESSES["rad"].noise(torch.tensor([t], dtype=DOUBLE), regions) for t in times]
        alone, before = draw(0), None
        for number, (now, nxt) in enumerate(pairwise(single)):
            alone, before = multistep(alone, draw(number + 1), now, nxt, before=before)
        here = (value == HOLE).expand_as(x)
        torch.testing.assert_close(x[here], alone[here], rtol=0, atol=1e-12)


def test_noise_is_asked_for():
    now, nxt = chain("ddpm")[:2]
    with pytest.raises(ValueError, match="needs noise of shape"):
        multistep(draw(0), draw(1), now, nxt, before=None, eta=1.0)


# ---- on Gaussian data ------------------------------------------------------------------------------


@pytest.mark.spread(1)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++2m", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver, order):
    """Distance of the end of the ODE from that with very many steps, each time with half of them."""

    def end(steps, solver=solver):
        task = Task.from_image(WORLD.y, WORLD.hole)
        with KeyedNoise(0, range(1)) as noise:
            sampler = Sampler(RegionAware(BETAS), METHODS["rad"](), steps=steps, solver=solver, spacing="logsnr")
            return sampler(WORLD.denoiser, task, noise=noise).raw

    exact = end(1000, "dpm++2m")
    errors = [float((end(steps) - exact).square().mean().sqrt()) for steps in (25, 50, 100)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


# (solver, spacing, eta): variance ratio and KL at 5, 8, 10, 20, 50 and 100 NFE.
TABLE = {
    ("ddpm", "even", 1.0): [(0.13, 21), (0.25, 14), (0.31, 11), (0.49, 4.9), (0.70, 1.5), (0.81, 0.57)],
    ("ddim", "even", 0.0): [(0.16, 17), (0.32, 11), (0.40, 8.3), (0.61, 3.3), (0.81, 0.62), (0.90, 0.17)],
    ("ddim", "quad", 0.0): [(0.38, 4.8), (0.58, 1.5), (0.65, 0.99), (0.82, 0.26), (0.92, 0.045), (0.96, 0.013)],
    ("dpm++2m", "quad", 0.0): [
        (1.04, 0.57),
        (1.24, 0.092),
        (1.20, 0.11),
        (1.06, 0.031),
        (1.01, 0.00037),
        (1.00, 0.0001),
    ],
    ("dpm++2m", "logsnr", 0.0): [
        (0.66, 0.63),
        (1.01, 0.020),
        (1.05, 0.0024),
        (1.03, 0.0014),
        (1.00, 0.00011),
        (1.00, 0.00022),
    ],
    ("dpm++2m", "logsnr", 1.0): [
        (0.50, 1.3),
        (0.90, 0.19),
        (1.01, 0.024),
        (1.06, 0.0082),
        (1.01, 0.00013),
        (1.00, 0.00012),
    ],
}
NFE = (5, 8, 10, 20, 50, 100)


@pytest.mark.spread(2)
@pytest.mark.parametrize(("solver", "spacing", "eta"), list(TABLE))
def test_the_table_of_solvers_and_spacings(solver, spacing, eta):
    """The exact law of RAD's samples, to two digits: variance of the hole over the posterior's, and KL from the posterior."""
    for steps, (ratio, kl) in zip(NFE, TABLE[solver, spacing, eta], strict=True):
        options = {"solver": solver, "spacing": spacing, "eta": eta}
        reached = distance(WORLD, *law(WORLD, METHODS["rad"](), steps=steps, **options))
        assert reached.mean_error < 0.008
        assert reached.variance_ratio == pytest.approx(ratio, abs=0.0061)
        assert reached.kl == pytest.approx(kl, rel=0.05)


def test_even_spacing_does_harm_to_the_second_order():
    """Why the pair is refused: on even times the samples have far too much variance, and a large KL."""
    for steps, ratio, kl in ((10, 1.43, 1.7), (20, 1.39, 0.23), (50, 1.19, 0.33)):
        rad = METHODS["rad"]()
        chosen, times = rad.choose(steps=steps), spaced_timesteps(1000, steps)
        reached = distance(WORLD, *law_of_draws(WORLD, rad, chosen, times=times))
        assert reached.variance_ratio == pytest.approx(ratio, abs=0.006)
        assert reached.kl == pytest.approx(kl, rel=0.05)


# ---- in the sampler --------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["quad", "logsnr"])
def test_rad_calls_the_network_once_a_step_and_keeps_known_pixels(spacing, eta):
    soft = (0.5 * WORLD.hole).roll(1, -1).maximum(WORLD.hole)
    for steps in (1, 2, 7, 60):
        sampler = Sampler(RegionAware(BETAS), METHODS["rad"](), steps=steps, solver="dpm++2m", spacing=spacing, eta=eta)
        with KeyedNoise(0, range(1)) as noise:
            sample = sampler(WORLD.denoiser, Task.from_image(WORLD.y, soft), noise=noise)
        assert sample.nfe == sampler.cost.nfe == steps
        assert torch.equal(sample.raw[soft == 0], WORLD.y[soft == 0])
        assert bool(sample.raw.isfinite().all())


def test_zero_shot_methods_get_whole_times_each_once():
    sampler = Sampler(Uniform(BETAS), METHODS["ddnm"](), steps=100, spacing="logsnr")
    assert all(isinstance(t, int) for t in sampler.timesteps)
    assert sampler.timesteps == sorted(set(sampler.timesteps), reverse=True)
    assert sampler.timesteps[0] == 999
    assert sampler.timesteps[-2:] == [0, CLEAN]
    assert sampler.cost.nfe == len(sampler.timesteps) - 1 == 94
    plain = Sampler(Uniform(BETAS), steps=100, spacing="logsnr")
    assert plain.cost.nfe == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler"}, "solver is 'euler'; allowed are ddpm, ddim, dpm"),
        ({"spacing": "cosine"}, "spacing is 'cosine'; allowed are even, trailing, quad, logsnr, official"),
        ({"solver": "ddim", "eta": 1.0}, "'ddim' allows 0"),
        ({"solver": "dpm++2m", "spacing": "logsnr", "eta": 0.5}, r"allows 0 \(ODE\) and 1 \(SDE\)"),
        ({"solver": "dpm++2m"}, "spacing is 'even'.*use spacing 'logsnr' or 'quad'"),
        ({"solver": "dpm++2m", "spacing": "trailing"}, "spacing is 'trailing'"),
        ({"solver": "dpm++2m", "spacing": "official"}, "spacing is 'official'"),
    ],
)
def test_bad_combinations_are_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(RegionAware(BETAS), steps=5, **options)


def test_methods_that_change_x_or_x0_refuse_the_second_order():
    for name, kind in METHODS.items():
        method = kind()
        options = {"steps": 5, "solver": "dpm++2m", "spacing": "logsnr" if kind.uses_spacing else "quad"}
        if name in ("rad", "tdpaint", "inpainting_model"):
            Sampler(method.process(Uniform(BETAS), "adm"), method, **options)
            continue
        with pytest.raises(ValueError, match="extrapolates from the previous step"):
            Sampler(method.process(Uniform(BETAS), "adm"), method, **options)


def test_a_plan_that_goes_back_refuses_the_second_order():
    class Travel(SamplingMethod):
        multistep = True

        def plan(self, times):
            return [*times[:3], times[1], *times[2:]]

    with pytest.raises(ValueError, match="goes back to noisier levels"):
        Sampler(Uniform(BETAS), Travel(), steps=5, solver="dpm++2m", spacing="quad")


def test_a_choice_of_solver_brings_its_spacing_and_eta():
    class Second(SamplingMethod):
        preset_solver, preset_spacing, preset_eta, preset_steps = "dpm++2m", "logsnr", 0.0, 20

    def chosen(kind, **options):
        return tuple(vars(kind().choose(**options)).values())

    assert chosen(Second) == (20, "dpm++2m", "logsnr", 0.0)
    assert chosen(Second, eta=1.0) == (20, "dpm++2m", "logsnr", 1.0)
    assert chosen(Second, solver="ddpm") == (20, "ddpm", "even", 1.0)
    assert chosen(Second, solver="ddim", spacing="quad") == (20, "ddim", "quad", 0.0)
    assert chosen(METHODS["dps"], spacing="trailing") == (1000, "ddpm", "trailing", 1.0)
    assert chosen(METHODS["tdpaint"], solver="dpm++2m", steps=10) == (10, "dpm++2m", "logsnr", 0.0)
    everything = {"solver": "ddim", "spacing": "quad", "eta": 0.5}
    assert chosen(METHODS["mean"], **everything) == (1, "ddpm", "even", 1.0)
    assert METHODS["mean"]().unused(**everything) == ["solver", "spacing", "eta"]
    assert METHODS["grow"]().unused(**everything) == ["spacing"]
    assert METHODS["ddrm"]().unused(**everything) == ["solver", "eta"]
    assert METHODS["dps"]().unused(**everything) == []
