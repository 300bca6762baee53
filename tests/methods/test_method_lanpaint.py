"""LanPaint: the exact flow, drift and diffusion of an inner step, the law it keeps, its limit replacement, and the oracle."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.methods.lanpaint import LanPaint
from rad.methods.replacement import Replacement
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, CountedDenoiser, State, level
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world, sampled

WORLD = make_world()
EYE = torch.eye(64, dtype=DOUBLE)


def state(x: Tensor, *, time: int, randn: Callable[[], Tensor] | None = None, hole: Tensor = WORLD.hole) -> State:
    rows = len(x)
    task = Task.from_image(WORLD.y.expand(rows, 1, 8, 8), hole.expand(rows, 1, 8, 8))
    process = Uniform(linear_betas())
    now, after = level(process, time, task), level(process, time - 1, task)
    randn = randn or (lambda: torch.zeros_like(x))
    return State(task, process, CountedDenoiser(WORLD.denoiser), 0, 20, time, time - 1, now, after, x, randn)


def affine(method: LanPaint, *, time: int, hole: Tensor = WORLD.hole) -> tuple[Tensor, Tensor, Tensor]:
    """The inner steps at a level as x -> M x + b + N n: M, b and N N^T."""
    draws = max(0, 2 * method.inner - 1)
    basis = torch.cat([torch.zeros(1, 64, dtype=DOUBLE), EYE, torch.zeros(draws * 64, 64, dtype=DOUBLE)])
    drawn = 0

    def randn() -> Tensor:
        nonlocal drawn
        rows = torch.zeros_like(basis)
        rows[65 + drawn * 64 : 129 + drawn * 64] = EYE
        drawn += 1
        return rows.view(-1, 1, 8, 8)

    flat = method.before_denoise(state(basis.view(-1, 1, 8, 8), time=time, randn=randn, hole=hole)).flatten(1)
    assert drawn == draws
    linear = (flat[1:] - flat[0]).T
    return linear[:, :64], flat[0], linear[:, 64:] @ linear[:, 64:].T


def test_without_inner_steps_it_is_replacement_bit_for_bit():
    plain = sampled(WORLD, Replacement(), steps=12, rows=3, eta=0)
    assert torch.equal(sampled(WORLD, LanPaint(inner=0), steps=12, rows=3), plain)


def test_flows_add_up():
    """At a fixed target the flow of h, then of k, is the flow of h + k: in mean (no draws) and in variance (from 0)."""
    method, x = LanPaint(), torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    still, target = state(x, time=300), 0.3 * x.flip(2)
    twice = method.flow(still, method.flow(still, x, target, length=0.2), target, length=0.5)
    torch.testing.assert_close(twice, method.flow(still, x, target, length=0.7), rtol=1e-12, atol=1e-14)
    noisy, zero = state(x, time=300, randn=lambda: torch.ones_like(x)), torch.zeros_like(x)
    first, both = (method.flow(noisy, zero, zero, length=length).square() for length in (0.2, 0.7))
    second = method.flow(noisy, zero, zero, length=0.5).square()
    decay = method.flow(still, torch.ones_like(x), zero, length=0.5).square()
    torch.testing.assert_close(decay * first + second, both, rtol=1e-12, atol=1e-14)
    end = method.flow(noisy, x, target, length=1e3)
    s2 = noisy.now.sigma_map().square()
    torch.testing.assert_close((end - target).square(), s2 / (1 + 8 * (1 - WORLD.hole)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("time", [100, 700])
def test_drift_and_diffusion(inner: int, time: int):
    """For short steps: x -> x + n eta s^2 g(x), with covariance 2 n eta s^2. g as in the paper, from the exact score."""
    eta, lam = 1e-6, 8.0
    M, b, covariance = affine(LanPaint(inner=inner, step=eta), time=time)
    at = state(WORLD.y, time=time)
    a, s2, S = at.now.alpha, at.now.sigma.square(), WORLD.denoiser.covariance
    precision = torch.linalg.inv(a**2 * S + s2 * EYE)
    score_M, score_b = -precision, precision @ (a[0] * WORLD.denoiser.mean.flatten())
    hole = WORLD.hole.flatten()
    outside = torch.diag(1 - hole) * (1 + lam)
    mixed = torch.diag(hole - lam * (1 - hole))  # the score in the hole, -lam times it elsewhere
    g_M = mixed @ score_M - outside / s2
    g_b = mixed @ score_b + outside @ WORLD.y.flatten() * a[0] / s2[0]
    span = inner * eta * float(s2)
    torch.testing.assert_close((M - EYE) / span, g_M, rtol=1e-3, atol=2e-3 * float(g_M.abs().max()))
    torch.testing.assert_close(b / span, g_b, rtol=1e-3, atol=2e-3 * float(g_b.abs().max()))
    torch.testing.assert_close(covariance / span, 2 * EYE, rtol=1e-3, atol=1e-3)


def test_with_nothing_known_the_law_of_the_level_is_kept():
    """Langevin steps leave N(a mu, a^2 Sigma + s^2) as it is, up to the square of their length (measured 7e-4, 1.7e-4)."""
    errors = []
    for inner, step in ((6, 0.1), (12, 0.05)):
        M, b, noise = affine(LanPaint(inner=inner, step=step), time=400, hole=torch.ones_like(WORLD.hole))
        at = state(WORLD.y, time=400)
        exact = at.now.alpha**2 * WORLD.denoiser.covariance + at.now.sigma**2 * EYE
        mean = at.now.alpha[0] * WORLD.denoiser.mean.flatten()
        torch.testing.assert_close(M @ mean + b, mean, rtol=0, atol=1e-10)
        errors.append(float((M @ exact @ M.T + noise - exact).norm() / exact.norm()))
    assert errors[0] < 0.002
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("inner", [0, 1, 5])
def test_counts(inner: int):
    sampler = Sampler(Uniform(linear_betas()), LanPaint(inner=inner), steps=4, eta=0)
    with KeyedNoise(0, range(1)) as noise:
        sample = sampler(WORLD.denoiser, Task.from_image(WORLD.y, WORLD.hole), noise=noise)
    assert sampler.cost == Cost(4 * (1 + inner)) == Cost(sample.nfe, sample.vjp)
    assert torch.equal(sample.raw * (1 - WORLD.hole), sample.image * (1 - WORLD.hole))  # y, exactly


def test_preset_costs():
    assert LanPaint().cost(spaced_timesteps(1000, 20)) == Cost(120)
    assert LanPaint(inner=10).cost(spaced_timesteps(1000, 20)) == Cost(220)


def test_distance_from_the_posterior():
    """Exact laws, so a changed formula shows. More inner steps, more levels and the guided score each bring it nearer.

    20 Euler steps alone, with the exact conditional denoiser, leave a variance ratio of 0.59 and a KL of 3.3.
    """
    five = distance(WORLD, *law(WORLD, LanPaint(), steps=20, draws=11))
    none = distance(WORLD, *law(WORLD, LanPaint(inner=0), steps=20, draws=2))
    ten = distance(WORLD, *law(WORLD, LanPaint(inner=10), steps=20, draws=21))
    unguided = distance(WORLD, *law(WORLD, LanPaint(guidance=0), steps=20, draws=11))
    assert (five.mean_error, five.variance_ratio, five.kl) == pytest.approx((0.5512, 1.2352, 3.5796), rel=1e-3)
    assert ten.mean_error == pytest.approx(0.3417, rel=1e-3)
    assert ten.mean_error < five.mean_error < 0.6 * unguided.mean_error < unguided.mean_error < none.mean_error
    assert ten.kl < five.kl < unguided.kl < none.kl
