"""DiffPIR: its levels, its data step, DDNM as its limit, and its law on Gaussian data."""

import itertools

import pytest
import torch

from rad.diffusion.levels import CLEAN, NoiseLevel
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import Denoised, reverse_step
from rad.methods.ddnm import DDNM
from rad.methods.diffpir import DiffPIR
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world

WORLD = make_world()
PROCESS = Uniform(linear_betas())


class OnGrid(DDNM):
    def plan(self, times):
        return DiffPIR().plan(times)


def run(method, *, hole=WORLD.hole, y=WORLD.y, steps=12):
    task = Task.from_image(y.expand(2, 1, 8, 8), hole.expand(2, 1, 8, 8))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(PROCESS, method, steps=steps, eta=method.preset_eta)(WORLD.denoiser, task, noise=noise)


def state_at(t, u, *, edm=False):
    generator = torch.Generator().manual_seed(3)
    x, fresh = (torch.randn(1, 1, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(2))
    now, nxt = (PROCESS.noise(torch.tensor([time])) for time in (t, u))
    if edm:
        x = x / now.alpha_map()
        now, nxt = (NoiseLevel(torch.ones_like(n.alpha), n.sigma / n.alpha, n.timesteps) for n in (now, nxt))
    task = Task.from_image(WORLD.y, WORLD.hole)
    return State(task, PROCESS, CountedDenoiser(WORLD.denoiser), 0, 1, t, u, now, nxt, x, lambda: fresh)


def step(method, state, *, eta=0.0):
    """(x at the next level, z), as the loop makes them, with ones for the noise of its own step."""
    z = method.on_denoised(state, WORLD.denoiser.denoise(state.x, state.now)).x0
    x = reverse_step(state.x, Denoised(z), state.now, state.next, eta=eta, noise=torch.ones_like(state.x))
    return method.after_step(state, Denoised(z), x), z


def test_levels_are_quadratic_and_as_many_as_asked_for():
    plan = DiffPIR().plan(spaced_timesteps(1000, 20))
    assert (plan[:4], plan[-4:]) == ([999, 770, 675, 602], [54, 26, 0, CLEAN])
    for total in (1000, 250, 7):
        for count in {1, 2, 3, total // 3, total // 2, total - 1, total}:
            plan = DiffPIR().plan(spaced_timesteps(total, count))
            assert len(plan) == count + 1
            assert plan[0] == total - 1
            assert plan[-1] == CLEAN
            assert all(t > u for t, u in itertools.pairwise(plan))
    sample = run(DiffPIR(), steps=20)
    assert (sample.nfe, sample.vjp) == (20, 0)


def test_the_data_step_minimises_its_objective():
    method, state = DiffPIR(lam=3.0, sigma_n=0.2), state_at(400, 300)
    denoised = WORLD.denoiser.denoise(state.x, state.now)
    z = method.on_denoised(state, denoised).x0.requires_grad_()
    sigma = state.now.sigma_map() / state.now.alpha_map()
    known = 1 - WORLD.hole
    objective = known * (z - WORLD.y).square() + 3 * 0.2**2 / sigma**2 * (z - denoised.x0).square()
    slope = torch.autograd.grad(objective.sum(), z)[0]
    assert float(slope.abs().max()) < 1e-12
    outside = known == 1
    assert bool((z - WORLD.y)[outside].abs().max() > 0.01), "rho is not so small that the prior has no say"


def test_one_step_splits_the_noise():
    """x_u in the paper's terms; the noise of the model comes from the corrected z."""
    method, state = DiffPIR(zeta=0.36, sigma_n=0.2), state_at(400, 300)
    now, nxt, fresh = state.now, state.next, state.randn()
    for eta in (0.0, 0.5):
        got, z = step(method, state, eta=eta)
        e = (state.x - now.alpha_map() * z) / now.sigma_map()
        q = eta * nxt.sigma_map() / now.sigma_map() * (1 - now.alpha_map() ** 2 / nxt.alpha_map() ** 2).sqrt()
        own = (nxt.sigma_map() ** 2 - q**2).sqrt() * e + q
        torch.testing.assert_close(
            got, nxt.alpha_map() * z + 0.8 * own + 0.6 * nxt.sigma_map() * fresh, rtol=0, atol=1e-12
        )


def test_levels_of_either_kind_give_the_same_step():
    method = DiffPIR(zeta=0.36, sigma_n=0.2)
    for u in (300, 40, CLEAN):
        here, there = (step(method, state_at(400, u, edm=edm), eta=0.5)[0] for edm in (False, True))
        torch.testing.assert_close(here, PROCESS.noise(torch.tensor([u])).alpha_map() * there, rtol=0, atol=1e-12)


def test_without_noise_in_y_it_is_ddnm_with_fresh_noise():
    there = run(OnGrid(eta=1.0, known_noise="fresh"))
    assert torch.equal(run(DiffPIR(sigma_n=0.0)).raw, there.raw)
    torch.testing.assert_close(run(DiffPIR()).raw, there.raw, rtol=0, atol=1e-2)


def test_with_much_noise_in_y_it_is_unconditional():
    zero, everything = torch.zeros_like(WORLD.y), torch.ones_like(WORLD.hole)
    here, there = run(DiffPIR(sigma_n=1e6), y=zero).raw, run(DiffPIR(), hole=everything).raw
    inside = WORLD.hole.expand_as(here) == 1
    torch.testing.assert_close(here[inside], there[inside], rtol=0, atol=1e-6)


def test_zeta_0_is_ddim_on_the_corrected_estimate():
    class Corrected(SamplingMethod):
        preset_eta = 0.0

        def plan(self, times):
            return DiffPIR().plan(times)

        def on_denoised(self, state, denoised):
            return Denoised(torch.lerp(state.task.known, denoised.x0, state.task.hole))

    here, there = run(DiffPIR(sigma_n=0.0, zeta=0.0)).raw, run(Corrected()).raw
    torch.testing.assert_close(here, there, rtol=0, atol=1e-12)


def test_the_end_is_the_image_where_known():
    sample = run(DiffPIR(sigma_n=0.1))
    known = WORLD.hole.expand_as(sample.raw) == 0
    assert torch.equal(sample.raw[known], WORLD.y.expand_as(sample.raw)[known])


@pytest.mark.parametrize(
    ("steps", "zeta", "mean_error", "variance_ratio", "kl"),
    [
        (20, 1.0, 0.9268, 0.9611, 6.1584),
        (100, 1.0, 0.4412, 0.6987, 2.4138),
        (100, 0.3, 0.8726, 1.9227, 3.7726),
        (100, 0.0, 1.4416, 3.5481, 11.1333),
    ],
)
def test_law(steps, zeta, mean_error, variance_ratio, kl):
    """Exact propagation, so the tolerance is that of the rounded numbers."""
    found = distance(WORLD, *law(WORLD, DiffPIR(zeta=zeta), steps=steps, draws=2))
    assert found.mean_error == pytest.approx(mean_error, rel=1e-3)
    assert found.variance_ratio == pytest.approx(variance_ratio, rel=1e-3)
    assert found.kl == pytest.approx(kl, rel=1e-3)
