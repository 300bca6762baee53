"""CoPaint: descent against the closed form, the line search image by image, growth by timestep, and its limits."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.methods.copaint import CoPaint
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sample, Sampler
from rad.sampling.state import Cost, CountedDenoiser, State, level
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world, sampled

WORLD = make_world()
EYE = torch.eye(64, dtype=DOUBLE)


def state(x: Tensor, task: Task, *, time: int, steps: int = 250) -> State:
    process = Uniform(linear_betas())
    now, after = level(process, time, task), level(process, max(time - 4, -1), task)
    denoiser = CountedDenoiser(WORLD.denoiser)
    index = round((steps - 1) * (1 - time / 999))
    return State(task, process, denoiser, 0, steps, time, time - 4, now, after, x, lambda: torch.zeros_like(x), index)


def images(count: int, *, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def run(method: CoPaint, task: Task, *, steps: int, rows: range) -> Sample:
    sampler = Sampler(Uniform(linear_betas()), method, steps=steps, eta=0)
    with KeyedNoise(0, rows) as noise:
        return sampler(WORLD.denoiser, task, noise=noise)


def loss(at: State, x: Tensor, *, weight: float) -> Tensor:
    x0 = WORLD.denoiser.denoise(x, at.now).x0
    misfit = ((1 - at.task.hole) * (x0 - at.task.known)).flatten(1).square().sum(1)
    return misfit + weight * (x - at.x).flatten(1).square().sum(1)


def test_no_descents_are_ddim_bit_for_bit():
    plain = sampled(WORLD, SamplingMethod(), steps=12, rows=2, eta=0)
    assert torch.equal(sampled(WORLD, CoPaint(descents=0), steps=12, rows=2), plain)
    assert not torch.equal(sampled(WORLD, CoPaint(), steps=12, rows=2), plain)


def test_descent_is_the_closed_form():
    """Two steps along -2 J^T (known (D - y)) - 2 lam (x - o), at the rate of the level."""
    at = state(images(1), Task.from_image(WORLD.y, WORLD.hole), time=400)
    done = round(249 * (1 - 400 / 999))
    a, s, S = at.now.alpha, at.now.sigma, WORLD.denoiser.covariance
    J = a * S @ torch.linalg.inv(a**2 * S + s**2 * EYE)
    rate, weight = 0.02 * 1.012**done * float(a / at.level(0).alpha), 0.3 * 1.01**done
    start = x = at.x.flatten()
    known = (1 - WORLD.hole).flatten()
    for _ in range(2):
        x0 = WORLD.denoiser.denoise(x.view(1, 1, 8, 8), at.now).x0.flatten()
        x = x - rate * 2 * (J.T @ (known * (x0 - WORLD.y.flatten())) + weight * (x - start))
    found = CoPaint(prior=0.3).before_denoise(at)
    torch.testing.assert_close(found.flatten(), x, rtol=1e-10, atol=1e-12)
    assert (at.denoiser.nfe, at.denoiser.vjp) == (3, 2)
    at.denoiser.reuse(found, at.now)  # the accepted trial is the estimate of the step
    assert at.denoiser.nfe == 3


@pytest.mark.parametrize("rate", [1.0, 30.0, 1e9])
def test_the_loss_never_rises_and_the_search_ends(rate: float):
    at = state(images(3), Task.from_image(WORLD.y.expand(3, 1, 8, 8), WORLD.hole.expand(3, 1, 8, 8)), time=400)
    done = round(249 * (1 - 400 / 999))
    for descents in (1, 2):
        found = CoPaint(rate=rate, descents=descents).before_denoise(at)
        weight = 1e-4 * 1.01**done
        before, after = loss(at, at.x, weight=weight), loss(at, found.detach(), weight=weight)
        assert bool((after <= before).all())
        assert torch.equal(found.detach(), at.x) == (rate == 1e9)  # 0.8^20 of it is still too long: given up
        assert at.denoiser.nfe <= 1 + 22 * descents
        at = replace(at, denoiser=CountedDenoiser(WORLD.denoiser))


def test_images_of_a_batch_search_on_their_own():
    """One image shrinks its steps more often than the other; neither is touched by the other."""
    holes = torch.cat([WORLD.hole, torch.ones_like(WORLD.hole)])
    holes[1, :, 0, :2] = 0  # hardly anything known: a loss of little curvature
    known = torch.cat([WORLD.y, 0.5 * WORLD.y])
    method, alone = CoPaint(rate=1.2), []
    for row in range(2):
        task = Task.from_image(known[row : row + 1], holes[row : row + 1])
        alone.append(run(method, task, steps=8, rows=range(row, row + 1)))
    both = run(method, Task.from_image(known, holes), steps=8, rows=range(2))
    assert alone[0].nfe > alone[1].nfe
    torch.testing.assert_close(both.raw, torch.cat([one.raw for one in alone]), rtol=1e-9, atol=1e-11)
    assert both.nfe >= alone[0].nfe  # at each level the slower of the two counts


@pytest.mark.parametrize(
    ("method", "steps"), [(CoPaint(), 250), (CoPaint.tt(), 250), (CoPaint.fast(), 100), (CoPaint.tt(), 7)]
)
def test_the_index_of_a_level_is_reverse_steps_less_forward_moves(method: CoPaint, steps: int):
    """Of the loop's state, which the rates grow with."""
    seen: list[tuple[float, int]] = []

    class Watch(SamplingMethod):  # the plan of the method, without its descents
        def plan(self, timesteps: list[float]) -> list[float]:
            return method.plan(timesteps)

        def before_denoise(self, state: State) -> Tensor:
            seen.append((state.timestep, state.index))
            return state.x

    times = method.plan(spaced_timesteps(1000, steps))
    total = sum(after < now for now, after in pairwise(times))
    assert total == {250: 490 if method.visits == 2 else 250, 100: 100, 7: 7}[steps]
    sampler = Sampler(Uniform(linear_betas()), Watch(), steps=steps)
    with KeyedNoise(0, [0]) as noise:
        sampler(WORLD.denoiser, Task.from_image(WORLD.y, WORLD.hole), noise=noise)
    net, expected = 0, []
    for now, after in pairwise(times):
        if after < now:
            expected.append((now, net))
        net += 1 if after < now else -1
    assert net == steps
    assert seen == expected
    assert [index for _, index in expected] == [round((steps - 1) * (1 - time / 999)) for time, _ in expected]


