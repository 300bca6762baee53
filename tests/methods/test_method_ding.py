"""DInG: its step against the product of Gaussians, its schedules, its counts, and its law on two pixels and on smooth images."""

import pytest
import torch

from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.processes import EDM, Flow, Uniform
from rad.diffusion.schedules import linear_betas, shifted_sigmas
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import step_levels
from rad.methods.ding import DInG
from rad.methods.replacement import Replacement
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, law, make_pair, make_world

WORLD, PAIR = make_world(), make_pair()
FLOW = Flow(shifted_sigmas())
VP = Uniform(linear_betas())
SCHEDULES = ("sigma2", "sigma1.5", "ddpm", "ddim", "vp")


def levels(process, *times):
    return [process.noise(torch.tensor([t])) for t in times]


def in_edm(noise):
    return NoiseLevel(torch.ones_like(noise.alpha), noise.sigma / noise.alpha, noise.timesteps)


def one_step(method, now, nxt, *, hole=WORLD.hole, x=None):
    """(x_u, mu's parts (x0, e), w, the draws) of a step of the world, whose task is `hole`."""
    generator = torch.Generator().manual_seed(3)
    x_, *fresh = (torch.randn(1, 1, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(3))
    x = x_ if x is None else x
    x0 = WORLD.denoiser.denoise(x, now)
    draws = iter(fresh)
    state = State(
        Task.from_image(WORLD.y, hole),
        FLOW,
        CountedDenoiser(WORLD.denoiser),
        0,
        2,
        9,
        5,
        now,
        nxt,
        x,
        lambda: next(draws),
    )
    return method.after_step(state, x0, x), x0.x0, (x - now.alpha_map() * x0.x0) / now.sigma_map(), fresh


# ---- the law -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxy", "schedule", "steps", "known", "mean", "variance"),
    [
        ("resample", "sigma2", 28, 1.0114, 0.6302, 0.3681),
        ("resample", "sigma2", 100, 1.0059, 0.7473, 0.3627),
        ("resample", "sigma1.5", 28, 1.0020, 0.6417, 0.3513),
        ("resample", "ddpm", 28, 1.0000, 0.6983, 0.3074),
        ("delayed", "sigma2", 28, 1.0339, 0.8373, 0.3339),
        ("delayed", "sigma2", 100, 1.0083, 0.8431, 0.3417),
    ],
)
def test_two_pixels_on_a_flow(proxy, schedule, steps, known, mean, variance):
    """Exact: mean 0.8, variance 0.36. Propagated; an independent simulation agrees to 0.003 with all of these."""
    found, covariance = law(PAIR, DInG(proxy=proxy, schedule=schedule), steps=steps, base_process=FLOW)
    assert [*found.tolist(), float(covariance[1, 1])] == pytest.approx([known, mean, variance], abs=2e-4)


def test_more_levels_come_nearer_to_the_posterior_and_replacement_does_not():
    mean, covariance = PAIR.posterior()
    assert (float(mean), float(covariance)) == pytest.approx((0.8, 0.36))
    found, spread = law(PAIR, DInG(), steps=400, draws=3, base_process=FLOW)
    replaced = law(PAIR, Replacement(), steps=100, draws=2, eta=0.0, base_process=FLOW)[0]
    assert [*found.tolist(), float(spread[1, 1])] == pytest.approx([1.0031, 0.7888, 0.3557], abs=2e-4)
    assert float(replaced[1]) == pytest.approx(0.346, abs=0.002)
    assert abs(float(found[1]) - 0.8) < abs(float(replaced[1]) - 0.8) / 5