def test_counts_and_presets():
    task = Task.from_image(WORLD.y, WORLD.hole)
    for method, steps in ((CoPaint(), 12), (CoPaint.tt(), 24), (CoPaint.fast(), 12)):
        sample = run(method, task, steps=steps, rows=range(1))
        assert method.cost(method.plan(spaced_timesteps(1000, steps))) == Cost(sample.nfe, sample.vjp)
    assert CoPaint().cost(spaced_timesteps(1000, 250)) == Cost(750, 500)
    assert CoPaint.tt().cost(CoPaint.tt().plan(spaced_timesteps(1000, 250))) == Cost(1470, 980)
    assert CoPaint.fast().cost(spaced_timesteps(1000, 100)) == Cost(200, 100)


def test_distance_from_the_posterior():
    """At the paper's rates every first trial is accepted on this world, so that the method is affine and its law exact."""
    far = distance(WORLD, *law(WORLD, CoPaint(), steps=250, draws=1))
    assert (far.mean_error, far.variance_ratio, far.kl) == pytest.approx((0.4360, 0.5693, 1.4303), rel=1e-3)
    fast = distance(WORLD, *law(WORLD, CoPaint.fast(), steps=100, draws=1))
    assert (fast.mean_error, fast.variance_ratio) == pytest.approx((0.2307, 0.8666), rel=1e-3)


def test_a_step_that_is_not_finite_is_not_taken():
    """A learning rate far too large: every trial overflows, and the image stays where it is."""
    from rad.diffusion.gaussian import GaussianDenoiser

    single = GaussianDenoiser(WORLD.denoiser.mean.float(), WORLD.denoiser.covariance.float())
    task = Task.from_image(WORLD.y.float(), WORLD.hole.float())
    results = []
    for method in (CoPaint(rate=1e38), CoPaint(descents=0)):
        with KeyedNoise(0, ["a"]) as noise:
            results.append(Sampler(Uniform(linear_betas()), method, steps=6, eta=0.0)(single, task, noise=noise).raw)
    assert torch.equal(*results)