def test_the_level_that_the_official_code_leaves_out_changes_little():
    early, late = (law(PAIR, DInG(stop_early=early), steps=28, base_process=FLOW) for early in (True, False))
    torch.testing.assert_close(early[0], late[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(early[1], late[1], rtol=0, atol=1e-3)
    assert not torch.equal(early[0], late[0])


def test_units_do_not_matter():
    """The same chain as a flow and in x / a, on the same probes."""

    class Scaled(Flow):
        def noise(self, t, regions=None):
            return in_edm(super().noise(t))

    for schedule in SCHEDULES:
        laws = [
            law(PAIR, DInG(schedule=schedule), steps=10, base_process=base_process)
            for base_process in (FLOW, Scaled(shifted_sigmas(), scale=1000))
        ]
        torch.testing.assert_close(laws[0][0], laws[1][0], rtol=0, atol=1e-8)
        torch.testing.assert_close(laws[0][1], laws[1][1], rtol=0, atol=1e-8)


# ---- one step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", ["resample", "delayed"])
@pytest.mark.parametrize("process", [FLOW, VP])
def test_a_step_is_the_product_of_both_gaussians(proxy, process):
    """In the form of precisions: variance 1 / (1 / (a sigma_y)^2 + 1 / v), known pixels alone have the first."""
    now, nxt = levels(process, 600, 400)
    method = DInG(proxy=proxy, sigma_y=0.3)
    stepped, x0, e, fresh = one_step(method, now, nxt)
    v = method.variance(now, nxt)[0, 0]
    mu = nxt.alpha_map() * x0 + (nxt.sigma_map() ** 2 - v).sqrt() * e
    w, last = e, fresh[0]
    if proxy == "resample":
        z, last = mu + v.sqrt() * fresh[0], fresh[1]
        w = (z - nxt.alpha_map() * WORLD.denoiser.denoise(z, nxt).x0) / nxt.sigma_map()
    observed = (1 - WORLD.hole) / (nxt.alpha_map() * 0.3) ** 2
    spread = 1 / (observed + 1 / v)
    expected = spread * (observed * (nxt.alpha_map() * WORLD.y + nxt.sigma_map() * w) + mu / v) + spread.sqrt() * last
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12)


def test_limits_of_the_noise_in_y():
    now, nxt = levels(FLOW, 600, 400)
    known = WORLD.hole == 0
    sure, x0, e, fresh = one_step(DInG(proxy="delayed", sigma_y=0.0), now, nxt)
    torch.testing.assert_close(
        sure[known], (nxt.alpha_map() * WORLD.y + nxt.sigma_map() * e)[known], rtol=0, atol=1e-12
    )
    floored = one_step(DInG(proxy="delayed", sigma_y=0.3, gamma_min=1.0), now, nxt)[0]
    assert torch.equal(floored, sure)
    unsure = one_step(DInG(proxy="delayed", sigma_y=1e8), now, nxt)[0]
    v = DInG().variance(now, nxt)[0, 0]
    plain = nxt.alpha_map() * x0 + (nxt.sigma_map() ** 2 - v).sqrt() * e + v.sqrt() * fresh[0]
    torch.testing.assert_close(unsure, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(sure[~known], plain[~known], rtol=0, atol=1e-12)


def test_soft_masks_lie_between():
    now, nxt = levels(FLOW, 600, 400)
    method = DInG(proxy="delayed", sigma_y=0.3)
    ends = [one_step(method, now, nxt, hole=torch.full_like(WORLD.hole, value))[0] for value in (0.0, 1.0)]
    soft = one_step(method, now, nxt, hole=torch.full_like(WORLD.hole, 0.5))[0]
    assert float((soft - ends[0]).norm()) < float((ends[1] - ends[0]).norm())
    assert float((soft - ends[1]).norm()) < float((ends[1] - ends[0]).norm())


def test_schedules():
    now, nxt = levels(FLOW, 600, 400)
    sigma, one = nxt.sigma, DInG()
    assert torch.equal(one.variance(now, nxt), (sigma * (sigma / (1 - sigma + sigma))).square())
    torch.testing.assert_close(one.variance(now, nxt).sqrt(), sigma**2)
    torch.testing.assert_close(DInG(schedule="sigma1.5").variance(now, nxt).sqrt(), sigma**1.5)
    posterior = step_levels(now, nxt).posterior
    assert torch.equal(DInG(schedule="ddpm").variance(now, nxt), posterior)
    torch.testing.assert_close(DInG(schedule="ddim").variance(now, nxt).sqrt(), 0.01 * posterior.sqrt())
    now, nxt = levels(VP, 600, 400)
    literal = nxt.sigma * (1 - nxt.alpha)
    torch.testing.assert_close(DInG(schedule="vp").variance(now, nxt).sqrt(), literal)
    for schedule in SCHEDULES:
        for process in (FLOW, VP, EDM(torch.logspace(-2, 2, 1000, dtype=DOUBLE))):
            for now, nxt in (levels(process, 999, 998), levels(process, 999, 0), levels(process, 3, 0)):
                v = DInG(schedule=schedule).variance(now, nxt)
                assert bool(((v > 0) & (v <= nxt.sigma**2)).all())


def test_with_many_levels_known_pixels_count_less_at_the_last():
    """And gamma_min holds against it."""
    for last, expected in ((0.108, 0.631), (0.063, 0.152), (0.035, 0.0159)):  # of 28, 50 and 100 levels
        sigma = torch.tensor([[last]], dtype=DOUBLE)
        level = NoiseLevel(1 - sigma, sigma, sigma)
        v = DInG().variance(level, level)
        assert float(DInG().gamma(v, level)) == pytest.approx(expected, rel=0.005)
        assert float(DInG(gamma_min=0.5).gamma(v, level)) == max(0.5, float(DInG().gamma(v, level)))


# ---- the chain -----------------------------------------------------------------------------------------


def run(method, *, hole, steps=12, process=FLOW, denoiser=WORLD.denoiser, noise=None):
    task = Task.from_image(WORLD.y.expand(2, -1, -1, -1), hole.expand(2, -1, -1, -1))
    sampler = Sampler(process, method, steps=steps, eta=method.preset_eta)
    with KeyedNoise(0, range(2)) as drawn:
        return sampler(denoiser, task, noise=drawn if noise is None else noise(drawn))


class Second:
    """Every second draw of `noise`: the draws of a chain without a second network call."""

    def __init__(self, noise):
        self.noise = noise

    def randn(self, number, shape):
        return self.noise.randn(2 * number, shape)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_hole_is_the_plain_chain_of_that_variance(schedule):
    everything = torch.ones_like(WORLD.hole)
    drawn = run(DInG(schedule=schedule), hole=everything).raw
    assert torch.equal(drawn, run(DInG(schedule=schedule, proxy="delayed"), hole=everything, noise=Second).raw)
    if schedule not in ("ddpm", "ddim"):
        return

    class Chain(SamplingMethod):
        preset_eta = 1.0 if schedule == "ddpm" else 0.01

        def plan(self, times):
            return DInG().plan(times)

    plain = run(Chain(), hole=everything, noise=Second).raw
    torch.testing.assert_close(drawn, plain, rtol=0, atol=1e-9)


def test_counts():
    for steps, method, calls in (
        (28, DInG(), 53),
        (28, DInG(stop_early=False), 55),
        (50, DInG(), 97),
        (100, DInG(proxy="delayed"), 99),
        (1, DInG(), 1),
        (2, DInG(), 1),
    ):
        assert method.cost(method.plan(spaced_timesteps(1000, steps))).nfe == calls
        if steps <= 28:
            assert run(method, hole=WORLD.hole, steps=steps).nfe == calls
    assert DInG().plan([9, 5, 0, CLEAN]) == [9, 5, CLEAN]


def test_the_network_is_not_differentiated():
    class Strict(GaussianDenoiser):
        def denoise(self, x, noise):
            assert not torch.is_grad_enabled()
            assert not x.requires_grad
            return super().denoise(x, noise)

    assert run(DInG(), hole=WORLD.hole, denoiser=Strict(WORLD.denoiser.mean, WORLD.denoiser.covariance)).vjp == 0
